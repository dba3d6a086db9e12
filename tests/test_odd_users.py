"""Ordinary odd users: other model families, data with parts missing, names with spaces, from `run` to scores."""

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lume_tasks.data.files import read_rows
from lume_tasks.models.hf import LumeHF
from lume_unlearn.scoring.score import score
from tests.conftest import Command, make_model, write_rows

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "mistral": {"sliding_window": 16},
    "qwen2": {"tie_word_embeddings": True},
}


def one_task_only(data: Path) -> None:
    for side in ("forget", "retain"):
        rows = read_rows(data / f"{side}.jsonl")
        write_rows(data / f"{side}.jsonl", [row for row in rows if row.task == "Task2"])


def as_parquet(data: Path) -> None:
    from datasets import Dataset

    for side in ("forget", "retain"):
        path = data / f"{side}.jsonl"
        Dataset.from_list([vars(row) for row in read_rows(path)]).to_parquet(path.with_suffix(".parquet"))
        path.unlink()


DATA: dict[str, Callable[[Path], None]] = {
    "one task only": one_task_only,
    "no mia_data": lambda data: shutil.rmtree(data / "mia_data"),
    "no mmlu": lambda data: shutil.rmtree(data / "mmlu"),
    "parquet": as_parquet,
}


def run_and_score(model: Path, data: Path, output: Path, tuning: str, command: Command) -> dict[str, Any]:
    """Unlearn through the command line, load the result as the harness does, and score it."""
    options = ["--method", "npo", "--tuning", tuning, "--num_train_epochs", "1", "--per_device_train_batch_size", "4"]
    code, out, _ = command("run", "--model", model, "--data", data, "--output", output, *options)
    assert code == 0
    assert "lm_eval" in out
    arguments = {"pretrained": str(model), "peft": str(output)} if tuning == "lora" else {"pretrained": str(output)}
    lm = LumeHF(**arguments, device="cpu")
    return score(lm.model, lm.tokenizer, data, limit=2, gen_kwargs={"max_gen_toks": 4}).results["results"]


@pytest.mark.parametrize(
    ("family", "tuning"), [("gpt2", "lora"), ("gpt2", "full"), ("mistral", "lora"), ("qwen2", "full")]
)
def test_other_model_families(family, tuning, tokenizer, data_dir, tmp_path, command):
    model = tmp_path / "my model"
    make_model(family=family, **FAMILIES[family]).save_pretrained(model)
    tokenizer.save_pretrained(model)
    results = run_and_score(model, data_dir, tmp_path / "un learned", tuning, command)
    assert {"lume_task1", "lume_mia", "lume_score"} <= results.keys()


@pytest.mark.parametrize("case", DATA)
def test_data_with_parts_missing(case, model_dir, data_dir, tmp_path, command):
    data = tmp_path / "my data"
    shutil.copytree(data_dir, data)
    DATA[case](data)
    results = run_and_score(model_dir, data, tmp_path / "out", "lora", command)
    assert ("lume_mia" in results) == (data / "mia_data").is_dir()
    assert ("lume_task1" in results) == (case != "one task only")
    assert "forget_regurgitation,none" in results["lume_score"]


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes would load it")
def test_a_quantised_base_that_cannot_be_loaded_is_a_clear_error(model_dir, data_dir, tmp_path, command):
    model = tmp_path / "quantised"
    shutil.copytree(model_dir, model)
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (model / "config.json").write_text(json.dumps(config))
    options = ["--method", "gd", "--model", model, "--data", data_dir, "--output", tmp_path / "out"]
    code, _, message = command("run", *options)
    assert code == 2
    assert f"--model {model}" in message
    assert "bitsandbytes" in message
