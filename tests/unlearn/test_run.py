"""Whole runs: what they write, that a seed repeats them, and what they refuse."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor

from lume_tasks.data.files import read_rows
from lume_tasks.data.rows import Row
from lume_tasks.errors import DataError
from lume_unlearn.config import RunConfig
from lume_unlearn.errors import ConfigError
from lume_unlearn.training import run as run_module
from lume_unlearn.training.memory import default_max_tokens
from lume_unlearn.training.run import run, unlearn
from tests.conftest import write_rows

pytestmark = pytest.mark.usefixtures("little_to_collect")


@pytest.fixture
def config(model_dir: Path, data_dir: Path, tmp_path: Path) -> RunConfig:
    """Six optimiser steps over twelve pairs, NPO with LoRA."""
    return RunConfig(
        model=str(model_dir),
        output=str(tmp_path / "out"),
        method="npo",
        data=str(data_dir),
        epochs=2,
        batch_size=4,
        micro_batch_size=2,
        learning_rate=3e-3,
        lora_rank=4,
    )


def weights(folder: Path) -> dict[str, Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "unlearning.json").read_text())  # type: ignore[no-any-return]


def steps(folder: Path) -> list[dict[str, Any]]:
    return [entry for entry in record(folder)["history"] if "loss" in entry]


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(value.equal(theirs[name]) for name, value in ours.items())


def test_a_full_model_keeps_its_configuration(config: RunConfig) -> None:
    output = run(replace(config, tuning="full", epochs=1))
    before, after = (json.loads((Path(path) / "config.json").read_text()) for path in (config.model, output))
    assert after == before  # cache, attention and special tokens as they were
    assert set(weights(output)) == set(weights(Path(config.model)))
    assert {value.dtype for value in weights(output).values()} == {torch.float32}


def test_the_default_of_max_tokens_goes_by_device_and_memory() -> None:
    for gpu, expected in ((False, [2048, 2048, 1024, 512]), (True, [8192, 4096, 1024, 512])):
        for free, tokens in zip((80, 18, 6, 1), expected, strict=True):
            memory = mock.Mock(available=free * 2**30)
            with (
                mock.patch.object(torch.cuda, "is_available", return_value=gpu),
                mock.patch.object(torch.cuda, "mem_get_info", return_value=(free * 2**30, 0)),
                mock.patch.object(psutil, "virtual_memory", return_value=memory),
            ):
                assert default_max_tokens() == tokens


def test_a_resumed_run_keeps_max_tokens(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "default_max_tokens", lambda: 640)
    output = run(replace(config, save_steps=5))
    assert record(output)["config"]["max_tokens"] == 640
    (output / "unlearning.json").unlink()  # broken off after the fifth of six steps
    monkeypatch.setattr(run_module, "default_max_tokens", lambda: 1280)
    assert record(run(replace(config, resume=True, save_steps=5)))["config"]["max_tokens"] == 640
    assert record(run(replace(config, output=str(tmp_path / "other"))))["config"]["max_tokens"] == 1280


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_seed_decides_everything(tuning: str, config: RunConfig, tmp_path: Path) -> None:
    config = replace(config, tuning=tuning, lora_dropout=0.2)
    first = run(config)
    torch.manual_seed(99)
    again = run(replace(config, output=str(tmp_path / "again")))
    other = run(replace(config, output=str(tmp_path / "other"), seed=1))
    assert_same_weights(first, again)
    assert [entry["loss"] for entry in steps(first)] == [entry["loss"] for entry in steps(again)]
    assert steps(first)[0]["retain_loss"] != steps(other)[0]["retain_loss"]  # other rows in the first step


def test_an_output_in_use_is_refused_before_anything_is_loaded(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "note").write_text("mine")
    with pytest.raises(ConfigError, match=r"--output .*out: it exists and is not empty"):
        run(replace(config, model="no/such/model"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["note"]


def test_the_semeval_function(config: RunConfig, tmp_path: Path) -> None:
    for side in ("forget", "retain"):
        rows = read_rows(Path(str(config.data)) / f"{side}.jsonl")
        (tmp_path / side).mkdir()
        Dataset.from_list([vars(row) for row in rows]).to_parquet(tmp_path / side / f"{side}.parquet")
    options: dict[str, Any] = {"epochs": 2, "batch_size": 4, "learning_rate": 3e-3}
    unlearn(config.model, str(tmp_path / "theirs"), str(tmp_path / "forget"), str(tmp_path / "retain"), **options)
    plain = {name: getattr(config, name) for name in ("model", "output", "data", *options)}
    ours = run(RunConfig(**plain, method="gd", tuning="full", micro_batch_size=8))
    assert_same_weights(ours, tmp_path / "theirs")


def test_all_faults_of_the_rows_are_listed_at_once(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "forget.jsonl").write_text('{"id": "a-sc1"}\n{broken\n')
    (tmp_path / "retain.jsonl").write_text('{"id": "b-xx1", "input": "i", "output": "", "task": "Task1"}\n')
    for named in ({"data": str(tmp_path)}, {"data": None, "forget": str(tmp_path), "retain": str(tmp_path)}):
        with pytest.raises(DataError) as caught:
            run(replace(config, **named))
        for fault in ("forget.jsonl:1", "forget.jsonl:2", "retain.jsonl:1", "output", "b-xx1"):
            assert fault in str(caught.value)


def test_a_row_longer_than_the_context_is_refused_or_cut(config: RunConfig, tmp_path: Path) -> None:
    rows = read_rows(Path(str(config.data)) / "forget.jsonl")
    write_rows(tmp_path / "forget.jsonl", [*rows, Row("long-sc1", "What?", "word " * 400, "Task1")])
    forget = str(tmp_path / "forget.jsonl")
    config = replace(config, data=None, forget=forget, retain=str(Path(str(config.data)) / "retain.jsonl"))
    with pytest.raises(DataError, match=r"long-sc1: \d+ tokens, but the model takes 512"):
        run(config)
    assert (run(replace(config, max_length=100, epochs=1)) / "adapter_model.safetensors").exists()
