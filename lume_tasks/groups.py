"""The two entries of the ``lume`` group that are computed rather than written as YAML: MMLU and the final score.

Both are subclasses of the harness's ``Group``, which a YAML reaches through ``class``: that way their numbers stand in
the harness's own tables and results file. The harness calls ``aggregate`` with the metrics of every task it ran.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.group import AggMetricConfig

from lume_tasks import data, metrics
from lume_tasks.harness import SIDES, LumeTask

_log = logging.getLogger("lume_tasks")

GENERATION_TASKS = ("lume_task1", "lume_task2", "lume_task3")
_SUBJECT_PREFIX = "lume_mmlu_"


class SubjectTask(ConfigurableTask):  # type: ignore[misc]
    """One MMLU subject, 0-shot: the stock template, on rows that are already loaded."""

    download = LumeTask.download

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


class LumeMmlu(Group):  # type: ignore[misc]
    """MMLU, 0-shot, micro-averaged over the questions of all subjects that the data has.

    Equal to the stock ``mmlu`` with ``--num_fewshot 0``, from the same questions; the subjects have names of their own,
    so that both can be run together and the stock tags stay as they are.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        """Load the questions and build a task a subject.

        Raises:
            DataError: the MMLU folder is missing or faulty.
        """
        metadata = config.get("metadata") or {}
        super().__init__(
            name=config["task"],
            aggregate_metric_list=[AggMetricConfig(metric="acc", weight_by_size=True)],
            metadata={"version": metadata.get("version")},
        )
        for subject, rows in data.load_mmlu(_mmlu_source(metadata)).items():
            self.add(SubjectTask(subject, rows, metadata.get("version")))


def _mmlu_source(metadata: Mapping[str, Any]) -> str:
    """Where the questions come from; the data directory takes part only where it was named (never a download)."""
    import os

    named = metadata.get("lume_data_dir") or os.environ.get("LUME_DATA_DIR")
    return data.mmlu_source(metadata.get("lume_mmlu_path"), data.data_dir(named) if named else None)


class LumeScore(Group):  # type: ignore[misc]
    """Task aggregate, MIA score, MMLU and final score out of the other tasks' metrics; a missing part is named."""

    def __init__(self, config: dict[str, Any]) -> None:
        """A group without members: it reads the metrics of whatever else ran."""
        metadata = config.get("metadata") or {}
        super().__init__(name=config["task"], metadata={"version": metadata.get("version")})

    @property
    def has_aggregation(self) -> bool:
        """True, so that the harness prints the scores in its table of groups too."""
        return True

    def aggregate(self, task_metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The scores as ``{"<name>,none": value}``; those that cannot be computed are absent and ``missing`` says why.

        Args:
            task_metrics: task name to ``{"<metric>,<filter>": value, "sample_len": documents, ...}``.
        """
        scores, missing = lume_scores(task_metrics)
        if missing:
            _log.warning("lume_score: no final score, because these are missing: %s", ", ".join(missing))
            scores["missing"] = ", ".join(missing)
        return {"alias": self.name, "name": self.name} | {f"{name},none": score for name, score in scores.items()}


def lume_scores(task_metrics: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """Scores across tasks, and the names of the parts that are missing or have no value.

    Returns:
        (scores, missing). Scores: ``{side}_{regurgitation,knowledge}`` (means over the rows of all tasks that ran),
        ``task_aggregate``, ``mia_score``, ``mmlu``, ``final_score``, each only where all that it needs is there.
    """
    scores: dict[str, Any] = {}
    missing: list[str] = []

    def part(task: str, metric: str) -> Any:
        value = task_metrics.get(task, {}).get(f"{metric},none")
        if value is None or math.isnan(value):
            missing.append(task if value is None else f"{task}.{metric} (no value)")
            return None
        return value

    numbers: dict[str, list[Any]] = {side: [] for side in SIDES}
    for side in SIDES:
        for kind in ("regurgitation", "knowledge"):
            values = [part(task, f"{side}_{kind}") for task in GENERATION_TASKS]
            numbers[side] += values
            present = [value for value in values if value is not None]
            if present:
                scores[f"{side}_{kind}"] = float(metrics.pooled_mean(present))
    if None not in numbers["forget"] + numbers["retain"]:
        scores["task_aggregate"] = metrics.task_aggregate(numbers["forget"], numbers["retain"])
    if (mia := part("lume_mia", "mia_score")) is not None:
        scores["mia_score"] = mia
    if (mmlu := _mmlu_accuracy(task_metrics)) is not None:
        scores["mmlu"] = mmlu
    else:
        missing.append("lume_mmlu")
    if not missing:
        scores["final_score"] = metrics.final_score(scores["task_aggregate"], scores["mia_score"], scores["mmlu"])
    return scores, list(dict.fromkeys(missing))


def _mmlu_accuracy(task_metrics: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Micro average from the subjects themselves: the group ``lume_mmlu`` may come later in the harness's order."""
    subjects = [values for name, values in task_metrics.items() if name.startswith(_SUBJECT_PREFIX)]
    subjects = [values for values in subjects if "acc,none" in values]
    count = sum(values["sample_len"] for values in subjects)
    return math.fsum(values["acc,none"] * values["sample_len"] for values in subjects) / count if count else None
