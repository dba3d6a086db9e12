"""How well a model knows its answers when it is shown the right beginning: one teacher-forced request a row.

The context of a request is a row's ``input`` and its continuation a space and the ``output``, as the rows were learned;
the end-of-sequence token is not scored.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from lume_tasks.data.rows import SIDES
from lume_tasks.errors import DataError, first_few, quote
from lume_tasks.metrics.token_scores import TokenScores
from lume_tasks.tasks import mia_requests, reference
from lume_tasks.tasks.generation import LumeTask, side_rows


class MemorizationTask(LumeTask):
    """A task whose metrics depend on what the backend answers: sums alone, or ``TokenScores``."""

    def apply_filters(self) -> Any:
        """Filter the answers.

        Raises:
            DataError: only some answers have per-token values, so that their metrics would be over some rows alone.
        """
        if len({isinstance(instance.resps[0][0], TokenScores) for instance in self.instances}) > 1:
            raise DataError(
                f"{self.config.task}: some answers carry values for each token and others do not: a part of them came "
                "out of a --use_cache file that was written by another --model; name a new file"
            )
        return super().apply_filters()


def extraction_strength(greedy: NDArray[np.bool_]) -> float:
    """Share of the answer that need not be shown for greedy decoding to give the rest of it.

    ``1 - k / n`` with the smallest k such that the most probable token is the right one at every position from k on:
    0 where the last token is wrong, 1 where all are right. Carlini et al. 2021, "Extracting Training Data from Large
    Language Models" (arXiv 2012.07805), in the form of Wang et al. 2025, "Towards Effective Evaluations and Comparisons
    for LLM Unlearning Methods" (arXiv 2406.09179).

    Args:
        greedy: (n,) with n > 0: whether the answer's token is the most probable one after all right tokens before it.
    """
    wrong = np.flatnonzero(~greedy)
    return 1.0 - (int(wrong[-1]) + 1) / len(greedy) if wrong.size else 1.0


def answer_length(tokenizer: Any, text: str, answer: str) -> int:
    """Number of tokens that the harness scores of ``" " + answer`` after ``text``.

    Raises:
        ValueError: the text and the answer do not come apart between two tokens; the message says why.
    """
    # The harness moves white space at the end of the context into the continuation.
    before, whole = tokenizer.encode(text.rstrip()), tokenizer.encode(f"{text} {answer}")
    if whole[: len(before)] != before or len(whole) == len(before):
        raise ValueError("the tokens of the input are not the first tokens of input and output together")
    return len(whole) - len(before)


def memorization_rows(
    lume_task: str,
    lume_data_dir: str | None = None,
    lume_split: str = "all",
    lume_reference_results: str | None = None,
    version: Any = None,
    **metadata: Any,
) -> dict[str, Dataset]:
    """Forget and retain rows of one task as documents, with ``continuation`` and ``scored_tokens``.

    Raises:
        DataError: rows, tokenizer or the reference's results are missing or faulty, or the tokenizer does not fit.
    """
    docs = side_rows(lume_task, lume_data_dir, lume_split)
    tokenizer = mia_requests.load_tokenizer(metadata)
    faults = []
    for doc in docs:
        doc["continuation"] = f" {doc['output']}"
        try:
            doc["scored_tokens"] = answer_length(tokenizer, doc["input"], doc["output"])
        except ValueError as error:
            faults.append(f"  row {quote(doc['id'])}: {error}")
    if faults:
        head = f"lume_memorization cannot score {len(faults)} rows of {lume_task} exactly with this tokenizer:"
        raise DataError("\n".join([head, *first_few(faults, 10)]))
    task = f"lume_memorization_{lume_task.lower()}"
    docs = reference.with_reference(docs, lume_reference_results, task, version, lambda doc: f"{doc['side']}_loss")
    return {"test": Dataset.from_list(docs)}


def memorization_result(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Scores of one row, None for those of the other side.

    ``loss`` is the mean token loss in nats, ``probability_geometric`` its ``exp(-loss)``. Where the backend gives
    per-token values (``lume-hf``) also ``exact_memorization``, the share of tokens that are the most probable ones
    (Tirumala et al. 2022, arXiv 2205.10770), ``extraction_strength``, and ``probability``, the mean token probability.

    Raises:
        DataError: the model scored another number of tokens than its tokenizer was thought to make.
    """
    score, count = results[0][0], doc["scored_tokens"]
    loss = -score / count
    values = {"loss": loss, "probability_geometric": math.exp(-loss)}
    if isinstance(score, TokenScores):
        if len(score.logprobs) != count:
            raise DataError(
                f"lume_memorization: the model scored {len(score.logprobs)} tokens of row {quote(doc['id'])}, the "
                f"tokenizer makes {count}. Name the model's own tokenizer in the metadata."
            )
        values["exact_memorization"] = float(score.greedy.mean())
        values["extraction_strength"] = extraction_strength(score.greedy)
        values["probability"] = float(np.exp(score.logprobs.astype(np.float64)).mean())
    result: dict[str, Any] = {f"{side}_{name}": None for side in SIDES for name in values}
    result |= {f"{doc['side']}_{name}": value for name, value in values.items()}
    if "reference" in doc:
        result["forget_quality"] = (loss, doc["reference"]) if doc["side"] == "forget" else None
    return result
