"""Whole runs: what they write, that they can be repeated and resumed, and what they refuse."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import lume_unlearn
from lume_tasks.data.files import read_rows
from lume_tasks.data.rows import Row
from lume_tasks.errors import DataError
from lume_unlearn.config import RunConfig
from lume_unlearn.data.inputs import load_sides
from lume_unlearn.errors import ConfigError
from lume_unlearn.training import run as run_module
from lume_unlearn.training.memory import fitting_tokens
from lume_unlearn.training.merge import merge
from lume_unlearn.training.run import run, unlearn

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


def load(config: RunConfig) -> Any:
    """The result as the harness loads it."""
    if config.tuning == "full":
        return AutoModelForCausalLM.from_pretrained(config.output)
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(config.model), config.output)


def write(path: Path, rows: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        Dataset.from_list([vars(row) for row in rows]).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(vars(row)) + "\n" for row in rows))
    return path


def test_a_full_model_keeps_its_configuration(config: RunConfig) -> None:
    output = run(replace(config, tuning="full", epochs=1))
    before, after = (json.loads((Path(path) / "config.json").read_text()) for path in (config.model, output))
    assert after == before  # cache, attention and special tokens as they were
    assert set(weights(output)) == set(weights(Path(config.model)))
    assert {value.dtype for value in weights(output).values()} == {torch.float32}


@pytest.mark.parametrize(("count", "loss_on"), [(0, "answer"), (2, "answer"), (3, "answer"), (3, "text")])
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


def test_the_default_of_max_tokens_goes_by_device_and_memory() -> None:
    assert [fitting_tokens("cuda", free * 2**30) for free in (80, 40, 24, 12, 6, 1)] == [
        8192,
        8192,
        4096,
        2048,
        1024,
        512,
    ]
    assert [fitting_tokens("cpu", free * 2**30) for free in (80, 12, 6, 1)] == [2048, 2048, 1024, 512]


def test_the_record_has_the_tokens_of_a_pass_and_a_resumed_run_keeps_them(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "default_max_tokens", lambda: 640)
    output = run(replace(config, save_steps=5))
    assert record(output)["config"]["max_tokens"] == 640
    (output / "unlearning.json").unlink()  # broken off after the fifth of six steps
    monkeypatch.setattr(run_module, "default_max_tokens", lambda: 1280)
    assert record(run(replace(config, resume=True, save_steps=5)))["config"]["max_tokens"] == 640
    assert record(run(replace(config, output=str(tmp_path / "other"))))["config"]["max_tokens"] == 1280


def test_a_run_goes_on_without_member_documents_or_with_faulty_ones(
    config: RunConfig, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(data_dir, tmp_path / "data")
    (data / "mia_data" / "member.jsonl").write_text("no JSON\n")
    assert (run(replace(config, data=str(data), epochs=1)) / "adapter_model.safetensors").exists()
    shutil.rmtree(data / "mia_data")
    assert run(replace(config, data=str(data), epochs=1, output=str(tmp_path / "other"))).is_dir()
    assert "member documents" not in capsys.readouterr().out


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
    missing = replace(config, model="no/such/model")
    for name in ("out", "file"):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / name / "note" if name == "out" else tmp_path / name).write_text("mine")
        with pytest.raises(ConfigError, match=rf"--output .*{name}: it exists and is not empty"):
            run(replace(missing, output=str(tmp_path / name)))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["note"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_semeval_function(suffix: str, config: RunConfig, tmp_path: Path) -> None:
    for side in ("forget", "retain"):
        rows = read_rows(Path(str(config.data)) / f"{side}.jsonl")
        write(tmp_path / side / f"{side}{suffix}", rows)
    options: dict[str, Any] = {"epochs": 2, "batch_size": 4, "learning_rate": 3e-3}
    (tmp_path / "theirs").mkdir()  # an empty folder is fine
    unlearn(config.model, str(tmp_path / "theirs"), str(tmp_path / "forget"), str(tmp_path / "retain"), **options)
    plain = {name: getattr(config, name) for name in ("model", "output", "data", *options)}
    ours = run(RunConfig(**plain, method="gd", tuning="full", micro_batch_size=8))
    assert_same_weights(ours, tmp_path / "theirs")
    defaults = record(tmp_path / "theirs")["config"]
    assert (defaults["method"], defaults["tuning"]) == ("gd", "full")


def test_both_files_may_stand_in_one_folder_or_be_named_themselves(config: RunConfig) -> None:
    data = Path(str(config.data))
    by_data = load_sides(config)
    in_folder = load_sides(replace(config, data=None, forget=str(data), retain=str(data)))
    files = {side: str(data / f"{side}.jsonl") for side in ("forget", "retain")}
    assert by_data == in_folder == load_sides(replace(config, data=None, **files))
    alone = replace(config, data=None, retain_term="none", forget=files["forget"])
    assert load_sides(alone)[:2] == (by_data[0], [])


def test_everything_wrong_with_the_rows_is_said_at_once(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "forget.jsonl").write_text('{"id": "a-sc1"}\n{broken\n')
    (tmp_path / "retain.jsonl").write_text('{"id": "b-xx1", "input": "i", "output": "", "task": "Task1"}\n')
    for named in ({"data": str(tmp_path)}, {"data": None, "forget": str(tmp_path), "retain": str(tmp_path)}):
        with pytest.raises(DataError) as caught:
            run(replace(config, **named))
        for fault in ("forget.jsonl:1", "forget.jsonl:2", "retain.jsonl:1", "output", "b-xx1"):
            assert fault in str(caught.value)


def test_rows_on_both_sides_are_refused(config: RunConfig, tmp_path: Path) -> None:
    rows = read_rows(Path(str(config.data)) / "forget.jsonl")
    write(tmp_path / "retain.jsonl", [replace(rows[0], id="other-sc1"), rows[3]])
    forget = str(Path(str(config.data)) / "forget.jsonl")
    with pytest.raises(DataError) as caught:
        run(replace(config, data=None, forget=forget, retain=str(tmp_path)))
    assert all(name in str(caught.value) for name in (rows[0].id, "other-sc1", rows[3].id))


def test_rows_that_are_not_there_are_named(config: RunConfig, tmp_path: Path) -> None:
    forget = str(Path(str(config.data)) / "forget.jsonl")
    for retain, fault in (
        (tmp_path, r"retain.jsonl: is missing"),
        (tmp_path / "no", r"--retain .*no: there is no such"),
    ):
        with pytest.raises(DataError, match=fault):
            run(replace(config, data=None, forget=forget, retain=str(retain)))
    with pytest.raises(ConfigError, match=r"--data .*no: is not a directory"):
        run(replace(config, data=str(tmp_path / "no")))
    shutil.copy(forget, tmp_path)
    with pytest.raises(DataError, match=r"retain.jsonl: is missing"):
        run(replace(config, data=str(tmp_path)))


def test_a_row_longer_than_the_context_is_refused_or_cut(config: RunConfig, tmp_path: Path) -> None:
    rows = read_rows(Path(str(config.data)) / "forget.jsonl")
    forget = str(write(tmp_path / "forget.jsonl", [*rows, Row("long-sc1", "What?", "word " * 400, "Task1")]))
    config = replace(config, data=None, forget=forget, retain=str(Path(str(config.data)) / "retain.jsonl"))
    with pytest.raises(DataError, match=r"long-sc1: \d+ tokens, but the model takes 512"):
        run(config)
    assert (run(replace(config, max_length=100, epochs=1)) / "adapter_model.safetensors").exists()


def test_pickled_weights_are_never_loaded(config: RunConfig, tmp_path: Path) -> None:
    shutil.copytree(config.model, tmp_path / "pickled")
    torch.save(load_file(tmp_path / "pickled" / "model.safetensors"), tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"--model .*pickled: its weights cannot be loaded: .*safetensors"):
        run(replace(config, model=str(tmp_path / "pickled")))


def test_options_that_the_model_or_installation_does_not_know(config: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"no/such/model .*its tokenizer cannot be loaded"):
        run(replace(config, model="no/such/model"))
    with pytest.raises(ConfigError, match="--lora_targets q_proj,v_porj: the model has no module v_porj"):
        run(replace(config, lora_targets="q_proj,v_porj"))
    with pytest.raises(ConfigError, match="--report_to wnadb: neither known nor installed"):
        run(replace(config, report_to="wnadb"))


def test_chosen_lora_targets_alone_get_an_adapter(config: RunConfig) -> None:
    names = weights(run(replace(config, lora_targets="q_proj, v_proj", epochs=1)))
    assert {name.split(".")[-3] for name in names} == {"q_proj", "v_proj"}


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_gradient_checkpointing_changes_nothing(tuning: str, config: RunConfig, tmp_path: Path) -> None:
    config = replace(config, tuning=tuning, lora_dropout=0.0, epochs=1)
    plain = run(config)
    other = run(replace(config, output=str(tmp_path / "other"), gradient_checkpointing=True))
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(other)[name], value, rtol=1e-5, atol=1e-6)


def test_a_model_that_cannot_pack_and_a_tokenizer_with_bos(
    config: RunConfig, tmp_path: Path, bos_tokenizer: Any
) -> None:
    torch.manual_seed(0)
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    sizes = {"vocab_size": 400, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 2, "eos_token_id": 1}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **no_dropout))  # type: ignore[arg-type]
    model.save_pretrained(tmp_path / "gpt2")
    bos_tokenizer.save_pretrained(tmp_path / "gpt2")
    config = replace(config, model=str(tmp_path / "gpt2"), retain_term="kl", tuning="full", epochs=1)
    output = run(config)
    first, *_, last = steps(output)
    assert first["retain_loss"] == pytest.approx(0.0, abs=1e-6)
    assert last["forget_loss"] < first["forget_loss"]
    assert AutoModelForCausalLM.from_pretrained(output).config.model_type == "gpt2"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_model_answers_as_the_adapter_does(dtype: str, config: RunConfig, tmp_path: Path) -> None:
    output = run(config)
    merge(str(output), str(tmp_path / "merged"), dtype=dtype)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert {value.dtype for value in weights(tmp_path / "merged").values()} == {getattr(torch, dtype)}
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "merged").encode("The quick brown fox about Ada")])
    with torch.no_grad():
        target, adapter, found = (m(ids).logits.float() for m in (load(config).get_base_model(), load(config), merged))
        target = AutoModelForCausalLM.from_pretrained(config.model)(ids).logits
    assert (adapter - target).abs().max() > 0.1
    tolerance = 1e-5 if dtype == "float32" else 0.1
    torch.testing.assert_close(found, adapter, rtol=tolerance, atol=tolerance)
    with pytest.raises(ConfigError, match=r"--output .*merged: it exists and is not empty"):
        merge(str(output), str(tmp_path / "merged"))


def test_merge_refuses_what_is_no_adapter_or_another_models(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--adapter .*: not an adapter's folder"):
        merge(config.model, str(tmp_path / "merged"))
    output = run(replace(config, epochs=1))
    wider_config = AutoModelForCausalLM.from_pretrained(config.model).config
    wider_config.update({"hidden_size": 64})
    wider = AutoModelForCausalLM.from_config(wider_config)
    wider.save_pretrained(tmp_path / "wider")
    with pytest.raises(ConfigError, match=r"does not fit the model .*wider"):
        merge(str(output), str(tmp_path / "merged"), model=str(tmp_path / "wider"))


def test_the_functions_of_the_package_are_no_modules() -> None:
    assert lume_unlearn.run is run
    assert lume_unlearn.unlearn is unlearn
    assert lume_unlearn.RunConfig is RunConfig
    with pytest.raises(AttributeError):
        lume_unlearn.nothing  # noqa: B018
