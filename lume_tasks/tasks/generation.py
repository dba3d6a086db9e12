"""The tasks ``lume_task1`` to ``lume_task3`` and ``lume_rows`` (rows of all other tasks), which score generated text.

Completions (``sc`` rows) and answers (``qa`` rows) are scored separately.
"""

from collections.abc import Sequence
from math import ceil, log2
from typing import Any, ClassVar

from datasets import Dataset

from lume_tasks.data.rows import OWN, SIDES, stem_of, task_name
from lume_tasks.errors import DataError
from lume_tasks.metrics import intervals
from lume_tasks.metrics.aggregate import mean
from lume_tasks.metrics.matching import is_known
from lume_tasks.metrics.text import exact_match, rouge_recall
from lume_tasks.tasks import reference
from lume_tasks.tasks.base import LumeTask, Metrics, load_tokenizer, rows_of, side_rows
from lume_tasks.tasks.known import Matcher

# The four numbers of a task that the protocol counts; these have intervals.
MAIN_METRICS = ("forget_regurgitation", "forget_knowledge", "retain_regurgitation", "retain_knowledge")
ROUGE1_METRICS = ("forget_rouge1", "retain_rouge1")
INTERVAL_METRICS = tuple(f"{name}_{end}" for name in MAIN_METRICS for end in intervals.ENDS)


class GenerationTask(LumeTask):
    """Task 1, 2 or 3, or the rows of all other tasks."""

    metrics: ClassVar[Metrics] = {
        **{name: (mean, name.startswith("retain")) for name in MAIN_METRICS + ROUGE1_METRICS},
        **{name: (getattr(intervals, name.rpartition("_")[2]), name.startswith("retain")) for name in INTERVAL_METRICS},
        # Only with metadata lume_reference_results:
        "forget_quality": (reference.forget_quality, True),
        **{f"distance_{name}": (reference.distance, False) for name in MAIN_METRICS},
    }

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> Any:
        """Return the request, with the row's own limit of new tokens if it has one."""
        request = super().construct_requests(doc, ctx, **kwargs)
        if "most" in doc:
            prompt, options = request.arguments
            request.arguments = prompt, options | {"max_gen_toks": min(doc["most"], options["max_gen_toks"])}
        return request


class OwnRowsTask(GenerationTask):
    """The rows of all other tasks, also scored with `is_known`, as in a verdict."""

    metrics: ClassVar[Metrics] = {
        **GenerationTask.metrics,
        **{f"{side}_known": (mean, side == "retain") for side in SIDES},
    }


def task_rows(lume_task: str, **metadata: Any) -> dict[str, Dataset]:
    """Return the rows of one task as documents, with the reference model's scores if metadata names its results.

    With metadata ``lume_short_answers``, each document has ``most``, its limit of new tokens (see `most_tokens`).
    """
    docs = side_rows(lume_task, metadata)
    if metadata.get("lume_short_answers"):
        if metadata.get("lume_gen_kwargs") is not True:
            raise DataError("metadata lume_short_answers: the scores are not LUME's then; add lume_gen_kwargs: true")
        tokenizer = load_tokenizer(metadata)
        for doc in docs:
            doc["most"] = most_tokens(len(tokenizer.encode(doc["output"])))
    if lume_task == OWN:
        matcher = Matcher(rows_of(metadata)[0])
        for doc in docs:
            doc["common"] = sorted(matcher.common[doc["id"]])
    reference.add_scores(docs, metadata, task_name(lume_task), main_metric)
    return {"test": Dataset.from_list(docs)}


def most_tokens(answer: int) -> int:
    """Return the limit of new tokens for a right answer of ``answer`` tokens.

    It is ``2 * answer + 16``, rounded up to a power of two: the harness batches rows with the same limit.
    """
    return int(2 ** ceil(log2(2 * answer + 16)))


def main_metric(doc: dict[str, Any]) -> str:
    """Return the metric of ``MAIN_METRICS`` that a row counts for."""
    return f"{doc['side']}_{'regurgitation' if doc['kind'] == 'sc' else 'knowledge'}"


def generation_result(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Score one generation: ROUGE recalls for a completion (``sc``) row, exact match for a question (``qa``) row.

    Intervals get ``(document stem, score or None)``, comparisons get ``(score, reference score)``.
    """
    side, main, own = doc["side"], main_metric(doc), "common" in doc
    result: dict[str, Any] = dict.fromkeys(MAIN_METRICS + ROUGE1_METRICS + INTERVAL_METRICS)
    if doc["kind"] == "sc":
        recall = rouge_recall(doc["output"], results[0], any_script=own)
        result[main] = recall["rougeL"]
        result[f"{side}_rouge1"] = recall["rouge1"]
    else:
        result[main] = exact_match(doc["output"], results[0])
    if own:
        known = is_known(doc["kind"], doc["output"], results[0], frozenset(doc["common"]))
        result |= {f"{one}_known": float(known) if one == side else None for one in SIDES}
    for name in MAIN_METRICS:
        if name.startswith(side):
            result[f"{name}_low"] = result[f"{name}_high"] = (stem_of(doc["id"]), result[name])
    if "reference" in doc:
        pair = (result[main], doc["reference"])
        result |= {f"distance_{name}": pair if name == main else None for name in MAIN_METRICS}
        result["forget_quality"] = pair if main == "forget_regurgitation" else None
    return result
