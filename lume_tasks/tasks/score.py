"""The entry ``lume_score`` of the group ``lume``: scores that are computed from the metrics of the other tasks.

It is a ``Group`` of the harness, which calls ``aggregate`` with the metrics of all tasks that it ran.
"""

import math
from collections.abc import Mapping
from typing import Any

from lm_eval.api.group import Group

from lume_tasks.data import locate
from lume_tasks.data.rows import ROW_TASKS
from lume_tasks.errors import log
from lume_tasks.metrics import aggregate, intervals
from lume_tasks.tasks.base import check_metadata, flag_of
from lume_tasks.tasks.generation import MAIN_METRICS
from lume_tasks.tasks.mmlu import SUBJECT_PREFIX

*GENERATION_TASKS, OWN_TASK = ROW_TASKS
"""Rows of ``OWN_TASK`` count for the four means. With them there is no task aggregate, which is for LUME's tasks."""
TaskMetrics = Mapping[str, Mapping[str, Any]]  # task to {"<metric>,<filter>": value, "sample_len": documents, ...}


class LumeScore(Group):
    """Task aggregate, MIA score, MMLU and final score, and what is missing for them."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Build a group without members: it reads the metrics of all other tasks."""
        metadata = config.get("metadata") or {}
        check_metadata(metadata)
        super().__init__(name=config["task"], metadata={"version": metadata.get("version")})
        self.partial = flag_of(metadata, "lume_partial", False)

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
            log.warning("lume_score: no final score, because these are missing or partial: %s", scores["missing"])
        return {"alias": self.name, "name": self.name} | {f"{name},none": score for name, score in scores.items()}


def lume_scores(task_metrics: TaskMetrics, partial: bool = False) -> tuple[dict[str, Any], dict[str, str]]:
    """Compute the scores across tasks, and what is missing for the final score.

    With ``partial``, a final score is also computed from a part of the documents, as ``partial_final_score``.

    Returns:
        (scores, missing). Scores: ``{side}_{regurgitation,knowledge}`` (means over the rows of all tasks that ran),
        ``task_aggregate``, ``mia_score``, ``mmlu``, ``final_score``, each only if all its inputs are there; and the
        ends of their intervals. Missing: task to what it lacks (values or documents), "" if it did not run.
    """
    parts: dict[str, intervals.Part] = {}  # score, lower and upper end; NaN for ends that are unknown
    missing, limited = _missing(task_metrics)
    for name in MAIN_METRICS:
        present = [mean for mean in _of_tasks(task_metrics, name) if not math.isnan(mean)]
        lower = _of_tasks(task_metrics, f"{name}_low")
        ends = intervals.pooled([bound.sums for bound in lower]).ends() if lower else (math.nan, math.nan)
        if present:
            parts[name] = float(aggregate.pooled_mean(present)), *ends
    tasks = _task_aggregate(task_metrics)
    if tasks:
        parts["task_aggregate"] = tasks
    attack = task_metrics.get("lume_mia", {})
    auc = _part(attack, "loss_auc")
    if not math.isnan(attack.get("mia_score,none", math.nan)):
        parts["mia_score"] = attack["mia_score,none"], *intervals.mia_score(*auc[1:])
    subjects = _mmlu_subjects(task_metrics)
    if subjects:
        questions = sum(size for _, size in subjects)
        right = math.fsum(accuracy * size for accuracy, size in subjects)
        parts["mmlu"] = right / questions, *intervals.accuracy(right, questions)
    if tasks and not missing and (partial or not limited):
        score = aggregate.final_score(tasks[0], parts["mia_score"][0], parts["mmlu"][0])
        name = "partial_final_score" if limited else "final_score"
        parts[name] = score, *intervals.final_score(tasks, auc, parts["mmlu"])
    scores = {
        f"{name}{end}": value
        for name, part in parts.items()
        for end, value in zip(("", "_low", "_high"), part, strict=True)
        if not (end and math.isnan(value))
    }
    return scores, limited | missing


def _task_aggregate(task_metrics: TaskMetrics) -> intervals.Part | None:
    """Return the task aggregate and its ends; None if one of the twelve numbers is missing or `OWN_TASK` ran."""
    found = [task_metrics.get(task, {}) for task in GENERATION_TASKS]
    forget = [[_part(metrics, f"forget_{kind}") for kind in ("regurgitation", "knowledge")] for metrics in found]
    retain = [[_part(metrics, f"retain_{kind}") for kind in ("regurgitation", "knowledge")] for metrics in found]
    scores = [[part[0] for task in side for part in task] for side in (forget, retain)]
    if OWN_TASK in task_metrics or any(map(math.isnan, scores[0] + scores[1])):
        return None
    return aggregate.task_aggregate(*scores), *intervals.task_aggregate(forget, retain)


def _part(metrics: Mapping[str, Any], name: str) -> intervals.Part:
    """Return a metric of a task and both ends of its interval, NaN for what is missing."""
    score, low, high = (metrics.get(f"{name}{end},none", math.nan) for end in ("", "_low", "_high"))
    return score, low, high


def _of_tasks(task_metrics: TaskMetrics, metric: str) -> list[Any]:
    found = (task_metrics.get(task, {}).get(f"{metric},none") for task in ROW_TASKS)
    return [value for value in found if value is not None]


def _missing(task_metrics: TaskMetrics) -> tuple[dict[str, str], dict[str, str]]:
    """Return the tasks that lack a value with the reason, and the partly scored tasks with the part ("5 of 10")."""
    missing: dict[str, str] = {}
    limited: dict[str, str] = {}
    for task in (*GENERATION_TASKS, "lume_mia"):
        metrics = task_metrics.get(task, {})
        names = ("mia_score",) if task == "lume_mia" else MAIN_METRICS
        values: dict[str, Any] = {name: metrics.get(f"{name},none") for name in names}
        if None in values.values():
            missing[task] = ""
            continue
        nan = [name for name, value in values.items() if math.isnan(value)]
        if nan:
            missing[task] = f"no value for {', '.join(nan)}"
        total = getattr(values[names[0]], "documents", None)
        if total is not None and metrics["sample_len"] < total:
            limited[task] = f"{metrics['sample_len']:,} of {total:,}"
    if OWN_TASK in task_metrics and any(task in task_metrics for task in GENERATION_TASKS):
        missing[OWN_TASK] = "its rows are no part of LUME; run the others without it"
    subjects = _mmlu_subjects(task_metrics)
    questions = sum(count for _, count in subjects)
    if not subjects:
        missing["lume_mmlu"] = ""
    elif questions != locate.MMLU_QUESTIONS:
        limited["lume_mmlu"] = f"{questions:,} of {locate.MMLU_QUESTIONS:,}"
    return missing, limited


def _mmlu_subjects(task_metrics: TaskMetrics) -> list[tuple[float, int]]:
    """Return (accuracy, number of questions) of each subject; the harness may not have aggregated ``lume_mmlu`` yet."""
    subjects = [values for name, values in task_metrics.items() if name.startswith(SUBJECT_PREFIX)]
    return [(values["acc,none"], values["sample_len"]) for values in subjects if "acc,none" in values]
