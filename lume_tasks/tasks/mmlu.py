"""The group ``lume_mmlu``: MMLU 0-shot, one task for each subject, built from rows instead of YAML files."""

import os
from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from lm_eval.api.group import Group
from lm_eval.config.group import AggMetricConfig

from lume_tasks.data import locate
from lume_tasks.errors import DataError
from lume_tasks.tasks.base import RowsTask, check_metadata

SUBJECT_PREFIX = "lume_mmlu_"


class SubjectTask(RowsTask):
    """One MMLU subject, 0-shot: the stock template, on rows that are already loaded."""

    def __init__(self, subject: str, rows: list[dict[str, Any]], version: Any) -> None:
        """Build from the subject's rows (``question``, ``choices``, ``answer``)."""
        super().__init__(
            {
                "task": SUBJECT_PREFIX + subject,
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

    Equal to the stock ``mmlu`` with ``--num_fewshot 0`` on the same questions. The subjects' names differ from the
    stock ones, so both can run together and the stock tags do not change.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Load the questions that metadata asks for, and build a task for each subject."""
        metadata = config.get("metadata") or {}
        check_metadata(metadata)
        limit = metadata.get("lume_mmlu_limit")
        if limit is not None and (type(limit) is not int or limit < 1):
            raise DataError(f"metadata lume_mmlu_limit has to be a whole number of questions above 0, not {limit!r}")
        subjects = metadata.get("lume_mmlu_subjects")  # a list, or names with commas; None: all
        if isinstance(subjects, str):
            subjects = [name.strip() for name in subjects.split(",")]
        source = mmlu_of(metadata)
        super().__init__(
            name=config["task"],
            aggregate_metric_list=[AggMetricConfig(metric="acc", weight_by_size=True)],
            metadata={"version": metadata.get("version")},
        )
        for subject, rows in locate.load_mmlu(source, subjects).items():
            self.add(SubjectTask(subject, rows[:limit], metadata.get("version")))


def mmlu_of(metadata: Mapping[str, Any]) -> str:
    """Return the folder of MMLU, or its name on the hub; ``DataError`` if data in memory has none."""
    path, data = metadata.get("lume_mmlu_path"), metadata.get("lume_data")
    if data is not None:
        if not (path or data.mmlu):
            raise DataError("lume_mmlu: the data in memory names no MMLU; set mmlu to a folder, or to 'cais/mmlu'")
        return locate.mmlu_source(path or data.mmlu)
    named = metadata.get("lume_data_dir") or os.environ.get(locate.DATA_VARIABLE)
    directory = locate.data_dir(named) if named else None  # LUME is not downloaded for MMLU alone
    return locate.mmlu_source(path, directory)
