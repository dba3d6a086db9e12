"""Options that save memory: they train as float32 does, as far as their rounding allows."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lume_unlearn.config import RunConfig
from lume_unlearn.data.inputs import encode_sides, load_inputs
from lume_unlearn.errors import ConfigError
from lume_unlearn.model import load
from lume_unlearn.model.forward import decoder_layers
from lume_unlearn.training.optimizer import optimizer_class
from lume_unlearn.training.run import load_configured, make_trainer, run
from lume_unlearn.training.trainer import UnlearningTrainer

Make = Callable[..., RunConfig]

pytestmark = pytest.mark.usefixtures("little_to_collect")


@pytest.fixture
def make(model_dir: Path, data_dir: Path, tmp_path: Path) -> Make:
    """(name of the output folder, options) to six optimiser steps of gradient difference on all weights."""

    def _make(name: str = "out", **options: Any) -> RunConfig:
        files = {"model": str(model_dir), "output": str(tmp_path / name), "data": str(data_dir)}
        plain = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "lora_dropout": 0.0}
        return RunConfig(**({"method": "gd", "tuning": "full"} | files | plain | options))  # type: ignore[arg-type]

    return _make


@pytest.fixture
def torchao(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its optimisers without compilation, which takes half a minute on a CPU."""
    found = pytest.importorskip("torchao.optim")
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    return found


def terms(config: RunConfig) -> list[dict[str, float]]:
    record = json.loads((Path(config.output) / "unlearning.json").read_text())
    return [entry for entry in record["history"] if "loss" in entry]


def weights(config: RunConfig) -> dict[str, Tensor]:
    (file,) = Path(config.output).glob("*.safetensors")
    return load_file(file)


def built(config: RunConfig) -> UnlearningTrainer:
    """The trainer of a run, its optimiser made."""
    torch.manual_seed(0)
    tokenizer, model = load.load_tokenizer(config.model), load_configured(config)
    sides = encode_sides(config, tokenizer, load.context_length(model), load_inputs(config))
    trainer = make_trainer(config, model, tokenizer, sides)
    trainer.create_optimizer()
    return trainer


def test_a_small_step_survives_in_expectation(make: Make, torchao: Any) -> None:
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


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"weights": "bfloat16"}, 0.03),
        ({"weights": "bfloat16", "precision": "bfloat16"}, 0.03),
        ({"optimizer": "adamw8bit"}, 0.15),
        ({"weights": "bfloat16", "optimizer": "adamw8bit"}, 0.15),
    ],
)
def test_training_goes_the_way_of_float32(options: dict[str, Any], tolerance: float, make: Make, torchao: Any) -> None:
    plain, other = make(), make("other", **options)
    run(plain)
    run(other)
    gained = abs(terms(plain)[-1]["loss"] - terms(plain)[0]["loss"])
    assert gained > 0.3
    for mine, theirs in zip(terms(plain), terms(other), strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], abs=tolerance)
    dtype = torch.bfloat16 if "weights" in options else torch.float32
    assert {weight.dtype for weight in weights(other).values()} == {dtype}


def test_states_are_held_in_8_bits(make: Make, torchao: Any) -> None:
    trainer = built(make(optimizer="adamw8bit"))
    trainer.training_step(trainer.model, next(iter(trainer.get_train_dataloader())))
    optimizer: Any = trainer.optimizer
    optimizer.step()
    embeddings = trainer.model.get_input_embeddings().weight  # type: ignore[operator, union-attr]
    assert type(optimizer.state[embeddings]["exp_avg_sq"]).__name__ == "OptimState8bit"


@pytest.mark.parametrize("kind", ["same", "cpu", "bfloat16", "int8"])
@pytest.mark.parametrize("tuning", ["full", "last:1"])
def test_copies_of_the_reference(kind: str, tuning: str, make: Make) -> None:
    if kind == "int8":
        pytest.importorskip("torchao")
    plain = make("plain", method="kl", tuning=tuning)
    small = make("small", method="kl", tuning=tuning, reference_copy=kind)
    run(plain)
    run(small)
    found, expected = ([entry["retain_loss"] for entry in terms(c)] for c in (small, plain))
    assert expected[0] == pytest.approx(0.0, abs=1e-7)
    if kind in ("same", "cpu"):
        assert found == expected
        assert all(weight.equal(weights(plain)[name]) for name, weight in weights(small).items())
    else:
        assert 1e-6 < found[0] < 1e-3  # the copy's own rounding
        assert found[-1] == pytest.approx(expected[-1], abs=2e-3)
    assert {weight.dtype for weight in weights(small).values()} == {torch.float32}


def resumed(config: RunConfig, folder: Path) -> RunConfig:
    """A whole run, and its second half again from the checkpoint in the middle."""
    run(config)
    again = replace(config, output=str(folder), resume=True)
    shutil.copytree(Path(config.output) / "checkpoint-3", folder / "checkpoint-3")
    shutil.copy(Path(config.output) / "checkpoint-3" / "unlearning.json", folder)
    run(again)
    return again


@pytest.mark.parametrize(
    "options",
    [{"weights": "bfloat16"}, {"optimizer": "adamw8bit"}, {"weights": "bfloat16", "optimizer": "adamw8bit"}],
)
def test_a_resumed_run_is_the_same_run(options: dict[str, Any], make: Make, torchao: Any, tmp_path: Path) -> None:
    whole = make(save_steps=3, **options)
    again = resumed(whole, tmp_path / "again")
    assert terms(again) == terms(whole)
    assert all(weight.equal(weights(whole)[name]) for name, weight in weights(again).items())


def test_ngdiff_finds_a_rate_for_these_optimisers_too(make: Make, torchao: Any) -> None:
    found = make(method="ngdiff", learning_rate=1e-4, params={"rate_every": 1}, weights="bfloat16")
    run(found)
    assert len({entry["learning_rate"] for entry in terms(found)}) > 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"weights": "bfloat16"}, "--weights bfloat16"),
        ({"optimizer": "adamw8bit"}, "--optimizer adamw8bit"),
        ({"method": "kl", "reference_copy": "int8"}, "--reference_copy int8"),
    ],
)
def test_without_torchao_the_option_is_named(
    options: dict[str, Any], named: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torchao", "torchao.optim", "torchao.quantization"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"{named}: needs torchao"):
        run(make(**options))


def gradients(config: RunConfig) -> tuple[dict[str, Tensor], int]:
    """Of one step, and how often the first layer ran for it."""
    trainer = built(config)
    model: Any = trainer.model
    if config.tuning == "lora":  # a fresh adapter's second factor is 0, and so is the gradient of the first
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, 0.0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    trainer.args.max_steps = 1
    kept: dict[str, Tensor] = {}
    step, passes, counted = trainer.training_step, [0], [0]

    def keep(*args: Any, **kwargs: Any) -> Tensor:
        passes[0] = 0
        loss = step(*args, **kwargs)
        counted[0] = passes[0]
        kept.update({name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None})
        return loss

    trainer.training_step = keep  # type: ignore[method-assign]
    layer: Any = decoder_layers(model)[-1]
    layer.self_attn.register_forward_pre_hook(lambda *_: passes.__setitem__(0, passes[0] + 1))
    trainer.train()
    return kept, counted[0]


@pytest.mark.parametrize("method", ["gd", "kl"])
@pytest.mark.parametrize("tuning", ["full", "lora", "last:1"])
def test_gradient_checkpointing_gives_the_same_gradients(method: str, tuning: str, make: Make) -> None:
    plain = make(method=method, tuning=tuning, max_tokens=10_000)
    less = replace(plain, gradient_checkpointing=True, output=f"{plain.output}-less")
    (expected, once), (found, twice) = gradients(plain), gradients(less)
    assert twice == once + 1  # the backward pass ran the layer again
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-7)
