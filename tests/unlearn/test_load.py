"""Load a model and choose what is trained: dtypes, frozen weights, and optimisers that are not installed."""

import sys
from typing import Any

import pytest
import torch

from lume_unlearn.data.encode import Tokens
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.registry import method_of
from lume_unlearn.model import load
from lume_unlearn.model.load import trainable
from lume_unlearn.model.packing import IMPLEMENTATION
from lume_unlearn.training.arguments import UnlearningArguments, filled_in
from lume_unlearn.training.run import load_trained
from lume_unlearn.training.setup import optimizer_class, prepare_model, require_known_tokens
from tests.conftest import loaded_with_adapter, make_model

HALF, FLOAT = torch.bfloat16, torch.float32


def arguments(**options: Any) -> UnlearningArguments:
    return UnlearningArguments(output_dir="unused", **options)


@pytest.mark.parametrize(
    ("tuning", "options", "trained", "frozen"),
    [
        ("full", {"bf16": True}, FLOAT, None),
        ("last:1", {"weights": "bfloat16"}, HALF, HALF),
        ("lora", {}, FLOAT, FLOAT),
        ("lora", {"bf16": True}, FLOAT, HALF),
        ("memory:last:1", {"bf16": True}, FLOAT, FLOAT),  # layers cannot mix two
        ("memory:lora", {}, FLOAT, HALF),
    ],
)
def test_dtypes_of_trained_and_frozen_weights(tuning, options, trained, frozen, model_dir):
    """Of a folder, and of a model in bfloat16 that is in memory."""
    args, memory = arguments(**options), tuning.startswith("memory:")
    tuning = tuning.removeprefix("memory:")
    if memory:
        model = trainable(make_model().bfloat16(), tuning)
    else:
        model, _ = load_trained(str(model_dir), args, tuning=tuning)
    method = method_of("gd")
    prepare_model(model, method, filled_in(args, method, model))
    expected = {True: trained} | ({} if frozen is None else {False: frozen})
    assert {weight.requires_grad: weight.dtype for weight in model.parameters()} == expected
    assert model.config._attn_implementation == IMPLEMENTATION


@pytest.mark.parametrize(
    ("options", "devices", "message"),
    [
        ({"attention": "flash_attention_2"}, {"": 0}, "--attention flash_attention_2: does not compute with"),
        ({}, {"model.layers.0": 0, "model.layers.1": 1}, "model: its layers are on several devices"),
    ],
)
def test_what_training_cannot_use_is_refused(options, devices, message):
    model, method = make_model(), method_of("gd")
    model.hf_device_map = devices
    with pytest.raises(ConfigError, match=message):
        prepare_model(model, method, filled_in(arguments(**options), method, model))


@pytest.mark.parametrize(("family", "before"), [("llama", "model.layers."), ("gpt2", "transformer.h.")])
def test_last_k_trains_all_weights_of_the_last_layers(family, before):
    model = make_model(family=family, num_hidden_layers=12)
    trainable(model, "last:3")
    names = [name for name, _ in model.named_parameters() if name.startswith(before)]
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {name for name in names if int(name.removeprefix(before).split(".")[0]) >= 9}


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_of_the_embeddings_is_refused_only_if_they_are_the_output_layer_too(target):
    lora = load.lora_config(lora_targets=f"q_proj,{target}")
    with pytest.raises(ConfigError, match=f"--lora_targets {target}: the input embeddings and the output layer"):
        trainable(make_model(tie_word_embeddings=True), "lora", lora)
    model = trainable(make_model(), "lora", lora)
    require_known_tokens(model, [Tokens((399,), (399,))])
    with pytest.raises(ConfigError, match="token id 400 is outside the embedding table"):
        require_known_tokens(model, [Tokens((400,), (400,))])


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_no_adapter_is_added_to_one_that_transformers_has_loaded(tuning, tmp_path):
    """PEFT would silently replace it."""
    model = loaded_with_adapter(tmp_path, load.lora_config())
    with pytest.raises(ConfigError, match=r"^model: its adapter was loaded by transformers.*merge\(adapter=folder\)"):
        trainable(model, tuning)


def test_optimisers_of_torchao_are_named_where_it_is_missing(monkeypatch):
    assert optimizer_class(arguments()) is None  # Trainer's AdamW
    monkeypatch.setitem(sys.modules, "torchao", None)
    for options, named in (
        ({"weights": "bfloat16"}, "weights bfloat16"),
        ({"optim": "adamw_torch_8bit"}, "optim adam"),
    ):
        with pytest.raises(ConfigError, match=rf"^--{named}.*: needs torchao"):
            optimizer_class(arguments(**options))


def test_adapter_inputs_in_bfloat16_give_the_same_values(model_dir):
    model, _ = load_trained(str(model_dir), arguments(bf16=True), lora_dropout=0.0)
    model.train()
    seen = set()
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
