"""Broken models and adapters are refused with their name and the reason; pickles are never loaded."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from lume_unlearn.errors import ConfigError
from lume_unlearn.model import load

pytestmark = [pytest.mark.faults, pytest.mark.timeout(60)]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def half_of_a_module(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    del weights["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"]
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def model(model_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model_dir, tmp_path / "model")


@pytest.fixture
def adapter(tmp_path: Path, model: Path) -> Path:
    base = load.load_model(str(model), torch.float32)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"num_hidden_layers": 5}, "missing: model.layers.2.input_.* and 24 more"),
        ({"intermediate_size": 128}, "cannot be loaded: .*mismatched"),
        ({"model_type": "other"}, "model type `other`"),
        ({}, "not fully covered"),
    ],
)
def test_a_broken_model_is_refused_with_the_reason(changed, reason, model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | changed))
    if not changed:
        cut(model / "model.safetensors")
    with pytest.raises(ConfigError, match=rf"(?s)^--model .*/model: its weights .*{reason}"):
        load.load_model(str(model), torch.float32)


def test_a_broken_tokenizer_is_refused(model):
    (model / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"^--model .*/model: its tokenizer cannot be loaded: "):
        load.load_tokenizer(str(model))


class Evil:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.folder / "ran"),))


def test_pickled_objects_named_by_an_index_are_not_run(model, tmp_path):
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "pytorch_model.bin")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.save(weights | {"evil": Evil(tmp_path)}, model / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"^--model .*/model: its weights cannot be loaded: "):
        load.load_model(str(model), torch.float32)
    assert not (tmp_path / "ran").exists()


def pickled(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(Evil(adapter.parent), adapter / "adapter_model.bin")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (pickled, "no adapter_model.safetensors in it; pickles are not loaded"),
        (lambda folder: cut(folder / "adapter_model.safetensors"), "does not fit the model"),
        (half_of_a_module, "missing: "),
        (lambda folder: cut(folder / "adapter_config.json"), "its adapter_config.json cannot be read"),
    ],
)
def test_a_broken_adapter_is_refused_with_the_reason(damage, reason, adapter, model, tmp_path, command):
    damage(adapter)
    code, _, message = command("merge", "--adapter", adapter, "--model", model, "--output", tmp_path / "out")
    assert code == 2
    assert f"lume-unlearn merge: --adapter {adapter}: " in message
    assert reason in message
    assert not (tmp_path / "ran").exists()
    assert not list(tmp_path.glob("out/*"))
    with pytest.raises(ConfigError, match=f"^--peft {adapter}: "):  # as the audit names it
        load.merged_model(str(model), str(adapter), option="--peft")


def test_an_output_that_cannot_be_written_is_named(adapter, model, data_dir, command):
    for name, *given in (["merge", "--adapter", adapter], ["audit", "--model", model, "--data", data_dir]):
        code, _, err = command(name, *given, "--output", "/dev/null/out")
        assert code == 2
        assert f"lume-unlearn {name}: --output /dev/null/out: cannot be written" in err
