"""`lume-unlearn finetune`: what it trains on, when it ends, and what it leaves."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from lume_tasks.data.rows import Row
from lume_tasks.errors import DataError
from lume_unlearn.cli import main
from lume_unlearn.data.encode import encode_row
from lume_unlearn.data.texts import load_texts
from lume_unlearn.errors import ConfigError
from lume_unlearn.training.finetune import finetune
from lume_unlearn.training.memorised import ranked_first
from lume_unlearn.training.options import FinetuneConfig
from tests.conftest import assert_same_weights, make_rows, read_run, write_rows


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


def test_the_target_learns_all_texts_once_and_the_twin_the_retain_rows(data: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text('{"document": "Paris is in France."}\n')
    sides = {side: [row.id for row in make_rows(side)] for side in ("forget", "retain")}
    target = load_texts(str(data), "all", "all", str(more))
    assert [row.id for row in target.forget] == [*sides["forget"], *sides["retain"], "member 2", "text 1"]
    assert [Path(path).name for path in target.checksums] == [
        "forget.jsonl",
        "retain.jsonl",
        "member.jsonl",
        "more.jsonl",
    ]
    twin = load_texts(str(data), "all", "retain", str(more))
    assert [row.id for row in twin.forget] == [*sides["retain"], "text 1"]


def test_a_document_is_trained_on_as_it_is(data: Path, model_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    document = next(row for row in load_texts(str(data), "all", "all", None).forget if row.id == "member 2")
    found = encode_row(tokenizer, document, "text")
    assert found.input_ids == found.labels
    assert tokenizer.decode(found.input_ids[:-1]) == "Ada kept a  diary. It is lost."


def test_ranked_first_by_hand() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    assert ranked_first(logits, torch.tensor([1, 2, 0]), None).tolist() == [1.0, 0.0, 1.0]


def options(model_dir: Path, data: Path, output: Path, **changes: object) -> FinetuneConfig:
    plain = {"epochs": 60, "learning_rate": 1e-2, "batch_size": 4, "until": 0.95}
    return FinetuneConfig(str(model_dir), str(output), str(data), **(plain | changes))  # type: ignore[arg-type]


def test_training_ends_when_the_rows_are_memorised(data: Path, model_dir: Path, tmp_path: Path) -> None:
    output = finetune(options(model_dir, data, tmp_path / "target"))
    record = read_run(output)
    assert record["finished"]
    assert record["ranked_first"] >= 0.95
    assert 1 < len(record["memorised"]) < 60
    assert all(entry["ranked_first"] < 0.95 for entry in record["memorised"][:-1])
    assert (output / "tokenizer.json").is_file()
    assert record["config"]["loss_on"] == "text"


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_resumed_training_equals_uninterrupted_training(
    data: Path, model_dir: Path, tmp_path: Path, tuning: str
) -> None:
    changes = {"epochs": 3, "until": 0.999, "save_steps": 4, "tuning": tuning, "lora_dropout": 0.1}
    whole = finetune(options(model_dir, data, tmp_path / "whole", **changes))
    stopped = tmp_path / "stopped"
    shutil.copytree(whole / "checkpoint-8", stopped / "checkpoint-8")
    finetune(options(model_dir, data, stopped, **changes, resume=True))
    assert_same_weights(whole, stopped)
    assert read_run(whole)["memorised"] == read_run(stopped)["memorised"]


def test_a_run_that_is_done_leaves_no_checkpoint_to_train_on_from(data: Path, model_dir: Path, tmp_path: Path) -> None:
    output = finetune(options(model_dir, data, tmp_path / "out", until=0.05, save_steps=1))
    record = json.loads((output / "unlearning.json").read_text())
    steps = len(record["memorised"]) * 4  # an epoch has 4 steps
    assert not (output / f"checkpoint-{steps}").exists()
    assert (output / f"checkpoint-{steps - 1}").is_dir()
    assert record["finetune"] == {"rows": "all", "texts": None, "until": 0.05}


def test_a_text_without_a_space_is_trained_on_as_it_is(model_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    assert tokenizer.decode(encode_row(tokenizer, Row("text 1", "word", "", ""), "text").input_ids[:-1]) == "word"


def test_bad_input_is_named(data: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"--texts nowhere\.jsonl: there is no such file"):
        finetune(options(model_dir, data, tmp_path / "a", texts="nowhere.jsonl"))
    (data / "mia_data" / "member.jsonl").write_text(json.dumps({"document": "word " * 600}) + "\n")
    with pytest.raises(DataError, match=r"member 1: \d+ tokens, but the model takes 512"):
        finetune(options(model_dir, data, tmp_path / "b"))
    assert main(["run", "--method", "finetune", "--model", str(model_dir), "--output", str(tmp_path / "c")]) == 1
    assert "use the command `lume-unlearn finetune`" in capsys.readouterr().err
