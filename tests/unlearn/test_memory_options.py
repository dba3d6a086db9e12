"""Options that save memory train as float32 does, up to their rounding."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lume_unlearn.config import RunConfig
from lume_unlearn.training.optimizer import optimizer_class
from lume_unlearn.training.run import run

Make = Callable[..., RunConfig]

pytestmark = pytest.mark.usefixtures("little_to_collect")


@pytest.fixture
def make(model_dir: Path, data_dir: Path, tmp_path: Path) -> Make:
    """(name of the output folder, options) to six optimiser steps of gradient difference on all weights."""

    def make_config(name: str = "out", **options: Any) -> RunConfig:
        files = {"model": str(model_dir), "output": str(tmp_path / name), "data": str(data_dir)}
        defaults = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "lora_dropout": 0.0}
        return RunConfig(**({"method": "gd", "tuning": "full"} | files | defaults | options))  # type: ignore[arg-type]

    return make_config


@pytest.fixture
def torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchao's optimisers without compilation, which takes half a minute on a CPU."""
    pytest.importorskip("torchao.optim")
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


def steps(config: RunConfig) -> list[dict[str, float]]:
    record = json.loads((Path(config.output) / "unlearning.json").read_text())
    return [entry for entry in record["history"] if "loss" in entry]


def weights(config: RunConfig) -> dict[str, Tensor]:
    return load_file(Path(config.output) / "model.safetensors")


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
    options: dict[str, Any], tolerance: float, make: Make, tmp_path: Path
) -> None:
    plain, other = make(), make("other", save_steps=3, **options)
    run(plain)
    run(other)
    assert abs(steps(plain)[-1]["loss"] - steps(plain)[0]["loss"]) > 0.3
    for expected, found in zip(steps(plain), steps(other), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], abs=tolerance)
    assert {weight.dtype for weight in weights(other).values()} == {getattr(torch, other.weights)}
    again = replace(other, output=str(tmp_path / "again"), resume=True)
    shutil.copytree(Path(other.output) / "checkpoint-3", Path(again.output) / "checkpoint-3")
    shutil.copy(Path(other.output) / "checkpoint-3" / "unlearning.json", again.output)
    run(again)
    assert steps(again) == steps(other)
    assert all(weight.equal(weights(other)[name]) for name, weight in weights(again).items())


@pytest.mark.parametrize(
    ("kind", "tuning"), [("cpu", "full"), ("bfloat16", "full"), ("int8", "full"), ("cpu", "last:1")]
)
def test_kinds_of_reference_copies(kind: str, tuning: str, make: Make) -> None:
    if kind == "int8":
        pytest.importorskip("torchao")
    plain = make("plain", method="kl", tuning=tuning)
    small = make("small", method="kl", tuning=tuning, reference_copy=kind)
    run(plain)
    run(small)
    found, expected = ([entry["retain_loss"] for entry in steps(config)] for config in (small, plain))
    assert expected[0] == pytest.approx(0.0, abs=1e-7)
    if kind == "cpu":
        assert found == expected
        assert all(weight.equal(weights(plain)[name]) for name, weight in weights(small).items())
    else:
        assert 1e-6 < found[0] < 1e-3  # rounding of the copy
        assert found[-1] == pytest.approx(expected[-1], abs=2e-3)
    assert {weight.dtype for weight in weights(small).values()} == {torch.float32}
