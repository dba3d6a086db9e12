"""The entry ``lume_score`` of the group ``lume``: scores that are computed from the metrics of the other tasks.

It is a ``Group`` of the harness, which calls ``aggregate`` with the metrics of all tasks that it ran.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any

from lm_eval.api.group import Group

from lume_tasks.data import locate
from lume_tasks.data.rows import SIDES
from lume_tasks.errors import DataError
from lume_tasks.metrics import aggregate, bootstrap
from lume_tasks.tasks.base import check_metadata
from lume_tasks.tasks.generation import MAIN_METRICS
from lume_tasks.tasks.mmlu import SUBJECT_PREFIX

_log = logging.getLogger("lume_tasks")

GENERATION_TASKS = ("lume_task1", "lume_task2", "lume_task3")
TaskMetrics = Mapping[str, Mapping[str, Any]]  # task to {"<metric>,<filter>": value, "sample_len": documents, ...}


class LumeScore(Group):
    """Task aggregate, MIA score, MMLU and final score; it names what is missing for them."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Build a group without members: it reads the metrics of all other tasks."""
        metadata = config.get("metadata") or {}
        check_metadata(metadata)
        super().__init__(name=config["task"], metadata={"version": metadata.get("version")})
        self.partial = metadata.get("lume_partial", False)
        if not isinstance(self.partial, bool):
            raise DataError(f"metadata lume_partial has to be true or false, not {self.partial!r}")

    @property
    def has_aggregation(self) -> bool:
        """True: the harness prints the scores in its table of groups too."""
        return True

    def aggregate(self, task_metrics: TaskMetrics) -> dict[str, Any]:
        """Return the scores as ``{"<name>,none": value}``; without a final score, ``missing`` says why."""
        scores, missing = lume_scores(task_metrics, self.partial)
        if missing:
            reasons = [f"{task} ({reason})" if reason else task for task, reason in missing.items()]
            scores["missing"] = "; ".join(reasons)
            _log.warning("lume_score: no final score, because these are missing or partial: %s", scores["missing"])
        return {"alias": self.name, "name": self.name} | {f"{name},none": score for name, score in scores.items()}


def lume_scores(task_metrics: TaskMetrics, partial: bool = False) -> tuple[dict[str, Any], dict[str, str]]:
    """Compute the scores across tasks, and what is missing for the final score.

    ``partial`` also gives the final score of a part of the documents, named ``partial_final_score``.

    Returns:
        (scores, missing). Scores: ``{side}_{regurgitation,knowledge}`` (means over the rows of all tasks that ran),
        ``task_aggregate``, ``mia_score``, ``mmlu``, ``final_score``, each only if all that it needs is there; and the
        ends of their intervals. Missing: task to what it lacks (values, or documents), empty if it did not run.
    """
    needed = [(task, metric) for metric in MAIN_METRICS for task in GENERATION_TASKS] + [("lume_mia", "mia_score")]
    values = {(task, metric): task_metrics.get(task, {}).get(f"{metric},none") for task, metric in needed}
    present = {key: value for key, value in values.items() if value is not None and not math.isnan(value)}
    scores: dict[str, Any] = {}
    for metric in MAIN_METRICS:
        means = [present[task, metric] for task in GENERATION_TASKS if (task, metric) in present]
        if means:
            scores[metric] = float(aggregate.pooled_mean(means))
    forget = [value for (_, metric), value in present.items() if metric.startswith("forget")]
    retain = [value for (_, metric), value in present.items() if metric.startswith("retain")]
    if len(forget + retain) == len(MAIN_METRICS) * len(GENERATION_TASKS):
        scores["task_aggregate"] = aggregate.task_aggregate(forget, retain)
    if ("lume_mia", "mia_score") in present:
        scores["mia_score"] = present["lume_mia", "mia_score"]
    subjects = _mmlu_subjects(task_metrics)
    if subjects:
        right = math.fsum(accuracy * size for accuracy, size in subjects)
        scores["mmlu"] = right / sum(size for _, size in subjects)
    missing = _missing(values, bool(subjects))
    limited = _limited(task_metrics)
    if not missing and (partial or not limited):
        name = "partial_final_score" if limited else "final_score"
        scores[name] = aggregate.final_score(scores["task_aggregate"], scores["mia_score"], scores["mmlu"])
    return scores | score_intervals(task_metrics, scores), limited | missing


def _missing(values: Mapping[tuple[str, str], Any], mmlu: bool) -> dict[str, str]:
    """Return task to the metrics whose value is NaN, and to an empty text if it did not run."""
    nan: dict[str, list[str]] = {}
    for (task, metric), value in values.items():
        if value is None:
            nan.setdefault(task, [])
        elif math.isnan(value):
            nan.setdefault(task, []).append(metric)
    missing = {task: f"no value for {', '.join(metrics)}" if metrics else "" for task, metrics in nan.items()}
    return missing if mmlu else missing | {"lume_mmlu": ""}


def _limited(task_metrics: TaskMetrics) -> dict[str, str]:
    """Return the tasks that were scored on a part of their documents, each with a short "<scored> of <all>"."""
    limited = {}
    for task in (*GENERATION_TASKS, "lume_mia"):
        values = task_metrics.get(task, {})
        metric = "mia_score" if task == "lume_mia" else MAIN_METRICS[0]
        total = getattr(values.get(f"{metric},none"), "documents", None)
        if total is not None and values["sample_len"] < total:
            limited[task] = f"{values['sample_len']:,} of {total:,}"
    subjects = _mmlu_subjects(task_metrics)
    questions = sum(count for _, count in subjects)
    if subjects and questions != locate.MMLU_QUESTIONS:
        limited["lume_mmlu"] = f"{questions:,} of {locate.MMLU_QUESTIONS:,}"
    elif subjects and len(subjects) != len(locate.MMLU_SUBJECTS):
        limited["lume_mmlu"] = f"{len(subjects)} of {len(locate.MMLU_SUBJECTS)} subjects"
    return limited


def score_intervals(task_metrics: TaskMetrics, scores: Mapping[str, Any]) -> dict[str, float]:
    """Compute ``<name>_low`` and ``<name>_high`` of the scores for which the tasks gave enough.

    The documents of each task are resampled apart; the resamples of the tasks are combined one by one.
    """
    intervals: dict[str, tuple[float, float]] = {}
    bounds: dict[str, list[bootstrap.Bound]] = {side: [] for side in SIDES}
    for name in MAIN_METRICS:
        found = [task_metrics.get(task, {}).get(f"{name}_low,none") for task in GENERATION_TASKS]
        parts = [bound for bound in found if isinstance(bound, bootstrap.Bound)]
        if parts:
            intervals[name] = bootstrap.ends(bootstrap.pooled_mean(parts))
        bounds[name.partition("_")[0]] += parts
    complete = all(len(parts) == 2 * len(GENERATION_TASKS) for parts in bounds.values())
    if complete and "task_aggregate" in scores:
        replicates = bootstrap.task_aggregate(bounds["forget"], bounds["retain"])
        intervals["task_aggregate"] = bootstrap.corrected_ends(replicates, scores["task_aggregate"])
    attack = task_metrics.get("lume_mia", {})
    auc, low, high = (attack.get(f"loss_auc{end},none", math.nan) for end in ("", "_low", "_high"))
    if not any(map(math.isnan, (auc, low, high))):
        intervals["mia_score"] = bootstrap.mia_score(low, high)
    subjects = _mmlu_subjects(task_metrics)
    if subjects:
        intervals["mmlu"] = bootstrap.ends(bootstrap.accuracy(subjects))
    if {"task_aggregate", "mia_score", "mmlu"} <= set(intervals):
        tasks, mmlu = ((scores[name], *intervals[name]) for name in ("task_aggregate", "mmlu"))
        final = bootstrap.final_score(tasks, (auc, low, high), mmlu)
        intervals["final_score"] = intervals["partial_final_score"] = final
    ends: dict[str, float] = {}
    for name, (lower, upper) in intervals.items():
        if name in scores:
            ends |= {f"{name}_low": lower, f"{name}_high": upper}
    return ends


def _mmlu_subjects(task_metrics: TaskMetrics) -> list[tuple[float, int]]:
    """Return (accuracy, number of questions) of each subject; the harness may aggregate ``lume_mmlu`` only later."""
    subjects = [values for name, values in task_metrics.items() if name.startswith(SUBJECT_PREFIX)]
    return [(values["acc,none"], values["sample_len"]) for values in subjects if "acc,none" in values]
