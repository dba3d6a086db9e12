"""Documents are recognised by what they say, not by their files."""

from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from lume_tasks.data import published
from lume_tasks.paths import task_dir
from tests.conftest import make_rows, write_rows


def digest(data_dir: Path, task: str, model_dir: Path) -> str:
    metadata = {"lume_data_dir": str(data_dir), "tokenizer": str(model_dir)}
    manager = TaskManager(include_path=str(task_dir()), include_defaults=False, metadata=metadata)
    config: dict[str, Any] = manager.load([task])["tasks"][task].config.metadata
    return str(config[published.DIGEST])


def test_the_digest_knows_every_text_and_no_order(tmp_path, data_dir, model_dir, bos_model_dir) -> None:
    rows = {side: make_rows(side, 12) for side in ("forget", "retain")}
    for name, forget in (("turned", rows["forget"][::-1]), ("fewer", rows["forget"][1:])):
        write_rows(tmp_path / name / "forget.jsonl", forget)
        write_rows(tmp_path / name / "retain.jsonl", rows["retain"])
    first = digest(data_dir, "lume_task1", model_dir)
    assert digest(tmp_path / "turned", "lume_task1", model_dir) == first
    assert digest(tmp_path / "fewer", "lume_task1", model_dir) != first
    assert digest(tmp_path / "fewer", "lume_task2", model_dir) == digest(data_dir, "lume_task2", model_dir)
    assert digest(data_dir, "lume_mia", model_dir) == digest(data_dir, "lume_mia", bos_model_dir)  # of text, not tokens


@pytest.mark.parametrize("split", ["all", "train", "validation", "test"])
def test_the_published_documents_are_recognised(lume_data: Path, lume_models: Path, split: str) -> None:
    metadata = {"lume_data_dir": str(lume_data), "lume_split": split, "tokenizer": str(lume_models / "lume-retain-13m")}
    manager = TaskManager(include_path=str(task_dir()), include_defaults=False, metadata=metadata)
    names = ["lume_task1", "lume_task2", "lume_task3", "lume_pii", "lume_memorization_task3"]
    tasks = manager.load([*names, "lume_mia"])["tasks"]
    assert {published.SPLITS[tasks[name].config.metadata[published.DIGEST]] for name in names} == {split}
    assert tasks["lume_mia"].config.metadata[published.DIGEST] == published.MIA
