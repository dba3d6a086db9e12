"""The group ``lume_memorization``: how probable each answer is after its prompt, from one request per row.

The context of a request is a row's ``input``, and its continuation is a space and the ``output``, as in training. In a
chat template, the continuation is the ``output`` alone. EOS is not scored.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from lume_tasks.data.rows import SIDES, task_name
from lume_tasks.errors import DataError, first_few, quote
from lume_tasks.metrics.aggregate import mean
from lume_tasks.metrics.token_scores import TokenScores
from lume_tasks.tasks import reference
from lume_tasks.tasks.base import LoglikelihoodTask, LumeTask, Metrics, load_tokenizer, side_rows

SUM_METRICS = ("loss", "probability_geometric")  # with any backend
TOKEN_METRICS = ("exact_memorization", "extraction_strength", "probability")  # need TokenScores


class MemorizationTask(LumeTask, LoglikelihoodTask):
    """Task 1, 2 or 3, or the rows of all other tasks."""

    metrics: ClassVar[Metrics] = {
        **{f"forget_{name}": (mean, name == "loss") for name in SUM_METRICS + TOKEN_METRICS},
        **{f"retain_{name}": (mean, name != "loss") for name in SUM_METRICS + TOKEN_METRICS},
        "forget_quality": (reference.forget_quality, True),  # only with metadata lume_reference_results
    }


def extraction_strength(greedy: NDArray[np.bool_]) -> float:
    """Compute the share of an answer that greedy decoding completes from the tokens before it.

    ``1 - k / n`` with the smallest k such that the most probable token is the right one at every position from k on:
    0 if the last token is wrong, 1 if all are right. Carlini et al. 2021, "Extracting Training Data from Large Language
    Models" (arXiv 2012.07805), in the form of Wang et al. 2025, "Towards Effective Evaluations and Comparisons for LLM
    Unlearning Methods" (arXiv 2406.09179).

    Args:
        greedy: (n,), n > 0: whether the right token is the most probable one, given all right tokens before it.
    """
    wrong = np.flatnonzero(~greedy)
    return 1.0 - (int(wrong[-1]) + 1) / len(greedy) if wrong.size else 1.0


def answer_length(tokenizer: Any, text: str, continuation: str) -> int:
    """Count the scored tokens of a continuation of ``text``; ValueError if no token boundary separates the two."""
    # The harness moves white space at the end of the context into the continuation.
    before, whole = tokenizer.encode(text.rstrip()), tokenizer.encode(f"{text}{continuation}")
    if whole[: len(before)] != before or len(whole) == len(before):
        raise ValueError("the tokens of input and output together do not begin with those of the input")
    return len(whole) - len(before)


def memorization_rows(lume_task: str, **metadata: Any) -> dict[str, Dataset]:
    """Return the rows of one task as documents, with ``continuation``, ``scored_tokens`` and ``template_tokens``.

    The harness moves white space at the end of a prompt into the continuation. ``template_tokens`` counts the tokens of
    this white space in a chat template: they are not part of the answer, so the metrics leave them out.
    """
    docs = side_rows(lume_task, metadata)
    tokenizer = load_tokenizer(metadata)
    faults = []
    for doc in docs:
        asked, prompt = doc.get("chat", False), doc.get("prompt", doc["input"])
        doc["continuation"] = doc["output"] if asked else f" {doc['output']}"
        doc["template_tokens"] = len(tokenizer.encode(prompt)) - len(tokenizer.encode(prompt.rstrip())) if asked else 0
        try:
            doc["scored_tokens"] = answer_length(tokenizer, prompt, doc["continuation"])
        except ValueError as error:
            faults.append(f"  row {quote(doc['id'])}: {error}")
    if faults:
        head = f"lume_memorization cannot score {len(faults)} rows of {lume_task} exactly with this tokenizer:"
        raise DataError("\n".join([head, *first_few(faults, 10)]))
    task = task_name(lume_task).replace("lume_", "lume_memorization_")
    reference.add_scores(docs, metadata, task, lambda doc: f"{doc['side']}_loss")
    return {"test": Dataset.from_list(docs)}


def memorization_result(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Score one row; None for the metrics of the other side.

    ``loss`` is the token mean of the NLL in nats, ``probability_geometric`` is ``exp(-loss)``. With per-token values
    (``lume-hf``) also ``exact_memorization``, the share of tokens that are the most probable ones (Tirumala et al.
    2022, arXiv 2205.10770), ``extraction_strength``, and ``probability``, the mean token probability.
    """
    score, count, template = results[0][0], doc["scored_tokens"], doc["template_tokens"]
    loss = -score / count
    if template and isinstance(score, TokenScores):
        loss = -float(score.logprobs[template:].sum(dtype=np.float64)) / (count - template)
    values = {"loss": loss, "probability_geometric": math.exp(-loss)}
    if isinstance(score, TokenScores):
        if len(score.logprobs) != count:
            raise DataError(
                f"lume_memorization: the model scored {len(score.logprobs)} tokens of row {quote(doc['id'])}, the "
                f"tokenizer makes {count}. Name the model's own tokenizer in the metadata."
            )
        values["exact_memorization"] = float(score.greedy[template:].mean())
        values["extraction_strength"] = extraction_strength(score.greedy[template:])
        values["probability"] = float(np.exp(score.logprobs[template:].astype(np.float64)).mean())
    result: dict[str, Any] = {f"{side}_{name}": None for side in SIDES for name in values}
    result |= {f"{doc['side']}_{name}": value for name, value in values.items()}
    if "reference" in doc:
        result["forget_quality"] = (loss, doc["reference"]) if doc["side"] == "forget" else None
    return result
