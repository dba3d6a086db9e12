"""Which tasks a data directory has data for."""

import shutil
from pathlib import Path

import pytest

from lume_tasks.data.locate import MMLU_VARIABLE
from lume_unlearn.evaluation.harness import tasks_for
from tests.conftest import make_rows, write_rows

ROWS = ["lume_task1", "lume_task2", "lume_task3"]


def test_tasks_are_those_that_the_data_has(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MMLU_VARIABLE, raising=False)
    assert tasks_for(data_dir) == [*ROWS, "lume_mia", "lume_mmlu", "lume_score"]
    folder = tmp_path / "own"
    shutil.copytree(data_dir, folder)
    shutil.rmtree(folder / "mia_data")
    shutil.rmtree(folder / "mmlu")
    for side in ("forget", "retain"):
        write_rows(folder / "train" / f"{side}.jsonl", [row for row in make_rows(side) if row.task == "Task2"])
    assert tasks_for(folder) == [*ROWS, "lume_score"]
    assert tasks_for(folder, "train") == ["lume_task2", "lume_score"]
    monkeypatch.setenv(MMLU_VARIABLE, str(data_dir / "mmlu"))
    assert tasks_for(folder, "train") == ["lume_task2", "lume_mmlu", "lume_score"]
