"""Which tasks a data directory has data for, and the scores taken from results."""

import math
import shutil
from pathlib import Path

import pytest

from lume_tasks.data.locate import MMLU_VARIABLE
from lume_unlearn.evaluation import harness
from lume_unlearn.evaluation.harness import tasks_for
from tests.conftest import make_rows, write_rows

ROWS = ["lume_task1", "lume_task2", "lume_task3"]


def test_tasks_are_those_that_the_data_has(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MMLU_VARIABLE, raising=False)
    assert tasks_for(data_dir) == [*ROWS, "lume_mia", "lume_mmlu", "lume_score"]
    for side in ("forget", "retain"):
        shutil.copy(data_dir / f"{side}.jsonl", tmp_path)
        write_rows(tmp_path / "train" / f"{side}.jsonl", [row for row in make_rows(side) if row.task == "Task2"])
    assert tasks_for(tmp_path) == [*ROWS, "lume_score"]
    assert tasks_for(tmp_path, "train") == ["lume_task2", "lume_score"]
    monkeypatch.setenv(MMLU_VARIABLE, str(data_dir / "mmlu"))
    assert tasks_for(tmp_path, "train") == ["lume_task2", "lume_mmlu", "lume_score"]


def test_mean_of_the_task_scores_turns_forget_scores_around_and_leaves_out_missing_ones() -> None:
    task1 = {"forget_knowledge,none": 0.25, "retain_knowledge,none": 0.5, "forget_regurgitation,none": math.nan}
    results = {"results": {"lume_task1": task1, "lume_score": {"retain_knowledge,none": 0.5}}}
    assert harness.headline(results) == {"retain knowledge": 0.5, harness.MEAN: 0.625}
    assert harness.headline({"results": {}}) == {}
