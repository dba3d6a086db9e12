"""The model card: the hub's metadata, scores of the right documents, and no private data."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects

from lume_tasks.data import published
from lume_tasks.data.locate import MMLU_QUESTIONS
from lume_tasks.errors import DataError
from lume_unlearn.report.card import push_to_hub, write_card
from lume_unlearn.report.glossary import TASKS

SCORES = {
    "lume_score": {"final_score": 0.5, "mmlu": 0.25},
    "lume_task2": {"forget_knowledge": 0.125, "forget_knowledge_low": 0.0625, "forget_knowledge_high": 0.25},
    "lume_mia": {"loss_auc": 0.75, "zlib_auc": float("nan")},
}
SECRET = "/home/ada-byron"
RECORD: dict[str, Any] = {
    "method": "npo",
    "method_options": {"beta": 0.2, "divergence": "kl", "names": SECRET},
    "arguments": {"learning_rate": 3e-4, "optim": "adamw_torch", "output_dir": SECRET, "hub_token": "byron"},
    "tuning": "lora",
    "lora": {"lora_rank": 8, "lora_targets": ["q_proj"], "base_model_name_or_path": SECRET},
    "versions": {"transformers": "5.0"},
    "data_sha256": {f"{SECRET}/forget.jsonl": "abc123", f"{SECRET}/retain/ada-byron.txt": "def456"},
    "processes": 1,
    "model": {"sha256": "0a1b2c"},
}
HUB = {"repository": "someone/olmo-1b", "revision": "9f8e7d", "sha256": "0a1b2c", "dtype": "float32"}
Write = Callable[..., Path]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A folder with the record that a run leaves."""
    folder = tmp_path / "secret-place" / "npo"
    folder.mkdir(parents=True)
    (folder / "unlearning.json").write_text(json.dumps(RECORD))
    return folder


def test_card_holds_the_scores_in_the_hubs_form(finished, write_results):
    path = write_results(str(finished), SCORES, metadata={"lume_split": "validation"})
    card = ModelCard.load(write_card(finished, [str(path)]))
    results = card.data.eval_results
    assert {(r.dataset_name, r.dataset_type, r.dataset_split, r.metric_type, r.metric_value) for r in results} == {
        ("own data, all tasks", "other", "validation", "final_score", 0.5),
        ("own data, membership inference", "other", "validation", "loss_auc", 0.75),
        ("own data, Task 2: personal data", "other", "validation", "forget_knowledge", 0.125),
    }
    assert (card.data.model_name, card.data.library_name, card.data.base_model) == ("npo", "peft", None)
    assert card.data.tags == ["unlearning", "lume", "npo"]
    assert "| Task 2, forget: facts known | 0.125 | 0.062 to 0.250 | low |" in card.text


def test_card_says_how_the_model_was_made_and_publishes_no_path(finished, write_results):
    """Each text option but a few may hold a path, and a folder may be named after a person."""
    path = str(write_results(str(finished), SCORES))
    text = write_card(finished, [path]).read_text()
    rows = dict(re.findall(r"^\| `?(.+?)`? \| `?(.+?)`? \|$", text, re.MULTILINE))
    assert rows == rows | {"tuning": "lora", "beta": "0.2", "learning_rate": "0.0003", "lora_rank": "8"}
    assert rows == rows | {"model": "0a1b2c", "forget.jsonl": "abc123", "another file": "def456"}
    assert not re.search("byron|secret", text)
    (finished / "unlearning.json").write_text(json.dumps(RECORD | {"model": HUB}))
    card = ModelCard.load(write_card(finished, [path]))
    assert card.data.base_model == "someone/olmo-1b"
    assert "someone/olmo-1b" in card.text
    (finished / "unlearning.json").write_text('{"method": "mine"}')
    write_card(finished, [path])


def published_results(path: Path) -> None:
    """Give results the digests of the published documents, and the number of questions of MMLU."""
    content = json.loads(path.read_text())
    digests = {digest: split for digest, split in published.SPLITS.items() if split == "train"}
    for task, digest in zip((*TASKS, "lume_mia"), (*digests, published.MIA), strict=True):
        content["configs"].setdefault(task, {}).setdefault("metadata", {})[published.DIGEST] = digest
    content["n-samples"]["lume_mmlu_virology"] = {"effective": MMLU_QUESTIONS}
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(("config", "name"), [({}, "LUME"), ({"limit": 4}, "part of LUME")])
def test_lume_and_mmlu_are_named_where_the_results_prove_them(config, name, finished, write_results):
    path = write_results(str(finished), SCORES, config=config)
    published_results(path)
    results = ModelCard.load(write_card(finished, [str(path)])).data.eval_results
    assert {(r.dataset_name, r.dataset_type, r.dataset_split) for r in results} == {
        (f"{name}, all tasks", "lume", "train"),
        ("MMLU", "cais/mmlu", "test"),
        (f"{name}, membership inference", "lume", "all"),
        (f"{name}, Task 2: personal data", "lume", "train"),
    }


def test_unusable_inputs_are_refused(finished, write_results, tmp_path):
    elsewhere = finished.parent.parent / "npo"  # a folder of the same name is another model
    splits = [write_results(str(finished), SCORES, metadata={"lume_split": s}, folder=s) for s in ("all", "test")]
    for name, content in (("broken", "{"), ("other", '{"config": {}}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "unlearning.json").write_text(content)
    for folder, paths, expected in (
        (finished, [write_results(str(elsewhere), SCORES)], f"these are of {elsewhere} (split all)"),
        (finished, splits, f"these are of {finished} (split all); {finished} (split test)"),
        (tmp_path / "broken", splits, "unlearning.json: cannot be read"),
        (tmp_path / "other", splits, "unlearning.json: names no method"),
    ):
        with pytest.raises(DataError, match=re.escape(expected)):
            write_card(folder, list(map(str, paths)))
    assert not (finished / "README.md").exists()


def test_card_by_a_person_is_kept_and_one_by_a_program_replaced(finished, write_results):
    path, card = str(write_results(str(finished), SCORES)), finished / "README.md"
    card.write_text("My notes.")
    with pytest.raises(DataError, match=re.escape(f"{card}: not replaced, since a person may have written it")):
        write_card(finished, [path])
    assert card.read_text() == "My notes."
    card.write_text("# Model Card for Model ID\n[More Information Needed]")  # as peft leaves it
    write_card(finished, [path])
    write_card(finished, [path])  # its own
    assert card.read_text().count("# `npo`") == 1


@pytest.mark.parametrize(("model", "name"), [(RECORD["model"], None), (HUB, "someone/olmo-1b")])
def test_only_model_tokenizer_and_card_without_local_paths_are_uploaded(
    model, name, finished, write_results, monkeypatch
):
    """The other files are what a run or the harness may have left in the folder; some contain rows or paths."""
    calls = []
    hub = "lume_unlearn.report.card.HfApi"
    monkeypatch.setattr(f"{hub}.create_repo", lambda self, name, exist_ok: f"https://hub/{name}")
    for call in ("upload_folder", "upload_file"):
        monkeypatch.setattr(f"{hub}.{call}", lambda self, **options: calls.append(options))
    ours = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    ours += ["adapter_model.safetensors", "model-00001-of-00002.safetensors"]
    ours += ["model.safetensors", "model.safetensors.index.json", "merges.txt", "vocab.json", "chat_template.jinja"]
    others = ["samples_lume_task1_2024-01-01T00-00-00.000000.jsonl", "unlearning.json.partial", ".lock", "notes.txt"]
    others += ["training_args.bin", "forget.jsonl", "pytorch_model.bin", "model-x/model.safetensors", "audit.json"]
    others += [f"{folder}/config.json" for folder in ("checkpoint-1", "best", ".partial", "scores/x", "runs")]
    for file in [*ours, *others]:
        (finished / file).parent.mkdir(parents=True, exist_ok=True)
        (finished / file).touch()
    (finished / "unlearning.json").write_text(json.dumps(RECORD | {"model": model}))
    config = {"r": 8, "base_model_name_or_path": f"{SECRET}/base"}
    (finished / "adapter_config.json").write_text(json.dumps(config))
    args = {"pretrained": "base", "peft": str(finished), "tokenizer": "/secret-place/tokenizer"}
    results = write_results(str(finished), SCORES, folder=str(finished), config={"model_args": args})
    write_card(finished, [str(results)])
    assert push_to_hub(finished, "me/mine") == "https://hub/me/mine"
    sent, folder = calls
    assert json.loads(sent["path_or_fileobj"]) == config | {"base_model_name_or_path": name}
    found = [str(path.relative_to(folder["folder_path"])) for path in finished.rglob("*") if path.is_file()]
    assert any(file.startswith("results_") for file in found)
    uploaded = filter_repo_objects(found, allow_patterns=folder["allow_patterns"], ignore_patterns=None)
    assert sorted(uploaded) == sorted([*ours, "README.md"])
    assert "secret-place" not in (finished / "README.md").read_text()


def test_hostile_names_stay_text(finished, write_results):
    hostile = "a`b|c<img src=x onerror=alert(1)>[x](javascript:1)\x1b[31m\n# d"
    folder = finished.rename(finished.with_name(hostile.replace("/", "")))
    (folder / "unlearning.json").write_text(json.dumps(RECORD | {"method": hostile, "title": hostile}))
    path = write_card(folder, [str(write_results(str(folder), SCORES))])
    text = path.read_text().split("-->", 1)[1]
    outside_code = re.sub(r"`[^`\n]*`", "", text)
    assert "<" not in outside_code
    assert "javascript" not in outside_code
    assert text.count("\n# ") == 1
    assert "\x1b" not in text
