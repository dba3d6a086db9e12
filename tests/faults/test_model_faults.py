"""Broken models and adapters: refused with their name and the reason, and never unpickled."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from lume_unlearn import cli
from lume_unlearn.errors import ConfigError
from lume_unlearn.model import load
from tests.conftest import make_model, make_tokenizer

pytestmark = [pytest.mark.faults, pytest.mark.timeout(60)]

Damage = Callable[[Path], Any]


def setting(**values: Any) -> Damage:
    """Set values in config.json."""

    def change(model: Path) -> None:
        config = json.loads((model / "config.json").read_text()) | values
        (model / "config.json").write_text(json.dumps(config))

    return change


def text(name: str, content: str | bytes) -> Damage:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def without(key: str, name: str = "model.safetensors") -> Damage:
    def change(folder: Path) -> None:
        weights = load_file(folder / name)
        del weights[key]
        save_file(weights, folder / name, metadata={"format": "pt"})

    return change


def cut(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1])


def index(content: str) -> Damage:
    def change(model: Path) -> None:
        (model / "model.safetensors").unlink()
        (model / "model.safetensors.index.json").write_text(content)

    return change


SHAPE = r"mlp.down_proj.weight has shape \[32, 64\], not \[32, 128\]"
LAYER = "model.layers.2.input_layernorm.weight is missing, .* and 24 more"
MODELS: dict[str, tuple[Damage, str]] = {
    "more layers than weights": (setting(num_hidden_layers=5), LAYER),
    "no output layer": (without("lm_head.weight"), "lm_head.weight is missing"),
    "another width": (setting(intermediate_size=128), SHAPE),
    "unknown type": (setting(model_type="evil"), "model type `evil`"),
    "config: no JSON": (text("config.json", "{"), "not a valid JSON file"),
    "weights: cut": (cut("model.safetensors"), "not fully covered"),
    "index: empty": (index("{}"), "weight_map"),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def adapter(tmp_path: Path, model: Path) -> Path:
    base = load.load_model(str(model), torch.float32)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"


@pytest.mark.parametrize("name", MODELS)
def test_a_broken_model_is_refused_with_the_reason(name: str, model: Path) -> None:
    damage, reason = MODELS[name]
    damage(model)
    with pytest.raises(ConfigError, match=rf"(?s)^--model .*/model: its weights cannot be loaded: .*{reason}"):
        load.load_model(str(model), torch.float32)


def test_a_broken_tokenizer_is_refused(model: Path) -> None:
    (model / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"^--model .*/model: its tokenizer cannot be loaded: "):
        load.load_tokenizer(str(model))


def test_memory_that_runs_out_is_no_fault_of_the_folder(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(torch.OutOfMemoryError):
        load.load_model(str(model), torch.float32)


def test_an_index_that_names_pickles_is_refused(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    index(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, "pytorch_model.bin")}))(model)
    torch.save(weights, model / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin is a pickle, which is never loaded"):
        load.load_model(str(model), torch.float32)
    assert torch.load(model / "pytorch_model.bin").keys() == weights.keys()  # forbidden only meanwhile


class Evil:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("ran",))


def pickled(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(Evil(), adapter / "adapter_model.bin")


KEY = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
ADAPTERS: dict[str, tuple[Damage, str]] = {
    "pickle": (pickled, "no adapter_model.safetensors in it; adapter_model.bin is a pickle, which is never loaded"),
    "cut": (cut("adapter_model.safetensors"), "does not fit the model"),
    "half of a module": (without(KEY, "adapter_model.safetensors"), "Found missing adapter keys"),
    "config: no JSON": (text("adapter_config.json", "{"), "its adapter_config.json cannot be read"),
}


@pytest.mark.parametrize("command", ["merge", "audit"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_a_broken_adapter_is_refused_with_the_reason(
    name: str,
    command: str,
    adapter: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage, reason = ADAPTERS[name]
    damage(adapter)
    monkeypatch.chdir(tmp_path)
    option = "--adapter" if command == "merge" else "--peft"
    where = [option, str(adapter), "--model", str(model), "--output", "out"]
    with monkeypatch.context() as patch:
        patch.setattr("lume_tasks.data.locate.load_rows", lambda *args: {"forget": [], "retain": []})
        patch.setattr("lume_tasks.data.locate.data_dir", lambda *args: tmp_path)
        assert cli.main([command, *where]) == 1
    message = capsys.readouterr().err.split(f"lume-unlearn {command}: ")[-1]
    assert message.startswith(f"{option} {adapter}: ")
    assert reason in message
    assert not (tmp_path / "ran").exists()
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("command", ["merge", "audit"])
def test_an_output_that_cannot_be_written_is_named(
    command: str, adapter: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = "/dev/null/out"
    given = ["--adapter", str(adapter)] if command == "merge" else ["--model", str(model)]
    assert cli.main([command, *given, "--output", output]) == 1
    assert f"lume-unlearn {command}: --output {output}: cannot be written" in capsys.readouterr().err
