"""How a run loads its model, what it leaves to be trained, and what it refuses."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lume_unlearn.config import RunConfig
from lume_unlearn.errors import ConfigError
from lume_unlearn.model import load
from lume_unlearn.model.merge import merge
from lume_unlearn.model.packing import IMPLEMENTATION


@pytest.fixture
def config(model_dir: Path) -> Any:
    """(options) to a configuration for the tiny model."""

    def _config(**options: Any) -> RunConfig:
        return RunConfig(**({"model": str(model_dir), "output": "o", "method": "gd"} | options))

    return _config


def trained(model: Any) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"tuning": "full"}, torch.float32),
        ({"tuning": "full", "precision": "bfloat16"}, torch.float32),  # small steps would be lost in the rounding
        ({"tuning": "last:1", "weights": "bfloat16"}, torch.bfloat16),
        ({"tuning": "lora"}, torch.float32),
    ],
)
def test_weights_have_the_dtype_that_they_are_trained_in(
    options: dict[str, Any], dtype: torch.dtype, config: Any
) -> None:
    model = load.load_for_training(config(**options))
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    assert model.config._attn_implementation == IMPLEMENTATION


def test_an_adapter_stays_float32_on_a_bfloat16_model(config: Any) -> None:
    model = load.load_for_training(config(precision="bfloat16"))
    dtypes = {weight.requires_grad: weight.dtype for weight in model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}


def test_the_adapter_is_as_asked_for(config: Any) -> None:
    options = {"lora_rank": 3, "lora_alpha": 12, "lora_dropout": 0.25, "lora_targets": "q_proj,down_proj"}
    adapter = load.load_for_training(config(**options)).peft_config["default"]
    assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout) == (3, 12, 0.25)
    assert set(adapter.target_modules) == {"q_proj", "down_proj"}


@pytest.mark.parametrize(
    ("tuning", "fault"),
    [
        ("last:3", "--tuning last:3: the model has 2 decoder layers"),
        ("modules:mpl", "--tuning modules:mpl: found in no"),
    ],
)
def test_a_tuning_that_names_nothing_in_this_model(tuning: str, fault: str, config: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{fault}"):
        load.load_for_training(config(tuning=tuning))


@pytest.mark.parametrize("tuning", ["full", "lora", "last:2", "modules:mlp"])
def test_above_the_layer_that_is_steered_nothing_is_trained(tuning: str, config: Any) -> None:
    options = config(method="rmu", tuning=tuning, params={"layer": 0})
    model = load.load_for_training(options)
    before = trained(model)
    passes = load.passes(options, model)
    assert passes.layer == 0
    assert trained(model) == {name for name in before if "layers.0." in name or "embed_tokens" in name}
    assert any("layers.1." in name for name in before)


def test_values_from_logits_leave_all_to_be_trained(config: Any) -> None:
    options = config(tuning="full")
    model = load.load_for_training(options)
    assert load.passes(options, model).layer is None
    assert trained(model) == set(dict(model.named_parameters()))


def test_a_layer_that_the_model_has_not(config: Any) -> None:
    options = config(method="rmu")
    with pytest.raises(ConfigError, match=r"^--layer 7: the model has 2 decoder layers, counted from 0$"):
        load.passes(options, load.load_for_training(options))


def test_training_only_above_the_layer_is_refused(config: Any) -> None:
    options = config(method="rmu", tuning="last:1", params={"layer": 0})
    with pytest.raises(ConfigError, match=r"^--tuning last:1: trains nothing up to --layer 0"):
        load.passes(options, load.load_for_training(options))


def test_optimisers(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load.optimizer_class(config()) is None  # Trainer's own
    monkeypatch.setitem(sys.modules, "torchao", None)
    for options in ({"weights": "bfloat16", "tuning": "full"}, {"optimizer": "adamw8bit"}):
        named = "--weights bfloat16" if "weights" in options else "--optimizer adamw8bit"
        with pytest.raises(ConfigError, match=f"^{named}: needs torchao"):
            load.optimizer_class(config(**options))


@pytest.mark.parametrize("part", ["weights", "tokenizer"])
def test_what_cannot_be_loaded_is_named(part: str, model_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(model_dir, tmp_path / "broken")
    loader = load.load_tokenizer if part == "tokenizer" else lambda name: load.load_model(name, torch.float32)
    (tmp_path / "broken" / ("tokenizer.json" if part == "tokenizer" else "model.safetensors")).unlink()
    with pytest.raises(ConfigError, match=rf"^--model .*broken: its {part} cannot be loaded: "):
        loader(str(tmp_path / "broken"))
    with pytest.raises(ConfigError, match=r"no/such \(there is no such folder here, so the hub was asked\)"):
        loader("no/such")


def test_a_broken_weights_file_is_named(model_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(model_dir, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ConfigError, match=r"^--model .*broken: its weights cannot be loaded"):
        load.load_model(str(tmp_path / "broken"), torch.float32)


def test_the_context_is_what_the_configuration_says() -> None:
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    assert load.context_length(LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=77))) == 77


def test_merging_leaves_the_models_own_weights_below_the_update(config: Any, tmp_path: Path, model_dir: Path) -> None:
    model = load.load_for_training(config(lora_targets="q_proj", lora_rank=2))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora" in name:
                weight.fill_(0.5)
    model.save_pretrained(tmp_path / "adapter")
    merge(str(tmp_path / "adapter"), str(tmp_path / "merged"))
    before, after = (load_file(folder / "model.safetensors") for folder in (model_dir, tmp_path / "merged"))
    # B A = 2 * 0.25 in every entry, times alpha / rank = 16.
    for name, value in before.items():
        torch.testing.assert_close(after[name], value + (8.0 if "q_proj" in name else 0.0))


def test_positions_that_are_learned_stay_trained_below_the_layer_that_is_steered() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=400, n_positions=64, n_embd=16, n_layer=3, n_head=2))
    options = RunConfig("m", "o", "rmu", "full", params={"layer": 1})
    load.passes(options, model)
    above = {name for name in dict(model.named_parameters()) if ".h.2." in name or ".ln_f." in name}
    assert trained(model) == set(dict(model.named_parameters())) - above
    assert "transformer.wpe.weight" in trained(model)


def test_adapters_take_bfloat16_as_it_comes(config: Any) -> None:
    """The same values under autocast, without a float32 copy of what goes into each adapter."""
    model = load.load_for_training(config(tuning="lora", precision="bfloat16", lora_dropout=0.0)).train()
    seen: set[torch.dtype] = set()
    for name, module in model.named_modules():
        if name.endswith("lora_dropout"):
            module["default"].register_forward_pre_hook(lambda module, args: seen.add(args[0].dtype))
    ids = torch.arange(2, 40)[None]
    found = []
    for narrow in (False, True):
        if narrow:
            load.keep_inputs_narrow(model)
        seen.clear()
        with torch.autocast("cpu", torch.bfloat16):
            found.append(model(input_ids=ids).logits)
        assert seen == {torch.bfloat16 if narrow else torch.float32}
    assert found[0].equal(found[1])
