"""Load the model of a run: dtypes, adapters, frozen weights, and what is refused."""

import sys
from typing import Any

import pytest
import torch

from lume_unlearn.errors import ConfigError
from lume_unlearn.model import load
from lume_unlearn.model.load import freeze
from lume_unlearn.model.packing import IMPLEMENTATION
from lume_unlearn.training.optimizer import optimizer_class
from lume_unlearn.training.run import load_configured
from tests.conftest import RunMaker, make_model


@pytest.mark.parametrize(
    ("options", "dtypes"),
    [
        ({"tuning": "full", "precision": "bfloat16"}, {True: torch.float32}),
        ({"tuning": "last:1", "weights": "bfloat16"}, {True: torch.bfloat16, False: torch.bfloat16}),
        ({"tuning": "lora"}, {True: torch.float32, False: torch.float32}),
        ({"tuning": "lora", "precision": "bfloat16"}, {True: torch.float32, False: torch.bfloat16}),
    ],
)
def test_dtypes_of_trained_and_frozen_weights(
    options: dict[str, Any], dtypes: dict[bool, torch.dtype], make_run: RunMaker
) -> None:
    model = load_configured(make_run("gd", **options))
    assert {weight.requires_grad: weight.dtype for weight in model.parameters()} == dtypes
    assert model.config._attn_implementation == IMPLEMENTATION


@pytest.mark.parametrize(("family", "before"), [("llama", "model.layers."), ("gpt2", "transformer.h.")])
def test_last_k_trains_all_weights_of_the_last_layers(family: str, before: str) -> None:
    model = make_model(family=family, num_hidden_layers=12)
    freeze(model, "last:3")
    names = [name for name, _ in model.named_parameters() if name.startswith(before)]
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {name for name in names if int(name.removeprefix(before).split(".")[0]) >= 9}


def test_optimisers_of_torchao_are_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert optimizer_class("adamw", 1e-5, bfloat16_weights=False) is None  # Trainer's AdamW
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ConfigError, match=r"^--weights bfloat16: needs torchao"):
        optimizer_class("adamw", 1e-5, bfloat16_weights=True)
    with pytest.raises(ConfigError, match=r"^--optimizer adamw8bit: needs torchao"):
        optimizer_class("adamw8bit", 1e-5, bfloat16_weights=False)


def test_adapter_inputs_in_bfloat16_give_the_same_values(make_run: RunMaker) -> None:
    config = make_run("gd", tuning="lora", precision="bfloat16", lora_dropout=0.0)
    model: Any = load_configured(config).train()
    seen: set[torch.dtype] = set()
    for name, module in model.named_modules():
        if name.endswith("lora_dropout"):
            module["default"].register_forward_pre_hook(lambda module, args: seen.add(args[0].dtype))
    ids = torch.arange(2, 40)[None]
    with torch.autocast("cpu", torch.bfloat16):
        widened = model(input_ids=ids).logits
        assert seen == {torch.float32}
        seen.clear()
        load.keep_adapter_inputs_bfloat16(model)
        assert model(input_ids=ids).logits.equal(widened)
    assert seen == {torch.bfloat16}
