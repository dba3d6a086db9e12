"""On the real data and on checkpoints trained on it, where the environment names them."""

import json
from pathlib import Path
from typing import Any

import lm_eval.models
import pytest

from lume_tasks import _startup
from lume_tasks.data.locate import load_mia, load_rows
from lume_tasks.data.rows import Row, completion_texts


def members_among(documents: list[str], rows: list[Row]) -> int:
    return len({document.strip() for document in documents} & completion_texts(rows))


def test_members_are_forget_rows_of_train_alone(lume_data: Path) -> None:
    members, nonmembers = load_mia(lume_data)
    splits = ("all", "train", "validation", "test")
    found = {split: members_among(members, load_rows(lume_data, split)["forget"]) for split in splits}
    assert found == {"all": 150, "train": 150, "validation": 0, "test": 0}
    rows = load_rows(lume_data)
    assert members_among(members, rows["retain"]) == members_among(nonmembers, rows["forget"]) == 0


def test_attack_gives_the_official_number(run: Any, lume_data: Path, checkpoint: Path) -> None:
    official = json.loads((checkpoint.parent.parent / "expected" / "official_validation.json").read_text())
    metadata = {"lume_data_dir": str(lume_data), "tokenizer": str(checkpoint)}
    options = {"model_args": {"pretrained": str(checkpoint), "dtype": "float32"}, "device": "cpu", "batch_size": 8}
    results = run("hf", "lume_mia", metadata=metadata, **options)["results"]["lume_mia"]
    assert results["loss_auc,none"] == pytest.approx(official[checkpoint.name]["mia_loss_acc"], abs=1e-9)
    assert results["sample_len"] == 300


def assert_official_numbers(
    run: Any, lume_data: Path, checkpoint: Path, backend: str, numbers: tuple[int, ...]
) -> None:
    official = json.loads((checkpoint.parent.parent / "expected" / "official_validation.json").read_text())
    options = {"model_args": {"pretrained": str(checkpoint), "dtype": "float32"}, "device": "cpu"}
    metadata = {"lume_data_dir": str(lume_data), "lume_split": "validation"}
    tasks = [f"lume_task{number}" for number in numbers]
    results = run(backend, *tasks, metadata=metadata, batch_size=64, **options)["results"]
    for side in ("forget", "retain"):
        for kind in ("regurgitation", "knowledge"):
            of_tasks = official[checkpoint.name][f"{side}-set"]
            wanted = [of_tasks[f"Task{number}"][f"{kind}-score"] for number in numbers]
            assert [results[task][f"{side}_{kind},none"] for task in tasks] == pytest.approx(wanted, abs=1e-12)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("numbers", [(1,), pytest.param((2,), marks=pytest.mark.slow)])
def test_lume_hf_gives_the_official_numbers(
    numbers: tuple[int, ...], run: Any, lume_data: Path, checkpoint: Path
) -> None:
    _startup.patch(lm_eval.models)
    assert_official_numbers(run, lume_data, checkpoint, "lume-hf", numbers)
