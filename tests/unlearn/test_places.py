"""What an option may name as a model: folders of models and adapters, adapters on adapters, and names of the hub."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from lume_unlearn.cli.audit import load_audited, require_models
from lume_unlearn.errors import ConfigError
from lume_unlearn.model import load
from lume_unlearn.model.places import BASE, UNFINISHED, find_model
from lume_unlearn.training.merge import merge
from tests.conftest import make_tokenizer, read_run

FLOAT = torch.float32
Adapt = Callable[..., Path]


@pytest.fixture
def adapt(model_dir: Path, tmp_path: Path) -> Adapt:
    """(name, folder of the base) to the folder of a random LoRA adapter on it."""

    def make(name: str = "one", base: Path = model_dir) -> Path:
        torch.manual_seed(len(name))
        model = load.load_model(str(base), FLOAT)
        wrapped = get_peft_model(model, LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
        for key, weight in wrapped.named_parameters():
            if "lora_" in key:
                weight.data.normal_(std=0.2)
        wrapped.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def rename_base(adapter: Path, base: str | None) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {BASE: base}))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(2, 30)[None]).logits
    return found


def test_an_adapters_folder_is_its_base_with_the_adapter_merged(adapt, model_dir):
    adapter = adapt()
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), adapter)
    found = load.load_model(str(adapter), FLOAT)
    torch.testing.assert_close(logits(found), logits(adapted))
    assert not logits(found).allclose(logits(load.load_model(str(model_dir), FLOAT)), atol=1e-3)
    assert not hasattr(found, "peft_config")
    assert all(weight.requires_grad for weight in found.parameters())  # as those of any loaded model
    assert load.load_model(str(adapter), torch.bfloat16).dtype == torch.bfloat16


def test_the_tokenizer_is_the_adapters_own_or_else_the_bases(adapt):
    adapter = adapt()
    assert load.load_tokenizer(str(adapter)).bos_token is None
    make_tokenizer(bos=True).save_pretrained(adapter)
    assert load.load_tokenizer(str(adapter)).bos_token == "<bos>"
    two = adapt("two", adapter)
    assert load.load_tokenizer(str(two)).bos_token == "<bos>"


def test_adapters_on_adapters_are_followed_by_load_audit_and_merge(adapt, model_dir, tmp_path):
    one = adapt()
    two = adapt("two", one)
    assert json.loads((two / "adapter_config.json").read_text())[BASE] == str(one)
    assert find_model(str(two)).adapters == (str(one), str(two))
    by_hand = AutoModelForCausalLM.from_pretrained(model_dir)
    for adapter in (one, two):
        by_hand = PeftModel.from_pretrained(by_hand, adapter).merge_and_unload()
    expected = logits(by_hand)
    torch.testing.assert_close(logits(load.load_model(str(two), FLOAT)), expected)
    torch.testing.assert_close(logits(load_audited(str(one), str(two), device="cpu")[0]), expected)
    merge(adapter=str(two), output=str(tmp_path / "merged"))
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), expected)
    assert load.load_tokenizer(str(tmp_path / "merged")).eos_token == "<eos>"


def test_a_relative_base_is_found_above_the_adapter(adapt, model_dir, tmp_path, monkeypatch):
    shutil.copytree(model_dir, tmp_path / "target")
    for folder in ("one", "out/one"):
        rename_base(adapt(folder), "target")
        monkeypatch.chdir("/")
        assert find_model(str(tmp_path / folder)).base == str(tmp_path / "target")
    monkeypatch.chdir(tmp_path)
    assert find_model("one").base == "target"


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        ("out/target", "its base model out/target: no such folder"),
        ("/nowhere", "its base model /nowhere: no such folder"),
        ("nobody/target", r"its base model nobody/target \(no such folder here, so the hub was asked\)"),
        (None, "names no base model"),
        ("itself", "is its own base model, directly or through other adapters"),
    ],
)
def test_a_missing_base_is_named_with_what_to_do(base, reason, adapt, tmp_path, monkeypatch):
    adapter = adapt()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    rename_base(adapter, str(adapter) if base == "itself" else base)
    with pytest.raises(ConfigError, match=f"^--before {adapter}: .*{reason}.*--adapter {adapter} --model MODEL") as one:
        load.require_model(str(adapter), "--before")
    assert str(adapter / "adapter_config.json") in str(one.value)
    assert "\n" not in str(one.value)


def test_run_on_an_adapter_gives_an_adapter_on_it_and_says_to_merge_first(adapt, data_dir, tmp_path, command):
    adapter, output = adapt(), tmp_path / "again"
    options = ["--data", data_dir, "--output", output, "--method", "gd", "--num_train_epochs", 1]
    code, out, err = command("run", "--model", adapter, *options)
    assert code == 0, err
    assert json.loads((output / "adapter_config.json").read_text())[BASE] == str(adapter)
    lines = [line.strip() for line in out.splitlines()]
    at = lines.index(f"lume-unlearn merge --adapter {output} --output {output}/merged")
    assert "an adapter on an adapter, which lm_eval does not load" in lines[at - 1]
    assert f"--model_args pretrained={output}/merged --tasks" in lines[at + 2]
    assert command(*lines[at].split()[1:])[0] == 0
    torch.testing.assert_close(
        logits(load.load_model(str(output), FLOAT)),
        logits(AutoModelForCausalLM.from_pretrained(output / "merged")),
    )


def test_full_tuning_of_an_adapters_folder_trains_all_weights(adapt, data_dir, tmp_path, command):
    options = ["--data", data_dir, "--method", "gd", "--num_train_epochs", 1, "--tuning", "full"]
    code, out, err = command("run", "--model", adapt(), *options, "--output", tmp_path / "full")
    assert code == 0, err
    assert f"--model_args pretrained={tmp_path / 'full'} --tasks" in out
    count = sum(weight.numel() for weight in load.load_model(str(tmp_path / "full"), FLOAT).parameters())
    assert read_run(tmp_path / "full")["trained_parameters"] == count


def test_the_same_adapter_is_not_merged_twice(adapt):
    adapter = str(adapt())
    for check in (require_models, load_audited):
        with pytest.raises(ConfigError, match=f"^--peft {adapter}: --model .* has this adapter already; drop --peft"):
            check(adapter, adapter)


@pytest.mark.parametrize(
    "name", ["/no/such", "./such", "../such", "~/no_such", "~nobody/such", "a/b/c", "there/such", "."]
)
def test_paths_are_never_asked_of_the_hub(name, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(load, "cached_file", lambda *args: pytest.fail("asked the hub"))
    monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", lambda *args, **_: pytest.fail("asked the hub"))
    reason = "holds no model: neither config.json" if name == "." else "no such folder$"
    for check in (load.require_model, load.load_tokenizer, lambda name: load.load_model(name, FLOAT)):
        with pytest.raises(ConfigError, match=f"^--model .*: {reason}"):
            check(name)


def test_names_of_the_hub_are_asked_and_others_are_not(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(load, "cached_file", lambda name, file: asked.append(name))
    monkeypatch.chdir(tmp_path)
    for name in ("gpt2", "owner/some-name_1.0"):
        assert load.require_model(name).base == name
    assert asked == ["gpt2", "owner/some-name_1.0"]
    for name, reason in (("my model", "not a hub name"), ("owner/a name", "not a hub name"), ("", "is empty")):
        with pytest.raises(ConfigError, match=reason):
            load.require_model(name)
    assert len(asked) == 2


def test_a_tilde_is_the_users_folder(model_dir, monkeypatch):
    monkeypatch.setenv("HOME", str(model_dir.parent))
    assert load.load_model(f"~/{model_dir.name}", FLOAT).name_or_path == str(model_dir)
    assert load.load_tokenizer(f"~{os.sep}{model_dir.name}").eos_token == "<eos>"


@pytest.mark.parametrize("left", ["checkpoint-3", ".partial", ".lock"])
@pytest.mark.parametrize("option", ["model", "before", "control", "peft"])
def test_an_unfinished_run_is_named_as_such(left, option, model_dir, data_dir, tmp_path, command):
    (tmp_path / "out" / left).mkdir(parents=True)
    names = {"model": model_dir, "before": model_dir, option: tmp_path / "out"}
    words = [word for name, value in names.items() for word in (f"--{name}", value)]
    code, out, err = command("audit", "--data", data_dir, "--output", tmp_path / "audit", *words)
    assert (code, out) == (2, "")
    assert err == f"lume-unlearn audit: --{option} {tmp_path / 'out'}: {UNFINISHED}\n"


def test_an_adapter_config_without_weights_beside_checkpoints_is_unfinished(adapt):
    adapter = adapt()
    (adapter / "checkpoint-7").mkdir()
    assert find_model(str(adapter)).adapters == (str(adapter),)  # finished: checkpoints stay beside the result
    (adapter / "adapter_model.safetensors").unlink()
    for option, check in (("--model", load.require_model), ("--peft", load.adapter_config)):
        with pytest.raises(ConfigError, match=f"^{option} {adapter}: {UNFINISHED}"):
            check(str(adapter), option)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("audit --model MODEL --peft nope", "--peft nope: no such folder"),
        ("audit --model MODEL --peft MODEL", "in it; it holds a model: give it as --model"),
        ("audit --model MODEL --before /nope", "--before /nope: no such folder"),
        ("audit --model MODEL --before MODEL --control no/such", "--control no/such (no such folder here, so the hub"),
        ("audit --model MODEL --device gpu7", "--device gpu7: not a device of torch"),
        ("compare --model MODEL --retrained ./nope", "--retrained ./nope: no such folder"),
        ("compare --model a/b/c", "--model a/b/c: no such folder"),
        ("run --model ./nope --method gd", "--model ./nope: no such folder"),
        ("finetune --model ./nope", "--model ./nope: no such folder"),
        ("alternatives --model ./nope", "--model ./nope: no such folder"),
    ],
)
def test_wrong_models_are_noticed_before_data_is_read(words, named, model_dir, tmp_path, command, monkeypatch):
    monkeypatch.setattr("lume_tasks.data.locate.data_dir", lambda *args: pytest.fail("looked for data"))
    places = {"MODEL": str(model_dir)}
    code, out, err = command(*(places.get(word, word) for word in words.split()), "--output", tmp_path / "out.jsonl")
    assert (code, out) == (2, "")
    assert named in err
    assert err.startswith(f"lume-unlearn {words.split()[0]}: ")
    assert err.count("\n") == 1
