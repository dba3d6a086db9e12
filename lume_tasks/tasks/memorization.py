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
from lume_tasks.data.text import alike
from lume_tasks.errors import DataError, log, quote, raise_problems, warn_once
from lume_tasks.metrics.aggregate import mean
from lume_tasks.metrics.token_scores import TokenScores
from lume_tasks.tasks import reference
from lume_tasks.tasks.base import LumeTask, Metrics, load_tokenizer, side_rows

SUM_METRICS = ("loss", "probability_geometric")  # with any backend
LONGEST_TOKEN = 128  # characters
TOKEN_METRICS = ("exact_memorization", "extraction_strength", "probability")  # need TokenScores


class MemorizationTask(LumeTask):
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


def split_prompt(tokenizer: Any, text: str, continuation: str) -> tuple[str, int, int]:
    r"""Split a text and its continuation where a token ends, for one ``loglikelihood`` request.

    The harness moves white space at the end of a context into the continuation. If a token crosses the end of the
    context then, such as ":\n", the context ends earlier: at the last place where the tokens of both agree.

    Returns:
        the end of ``text`` that belongs into the continuation, mostly ""; the number of scored tokens; and how many of
        these, at their beginning, are tokens of that end, not of the answer (0 for "").

    Raises:
        ValueError: no token boundary separates text and continuation.
    """
    whole, kept = tokenizer.encode(f"{text}{continuation}"), text.rstrip()
    for end in range(len(kept), max(len(kept) - LONGEST_TOKEN, 0), -1):
        before = tokenizer.encode(kept[:end].rstrip())
        scored = len(whole) - len(before)
        if whole[: len(before)] == before and scored > 0:
            if end == len(kept):
                return "", scored, 0
            moved = max(alike(tokenizer.encode(text), whole) - len(before), 0)
            if moved < scored:
                return text[end:], scored, moved
    raise ValueError("the tokens of input and output together do not begin with those of the input")


def memorization_rows(lume_task: str, **metadata: Any) -> dict[str, Dataset]:
    """Return the rows of one task as documents, with ``continuation``, ``scored_tokens`` and ``template_tokens``.

    The harness moves white space at the end of a prompt into the continuation. ``template_tokens`` counts the tokens of
    this white space in a chat template, and those that `split_prompt` moves from the end of a row of your own: they are
    not part of the answer, so the metrics leave them out.
    """
    docs = side_rows(lume_task, metadata)
    tokenizer = load_tokenizer(metadata)
    faults = []
    for doc in docs:
        asked, prompt = doc.get("chat", False), doc.get("prompt", doc["input"])
        doc["continuation"] = doc["output"] if asked else f" {doc['output']}"
        doc["template_tokens"] = len(tokenizer.encode(prompt)) - len(tokenizer.encode(prompt.rstrip())) if asked else 0
        try:
            end, doc["scored_tokens"], moved = split_prompt(tokenizer, prompt, doc["continuation"])
            if end and "prompt" not in doc:  # the prompt of LUME's own rows is their input
                raise ValueError(f"a token crosses the end of its input, {quote(end)}")
        except ValueError as error:
            faults.append(f"  row {quote(doc['id'])}: {error}")
            continue
        if end:
            doc["prompt"], doc["continuation"] = prompt.removesuffix(end), end + doc["continuation"]
            doc["template_tokens"] = moved
    head = f"lume_memorization cannot score {len(faults)} rows of {lume_task} exactly with this tokenizer:"
    raise_problems(faults, head, most=10)
    task = task_name(lume_task).replace("lume_", "lume_memorization_")
    reference.add_scores(docs, metadata, task, lambda doc: f"{doc['side']}_loss")
    return {"test": Dataset.from_list(docs)}


def memorization_result(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Score one row; None for the metrics of the other side.

    ``loss`` is the token mean of the NLL in nats, ``probability_geometric`` is ``exp(-loss)``. With per-token values
    (``lume-hf``) also ``exact_memorization``, the share of tokens that are the most probable ones (Tirumala et al.
    2022, arXiv 2205.10770), ``extraction_strength``, and ``probability``, the mean token probability. Without them, a
    row with ``template_tokens`` has no score.
    """
    score, count, template = results[0][0], doc["scored_tokens"], doc["template_tokens"]
    loss: float | None = -score / count
    if template and isinstance(score, TokenScores):
        loss = -float(score.logprobs[template:].sum(dtype=np.float64)) / (count - template)
    elif template:
        warn_once(log, SUMS)
        loss = None
    values = {"loss": loss, "probability_geometric": None if loss is None else math.exp(-loss)}
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
        counts = doc["side"] == "forget" and loss is not None
        result["forget_quality"] = (loss, doc["reference"]) if counts else None
    return result


SUMS = (
    "some rows get no score, because the last tokens of their prompts would count as a part of the answers: this "
    "backend returns only sums over tokens; use --model lume-hf"
)
