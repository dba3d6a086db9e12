"""Whole runs: what they write, that a seed repeats them, what they refuse, and options that save memory."""

import json
import shutil
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
from lume_tasks.errors import DataError
from lume_unlearn.config import RunConfig
from lume_unlearn.errors import ConfigError
from lume_unlearn.training import run as run_module
from lume_unlearn.training.optimizer import optimizer_class
from lume_unlearn.training.run import default_max_tokens, run, unlearn

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


def full(config: RunConfig, name: str, **options: Any) -> RunConfig:
    """Six optimiser steps of gradient difference on all weights, without dropout."""
    files = {"model": config.model, "output": str(Path(config.output).parent / name), "data": config.data}
    defaults = {"method": "gd", "tuning": "full", "epochs": 2, "batch_size": 4, "learning_rate": 1e-3}
    return RunConfig(**(files | defaults | options))  # type: ignore[arg-type]


@pytest.fixture
def torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchao's optimisers without compilation, which takes half a minute on a CPU."""
    pytest.importorskip("torchao.optim")
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


@pytest.mark.usefixtures("torchao")
def test_a_small_step_of_bfloat16_weights_survives_in_expectation() -> None:
    torch.manual_seed(0)
    start = (0.02 * torch.randn(2**17)).bfloat16()

    def mean_step(optimizer: Any, options: dict[str, Any]) -> float:
        weight = torch.nn.Parameter(start.clone())
        weight.grad = torch.ones_like(start)
        optimizer([weight], weight_decay=0.0, **options).step()  # Adam's first step is the learning rate
        return (weight.detach().double() - start.double()).mean().item()

    chosen = optimizer_class("adamw", 1e-5, bfloat16_weights=True)
    assert chosen is not None
    # A weight's rounding error is 3e-5, so that of the mean over all is 1e-7.
    assert mean_step(*chosen) == pytest.approx(-1e-5, abs=6e-7)
    assert abs(mean_step(torch.optim.AdamW, {"lr": 1e-5}) + 1e-5) > 3e-6


@pytest.mark.usefixtures("torchao")
@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"weights": "bfloat16"}, 0.03),
        ({"optimizer": "adamw8bit"}, 0.15),
        ({"weights": "bfloat16", "optimizer": "adamw8bit", "precision": "bfloat16"}, 0.15),
    ],
)
def test_training_and_resuming_follow_float32(
    options: dict[str, Any], tolerance: float, config: RunConfig, tmp_path: Path
) -> None:
    lowmem = full(config, "other", save_steps=3, **options)
    plain, other = run(full(config, "plain")), run(lowmem)
    assert abs(steps(plain)[-1]["loss"] - steps(plain)[0]["loss"]) > 0.3
    for expected, found in zip(steps(plain), steps(other), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], abs=tolerance)
    assert {weight.dtype for weight in weights(other).values()} == {getattr(torch, lowmem.weights)}
    shutil.copytree(other / "checkpoint-3", tmp_path / "again" / "checkpoint-3")
    again = run(replace(lowmem, output=str(tmp_path / "again"), resume=True))
    assert steps(again) == steps(other)
    assert_same_weights(again, other)


@pytest.mark.parametrize(
    ("kind", "tuning"), [("cpu", "full"), ("bfloat16", "full"), ("int8", "full"), ("cpu", "last:1")]
)
def test_kinds_of_reference_copies(kind: str, tuning: str, config: RunConfig) -> None:
    if kind == "int8":
        pytest.importorskip("torchao")
    plain = run(full(config, "plain", method="kl", tuning=tuning))
    small = run(full(config, "small", method="kl", tuning=tuning, reference_copy=kind))
    found, expected = ([entry["retain_loss"] for entry in steps(output)] for output in (small, plain))
    assert expected[0] == pytest.approx(0.0, abs=1e-7)
    if kind == "cpu":
        assert found == expected
        assert_same_weights(plain, small)
    else:
        assert 1e-6 < found[0] < 1e-3  # rounding of the copy
        assert found[-1] == pytest.approx(expected[-1], abs=2e-3)
    assert {weight.dtype for weight in weights(small).values()} == {torch.float32}


@pytest.mark.parametrize(("count", "loss_on"), [(0, "answer"), (2, "answer"), (3, "text")])
def test_a_run_says_how_many_member_documents_it_unlearns(
    count: int, loss_on: Any, config: RunConfig, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(data_dir, tmp_path / "data")
    rows = [row for row in read_rows(data / "forget.jsonl") if row.kind == "sc"]
    documents = [f"{row.input} {row.output}" for row in rows[:count]] + ["one", "two", "three"][count:]
    lines = (json.dumps({"document": text}) + "\n" for text in documents)
    (data / "mia_data" / "member.jsonl").write_text("".join(lines))
    run(replace(config, data=str(data), epochs=1, loss_on=loss_on))
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "member documents" in line)
    assert line.startswith(f"{count} of 3 member documents are among the forget rows")
    assert ("asks for documents that this run does not unlearn" in line) == (count < 3)
    assert ("hardly moves the attack" in line) == (count > 0 and loss_on == "answer")
