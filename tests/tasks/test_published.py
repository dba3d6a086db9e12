"""Documents are recognised by what they say, not by their files."""

from pathlib import Path
from typing import Any

import pytest

from lume_tasks.data import published
from tests.conftest import make_rows, write_rows


def test_the_digest_knows_every_text_and_no_order(manager, tmp_path, bos_model_dir) -> None:
    def digest(task: str, folder: str | None = None, **metadata: str) -> Any:
        metadata |= {"lume_data_dir": str(tmp_path / folder)} if folder else {}
        return manager(metadata).load([task])["tasks"][task].config.metadata[published.DIGEST]

    rows = {side: make_rows(side, 12) for side in ("forget", "retain")}
    for name, forget in (("turned", rows["forget"][::-1]), ("fewer", rows["forget"][1:])):
        write_rows(tmp_path / name / "forget.jsonl", forget)
        write_rows(tmp_path / name / "retain.jsonl", rows["retain"])
    assert digest("lume_task1", "turned") == digest("lume_task1") != digest("lume_task1", "fewer")
    assert digest("lume_task2", "fewer") == digest("lume_task2")
    assert digest("lume_mia") == digest("lume_mia", tokenizer=str(bos_model_dir))  # of text, not tokens


@pytest.mark.parametrize("split", ["all", "train", "validation", "test"])
def test_the_published_documents_are_recognised(manager, lume_data: Path, lume_models: Path, split: str) -> None:
    metadata = {"lume_data_dir": str(lume_data), "lume_split": split, "tokenizer": str(lume_models / "lume-retain-13m")}
    names = ["lume_task1", "lume_task2", "lume_task3", "lume_pii", "lume_memorization_task3"]
    tasks = manager(metadata).load([*names, "lume_mia"])["tasks"]
    assert {published.SPLITS[tasks[name].config.metadata[published.DIGEST]] for name in names} == {split}
    assert tasks["lume_mia"].config.metadata[published.DIGEST] == published.MIA
