"""The model card: the hub's metadata, scores of the right documents, and no private data."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects

from lume_tasks.data import published
from lume_tasks.data.locate import MMLU_SUBJECTS
from lume_unlearn import cli
from lume_unlearn.config import RunConfig
from lume_unlearn.report.glossary import TASKS
from lume_unlearn.training.record import Record

SCORES = {
    "lume_score": {"final_score": 0.5, "mmlu": 0.25},
    "lume_task2": {"forget_knowledge": 0.125, "forget_knowledge_low": 0.0625, "forget_knowledge_high": 0.25},
    "lume_mia": {"loss_auc": 0.75, "zlib_auc": float("nan")},
}
Write = Callable[..., Path]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A folder with the record that a run leaves."""
    folder = tmp_path / "secret-place" / "npo"
    folder.mkdir(parents=True)
    config = RunConfig(model=str(tmp_path / "secret-place" / "base"), output=str(folder), method="npo", tuning="lora")
    Record(config, {str(tmp_path / "secret-place" / "forget.jsonl"): "abc123"}).write(Path(config.output), [])
    return folder


def main(folder: Path, *results: Path) -> int:
    return cli.main(["card", "--model_dir", str(folder), "--results", *map(str, results)])


def results_of_the_hub(card: ModelCard) -> dict[tuple[str, str], Any]:
    return {(result.dataset_name, result.metric_type): result.metric_value for result in card.data.eval_results}


def test_card_holds_the_scores_in_the_hubs_form(finished: Path, write_results: Write) -> None:
    path = write_results(str(finished), SCORES, metadata={"lume_split": "validation"})
    assert main(finished, path) == 0
    card = ModelCard.load(finished / "README.md")
    assert results_of_the_hub(card) == {
        ("own data, all tasks, 8 rows", "final_score"): 0.5,
        ("multiple choice, 0 questions in 0 subjects, not all of MMLU", "mmlu"): 0.25,
        ("own data, membership inference, 4 rows", "loss_auc"): 0.75,
        ("own data, Task 2: personal data, 4 rows", "forget_knowledge"): 0.125,
    }
    assert {result.dataset_split for result in card.data.eval_results} == {"validation", None}
    assert {result.dataset_type for result in card.data.eval_results} == {"other", "multiple-choice"}
    assert card.data.model_name == "npo"
    assert card.data.library_name == "peft"
    assert card.data.tags == ["unlearning", "lume", "npo"]
    assert "| Task 2, forget: facts known | 0.125 | 0.062 to 0.250 | low |" in card.text
    assert "| multiple choice | 0.250 |" in card.text
    assert "| Task 2: personal data | `own data` | `4` | `unknown` |" in card.text
    assert "| `transformers` | " in card.text
    assert "| `forget.jsonl` | `abc123` |" in card.text
    assert "split validation" in card.text


def published_results(path: Path, counts: dict[str, dict[str, int]]) -> None:
    """Give results the digests of the published documents, and these numbers of documents."""
    content = json.loads(path.read_text())
    digests = {digest: split for digest, split in published.SPLITS.items() if split == "train"}
    for task, digest in zip((*TASKS, "lume_mia"), (*digests, published.MIA), strict=True):
        content["configs"].setdefault(task, {}).setdefault("metadata", {})[published.DIGEST] = digest
    content["n-samples"] |= counts
    path.write_text(json.dumps(content))


def test_lume_and_mmlu_are_named_where_the_results_prove_them(finished: Path, write_results: Write) -> None:
    path = write_results(str(finished), SCORES)
    counts = {f"lume_mmlu_{subject}": {"original": 246, "effective": 246} for subject in MMLU_SUBJECTS}
    counts["lume_mmlu_virology"] = {"original": 266, "effective": 266}
    published_results(path, counts)
    assert main(finished, path) == 0
    results = ModelCard.load(finished / "README.md").data.eval_results
    assert {(r.dataset_name, r.dataset_type, r.dataset_split) for r in results} == {
        ("LUME, all tasks, 8 rows", "lume", "train"),  # as many as this file has of Task 2 and of the documents
        ("MMLU", "cais/mmlu", "test"),
        ("LUME, membership inference, 4 rows", "lume", "all"),
        ("LUME, Task 2: personal data, 4 rows", "lume", "train"),
    }


def test_scores_of_some_of_the_rows_are_of_a_part_of_lume(finished: Path, write_results: Write) -> None:
    path = write_results(str(finished), SCORES)
    published_results(path, {"lume_task2": {"original": 9, "effective": 4}})
    assert main(finished, path) == 0
    names = {result.dataset_name for result in ModelCard.load(finished / "README.md").data.eval_results}
    assert {"part of LUME, Task 2: personal data, 4 rows", "part of LUME, all tasks, 8 rows"} <= names


def test_no_local_path_is_published(finished: Path, write_results: Write) -> None:
    place = finished.parent
    record = json.loads((finished / "unlearning.json").read_text())
    record["config"] |= {"alternatives": f"{place}/alternatives.jsonl", "adapters": f"{place}/a1, {place}/a2"}
    record["data_sha256"][str(place / "other" / "forget.jsonl")] = "def456"
    (finished / "unlearning.json").write_text(json.dumps(record))
    args = {"pretrained": "base", "peft": str(finished), "tokenizer": "/secret-place/tokenizer"}
    assert main(finished, write_results(str(finished), SCORES, config={"model_args": args})) == 0
    text = (finished / "README.md").read_text()
    assert "secret-place" not in text
    assert "| `alternatives` | `alternatives.jsonl` |" in text
    assert "| `adapters` | `a1, a2` |" in text
    assert "| `forget.jsonl` | `abc123` |\n| `forget.jsonl` | `def456` |" in text
    assert ModelCard.load(finished / "README.md").data.base_model is None


def test_a_base_model_on_the_hub_is_linked(finished: Path, write_results: Write) -> None:
    record = json.loads((finished / "unlearning.json").read_text())
    record["config"]["model"] = "someone/olmo-1b"
    (finished / "unlearning.json").write_text(json.dumps(record))
    assert main(finished, write_results(str(finished), SCORES)) == 0
    assert ModelCard.load(finished / "README.md").data.base_model == "someone/olmo-1b"


def test_results_must_be_of_the_folder_or_a_copy_in_one_setting(
    finished: Path, write_results: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(finished, write_results("/m/gd", SCORES)) == 1
    assert f"are not of {finished}, but of /m/gd" in capsys.readouterr().err
    # A folder of the same name elsewhere is another model.
    assert main(finished, write_results(str(finished.parent.parent / "npo"), SCORES)) == 1
    assert f"are not of {finished}, but of" in capsys.readouterr().err
    paths = [write_results(str(finished), SCORES, metadata={"lume_split": s}, folder=s) for s in ("all", "test")]
    assert main(finished, *paths) == 1
    assert f"hold several results of {finished}" in capsys.readouterr().err
    assert not (finished / "README.md").exists()
    copy = shutil.copytree(finished, finished.with_name("copy"))
    assert main(finished, write_results(str(copy), SCORES)) == 0


def test_card_by_a_person_is_kept_and_one_by_a_program_replaced(
    finished: Path, write_results: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path, card = write_results(str(finished), SCORES), finished / "README.md"
    card.write_text("My notes.")
    assert main(finished, path) == 1
    assert f"{card}: not written by a program" in capsys.readouterr().err
    assert card.read_text() == "My notes."
    card.write_text("# Model Card for Model ID\n[More Information Needed]")  # as peft leaves it
    assert main(finished, path) == 0
    assert main(finished, path) == 0  # its own
    assert card.read_text().count("# `npo`") == 1


@pytest.mark.parametrize(
    ("record", "message"),
    [(None, "no usable unlearning.json"), ("{", "no usable unlearning.json"), ('{"config": {}}', "another version")],
)
def test_a_folder_without_a_record_is_refused(
    tmp_path: Path, write_results: Write, capsys: pytest.CaptureFixture[str], record: str | None, message: str
) -> None:
    if record is not None:
        (tmp_path / "unlearning.json").write_text(record)
    assert main(tmp_path, write_results(str(tmp_path), SCORES)) == 1
    assert message in capsys.readouterr().err


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What would have been uploaded, one entry a call."""
    calls: list[dict[str, Any]] = []
    hub = "lume_unlearn.report.card.HfApi"
    monkeypatch.setattr(f"{hub}.create_repo", lambda self, name, exist_ok: f"https://hub/{name}")
    for call in ("upload_folder", "upload_file"):
        monkeypatch.setattr(f"{hub}.{call}", lambda self, **options: calls.append(options))
    return calls


def push(folder: Path, results: Path) -> int:
    return cli.main(["card", "--model_dir", str(folder), "--results", str(results), "--push_to_hub", "me/mine"])


def test_only_model_tokenizer_and_card_are_uploaded(
    finished: Path, write_results: Write, uploads: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The other files are what a run or the harness may have left in the folder; some contain rows."""
    ours = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    ours += ["adapter_config.json", "adapter_model.safetensors", "model-00001-of-00002.safetensors"]
    ours += ["model.safetensors", "model.safetensors.index.json", "merges.txt", "vocab.json", "chat_template.jinja"]
    others = ["samples_lume_task1_2024-01-01T00-00-00.000000.jsonl", "unlearning.json.partial", ".lock", "notes.txt"]
    others += ["training_args.bin", "forget.jsonl", "pytorch_model.bin", "model-x/model.safetensors", "audit.json"]
    others += [f"{folder}/config.json" for folder in ("checkpoint-1", "best", ".partial", "scores/x", "runs")]
    for name in [*ours, *others]:
        (finished / name).parent.mkdir(parents=True, exist_ok=True)
        (finished / name).touch()
    (finished / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/olmo-1b"}')
    assert push(finished, write_results(str(finished), SCORES, folder=str(finished))) == 0
    assert "https://hub/me/mine" in capsys.readouterr().out
    (upload,) = uploads
    found = [str(path.relative_to(upload["folder_path"])) for path in finished.rglob("*") if path.is_file()]
    assert any(name.startswith("results_") for name in found)
    sent = filter_repo_objects(found, allow_patterns=upload["allow_patterns"], ignore_patterns=None)
    assert sorted(sent) == sorted([*ours, "README.md"])


def test_adapter_is_uploaded_without_the_path_of_its_model(
    finished: Path, write_results: Write, uploads: list[dict[str, Any]]
) -> None:
    config = {"r": 8, "base_model_name_or_path": str(finished.parent / "base")}
    (finished / "adapter_config.json").write_text(json.dumps(config))
    assert push(finished, write_results(str(finished), SCORES)) == 0
    file, folder = uploads
    assert json.loads(file["path_or_fileobj"]) == config | {"base_model_name_or_path": "base"}
    assert folder["allow_patterns"] == ["README.md"]
    assert json.loads((finished / "adapter_config.json").read_text()) == config


def test_hostile_names_stay_text(finished: Path, write_results: Write) -> None:
    hostile = "a`b|c<img src=x onerror=alert(1)>[x](javascript:1)\x1b[31m\n# d"
    folder = finished.rename(finished.with_name(hostile.replace("/", "")))
    assert main(folder, write_results(str(folder), SCORES)) == 0
    text = (folder / "README.md").read_text().split("-->", 1)[1]
    outside_code = re.sub(r"`[^`\n]*`", "", text)
    assert "<" not in outside_code
    assert "javascript" not in outside_code
    assert text.count("\n# ") == 1
    assert "\x1b" not in text
