"""`finetune`: what it trains on, when it ends, and what it leaves."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lume_tasks.data.rows import Row
from lume_tasks.errors import DataError
from lume_unlearn import UnlearningArguments, finetune
from lume_unlearn.data.encode import Encoder
from lume_unlearn.data.sources import finetune_rows
from lume_unlearn.errors import ConfigError
from lume_unlearn.training.callbacks.memorised import ranked_first
from lume_unlearn.training.run import finetune_files
from tests.conftest import assert_same_weights, make_rows, read_run, write_rows
from tests.unlearn.rows import nll


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Rows of both sides, a member document that is a row's text, and one that no row holds."""
    folder = tmp_path / "my data"
    for side in ("forget", "retain"):
        write_rows(folder / f"{side}.jsonl", make_rows(side))
    (folder / "mia_data").mkdir()
    row = make_rows("forget")[0]
    members = [f"{row.input} {row.output}", "Ada kept a  diary. It is lost."]
    lines = "".join(json.dumps({"document": text}) + "\n" for text in members)
    (folder / "mia_data" / "member.jsonl").write_text(lines)
    (folder / "mia_data" / "nonmember.jsonl").write_text('{"document": "Nobody saw this one."}\n')
    return folder


def test_target_learns_all_texts_once_and_retrained_model_the_retain_rows(data, tmp_path, tokenizer):
    more = tmp_path / "more.jsonl"
    more.write_text('{"document": "Paris is in France."}\n')
    forget, retain = ([row.id for row in make_rows(side)] for side in ("forget", "retain"))
    rows = finetune_rows(str(data), "all", "all", str(more))
    assert [row.id for row in rows] == [*forget, *retain, "member 2", "text 1"]
    assert [row.id for row in finetune_rows(str(data), "all", "retain", str(more))] == [*retain, "text 1"]
    found = Encoder(tokenizer, "text").one(rows[-2])
    assert found.input_ids == found.labels
    assert tokenizer.decode(found.input_ids[:-1]) == "Ada kept a  diary. It is lost."
    assert tokenizer.decode(Encoder(tokenizer, "text").one(Row("text 1", "word", "", "")).input_ids[:-1]) == "word"


def test_ranked_first_by_hand():
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    assert ranked_first(logits, torch.tensor([1, 2, 0]), None).tolist() == [1.0, 0.0, 1.0]


def arguments(output: Path, **options: Any) -> UnlearningArguments:
    plain = {"num_train_epochs": 60, "learning_rate": 1e-2, "per_device_train_batch_size": 4, "disable_tqdm": True}
    return UnlearningArguments(output_dir=str(output), **(plain | options))


def train(model_dir: Path, data: Path, output: Path, until: float = 0.95, **options: Any) -> Path:
    loading = {name: options.pop(name) for name in ("tuning", "lora_dropout", "texts", "resume") if name in options}
    return finetune_files(str(model_dir), arguments(output, **options), data=str(data), until=until, **loading)


def test_training_ends_when_the_rows_are_memorised(data, model_dir, tmp_path):
    """And leaves no checkpoint to train on from."""
    output = train(model_dir, data, tmp_path / "target", save_steps=1)
    record = read_run(output)
    assert record["finished"]
    assert record["ranked_first"] >= 0.95
    assert 1 < len(record["memorised"]) < 60
    assert all(entry["ranked_first"] < 0.95 for entry in record["memorised"][:-1])
    assert (output / "tokenizer.json").is_file()
    assert record["arguments"]["loss_on"] == "text"
    assert record["finetune"] == {"until": 0.95}
    steps = len(record["memorised"]) * 4  # an epoch has 4 steps
    assert not (output / f"checkpoint-{steps}").exists()
    assert (output / f"checkpoint-{steps - 1}").is_dir()


@pytest.mark.usefixtures("short_answers")
def test_the_best_weights_are_those_that_have_memorised_the_rows(data, model_dir, tmp_path):
    options = {"num_train_epochs": 20, "eval_strategy": "steps", "eval_steps": 40}
    output = train(model_dir, data, tmp_path / "out", until=0, **options)
    assert {path.name for path in (output / "scores").iterdir()} == {"checkpoint-40", "checkpoint-80"}
    assert json.loads((output / "best" / "best.json").read_text())["step"] == 80


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_resumed_training_equals_uninterrupted_training(data, model_dir, tmp_path, tuning):
    changes = {"num_train_epochs": 3, "until": 0.999, "save_steps": 4, "tuning": tuning, "lora_dropout": 0.1}
    whole = train(model_dir, data, tmp_path / "whole", **changes)
    stopped = tmp_path / "stopped"
    shutil.copytree(whole / "checkpoint-8", stopped / "checkpoint-8")
    train(model_dir, data, stopped, resume=True, **changes)
    assert_same_weights(whole, stopped)
    assert read_run(whole)["memorised"] == read_run(stopped)["memorised"]


def test_a_model_in_memory_learns_texts(model, tokenizer, tmp_path):
    rows = [{"text": f"The {colour} fox sleeps. The river is {colour}."} for colour in ("red", "blue", "green")]
    args = arguments(tmp_path / "out", num_train_epochs=20)
    trained = finetune(model, tokenizer, rows, args, until=0)
    assert not trained.training
    encoded = Encoder(tokenizer, "text").one(Row("a-sc1", "The red fox sleeps.", "The river is red.", ""))
    assert nll(trained, encoded).mean() < 1
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_bad_input_is_named(data, model_dir, tmp_path):
    with pytest.raises(ConfigError, match=r"--texts nowhere\.jsonl: there is no such file"):
        train(model_dir, data, tmp_path / "a", texts="nowhere.jsonl")
    (data / "mia_data" / "member.jsonl").write_text(json.dumps({"document": "word " * 600}) + "\n")
    with pytest.raises(DataError, match=r"member 1: \d+ tokens, but the model takes 512"):
        train(model_dir, data, tmp_path / "b")
