"""The two entries of the ``lume`` group that are computed rather than written as YAML: MMLU and the final score.

Both are subclasses of the harness's ``Group``, which a YAML reaches through ``class``: that way their numbers stand in
the harness's own tables and results file. The harness calls ``aggregate`` with the metrics of every task it ran.
"""

import logging
import math
import os
from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from lm_eval.api.group import Group
from lm_eval.config.group import AggMetricConfig

from lume_tasks.data import locate
from lume_tasks.data.rows import SIDES
from lume_tasks.errors import DataError
from lume_tasks.metrics import aggregate, bootstrap
from lume_tasks.tasks import options
from lume_tasks.tasks.generation import MAIN_METRICS, RowsTask

_log = logging.getLogger("lume_tasks")

GENERATION_TASKS = ("lume_task1", "lume_task2", "lume_task3")
_SUBJECT_PREFIX = "lume_mmlu_"


class SubjectTask(RowsTask):
    """One MMLU subject, 0-shot: the stock template, on rows that are already loaded."""

    def __init__(self, subject: str, rows: list[dict[str, Any]], version: Any) -> None:
        """Build from the subject's rows (``question``, ``choices``, ``answer``)."""
        super().__init__(
            config={
                "task": _SUBJECT_PREFIX + subject,
                "task_alias": subject,
                "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
                "test_split": "test",
                "output_type": "multiple_choice",
                "num_fewshot": 0,
                "description": "The following are multiple choice questions (with answers) about "
                f"{subject.replace('_', ' ')}.\n\n",
                "doc_to_text": "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\n"
                "D. {{choices[3]}}\nAnswer:",
                "doc_to_choice": ["A", "B", "C", "D"],
                "doc_to_target": "answer",
                "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
                "metadata": {"version": version},
            }
        )


class LumeMmlu(Group):
    """MMLU, 0-shot, micro-averaged over the questions of all subjects that the data has.

    Equal to the stock ``mmlu`` with ``--num_fewshot 0``, from the same questions; the subjects have names of their own,
    so that both can be run together and the stock tags stay as they are.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        """Load the questions that metadata asks for, and build a task a subject.

        Raises:
            DataError: the MMLU folder is missing or faulty, or an option is wrong.
        """
        metadata = config.get("metadata") or {}
        options.check_metadata(metadata)
        limit = options.mmlu_limit(metadata.get("lume_mmlu_limit"))
        subjects = options.mmlu_subjects(metadata.get("lume_mmlu_subjects"))
        super().__init__(
            name=config["task"],
            aggregate_metric_list=[AggMetricConfig(metric="acc", weight_by_size=True)],
            metadata={"version": metadata.get("version")},
        )
        for subject, rows in locate.load_mmlu(_mmlu_source(metadata), subjects).items():
            self.add(SubjectTask(subject, rows[:limit], metadata.get("version")))


def _mmlu_source(metadata: Mapping[str, Any]) -> str:
    """Where the questions come from; the data directory takes part only where it was named (never a download)."""
    named = metadata.get("lume_data_dir") or os.environ.get(locate.DATA_VARIABLE)
    return locate.mmlu_source(metadata.get("lume_mmlu_path"), locate.data_dir(named) if named else None)


class LumeScore(Group):
    """Task aggregate, MIA score, MMLU and final score out of the other tasks' metrics; a missing part is named."""

    def __init__(self, config: dict[str, Any]) -> None:
        """A group without members: it reads the metrics of whatever else ran.

        Raises:
            DataError: an option is unknown, or ``lume_partial`` is neither true nor false.
        """
        metadata = config.get("metadata") or {}
        options.check_metadata(metadata)
        super().__init__(name=config["task"], metadata={"version": metadata.get("version")})
        self.partial = metadata.get("lume_partial", False)
        if not isinstance(self.partial, bool):
            raise DataError(f"metadata lume_partial has to be true or false, not {self.partial!r}")

    @property
    def has_aggregation(self) -> bool:
        """True, so that the harness prints the scores in its table of groups too."""
        return True

    def aggregate(self, task_metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The scores as ``{"<name>,none": value}``; without a final score ``missing`` says why.

        Args:
            task_metrics: task name to ``{"<metric>,<filter>": value, "sample_len": documents, ...}``.
        """
        scores, missing = lume_scores(task_metrics, self.partial)
        if missing:
            reasons = [task + (f" ({reason})" if reason else "") for task, reason in missing.items()]
            scores["missing"] = "; ".join(reasons)
            _log.warning("lume_score: no final score, because these are missing or partial: %s", scores["missing"])
        return {"alias": self.name, "name": self.name} | {f"{name},none": score for name, score in scores.items()}


def lume_scores(
    task_metrics: Mapping[str, Mapping[str, Any]], partial: bool = False
) -> tuple[dict[str, Any], dict[str, str]]:
    """Scores across tasks, and what is missing for the final score.

    Args:
        task_metrics: as the harness hands them to a group.
        partial: give the final score of a part of the documents too, under the name ``partial_final_score``.

    Returns:
        (scores, missing). Scores: ``{side}_{regurgitation,knowledge}`` (means over the rows of all tasks that ran),
        ``task_aggregate``, ``mia_score``, ``mmlu``, ``final_score``, each only where all that it needs is there; and
        the ends of their intervals.
        Missing: task to what it lacks (values, or documents), an empty text where it was not scored.
    """
    scores: dict[str, Any] = {}
    absent: dict[str, list[str]] = {}

    def part(task: str, metric: str) -> Any:
        value = task_metrics.get(task, {}).get(f"{metric},none")
        if value is None or math.isnan(value):
            absent.setdefault(task, []).extend([] if value is None else [metric])
            return None
        return value

    numbers: dict[str, list[Any]] = {side: [] for side in SIDES}
    for side in SIDES:
        for kind in ("regurgitation", "knowledge"):
            values = [part(task, f"{side}_{kind}") for task in GENERATION_TASKS]
            numbers[side] += values
            present = [value for value in values if value is not None]
            if present:
                scores[f"{side}_{kind}"] = float(aggregate.pooled_mean(present))
    if None not in numbers["forget"] + numbers["retain"]:
        scores["task_aggregate"] = aggregate.task_aggregate(numbers["forget"], numbers["retain"])
    if (mia := part("lume_mia", "mia_score")) is not None:
        scores["mia_score"] = mia
    if (mmlu := _mmlu_accuracy(task_metrics)) is not None:
        scores["mmlu"] = mmlu
    else:
        absent["lume_mmlu"] = []
    limited = _limited(task_metrics)
    if not absent and (partial or not limited):
        name = "partial_final_score" if limited else "final_score"
        scores[name] = aggregate.final_score(scores["task_aggregate"], scores["mia_score"], scores["mmlu"])
    missing = {task: f"no value for {', '.join(names)}" if names else "" for task, names in absent.items()}
    return scores | score_intervals(task_metrics, scores), limited | missing


def _limited(task_metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The tasks that were scored on a part of their documents, each with a short "<scored> of <all>"."""
    limited = {}
    for task, metric in (*((task, MAIN_METRICS[0]) for task in GENERATION_TASKS), ("lume_mia", "mia_score")):
        values = task_metrics.get(task, {})
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


def score_intervals(task_metrics: Mapping[str, Mapping[str, Any]], scores: Mapping[str, Any]) -> dict[str, float]:
    """``<name>_low`` and ``<name>_high`` of the scores, of each where the tasks gave what it needs.

    The resamples of the tasks are combined one by one: the documents of each task are resampled apart.
    """

    def bounds(metric: str) -> list[bootstrap.Bound]:
        found = [task_metrics.get(task, {}).get(f"{metric}_low,none") for task in GENERATION_TASKS]
        return [bound for bound in found if isinstance(bound, bootstrap.Bound)]

    means = {name: bounds(name) for name in MAIN_METRICS}
    found = {name: bootstrap.ends(bootstrap.pooled_mean(parts)) for name, parts in means.items() if parts}
    if all(len(parts) == len(GENERATION_TASKS) for parts in means.values()) and "task_aggregate" in scores:
        sides = ([bound for name in MAIN_METRICS if name.startswith(side) for bound in means[name]] for side in SIDES)
        found["task_aggregate"] = bootstrap.corrected_ends(bootstrap.task_aggregate(*sides), scores["task_aggregate"])
    attack = task_metrics.get("lume_mia", {})
    auc = tuple(attack.get(f"loss_auc{end},none", math.nan) for end in ("", "_low", "_high"))
    if not any(map(math.isnan, auc)):
        found["mia_score"] = bootstrap.mia_score(*auc[1:])
    if subjects := _mmlu_subjects(task_metrics):
        found["mmlu"] = bootstrap.ends(bootstrap.accuracy(subjects))
    if {"task_aggregate", "mia_score", "mmlu"} <= set(found):
        tasks, mmlu = ((scores[name], *found[name]) for name in ("task_aggregate", "mmlu"))
        final = bootstrap.final_score(tasks, auc, mmlu)
        found |= {"final_score": final, "partial_final_score": final}
    kept = {name: both for name, both in found.items() if name in scores}
    return {
        f"{name}_{end}": value for name, both in kept.items() for end, value in zip(bootstrap.ENDS, both, strict=True)
    }


def _mmlu_accuracy(task_metrics: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Micro average from the subjects themselves: the group ``lume_mmlu`` may come later in the harness's order."""
    subjects = _mmlu_subjects(task_metrics)
    count = sum(size for _, size in subjects)
    return math.fsum(accuracy * size for accuracy, size in subjects) / count if count else None


def _mmlu_subjects(task_metrics: Mapping[str, Mapping[str, Any]]) -> list[tuple[float, int]]:
    """(accuracy, number of questions) of each subject that was scored."""
    subjects = [values for name, values in task_metrics.items() if name.startswith(_SUBJECT_PREFIX)]
    return [(values["acc,none"], values["sample_len"]) for values in subjects if "acc,none" in values]
