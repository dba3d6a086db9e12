"""A run that broke off and was resumed leaves what an uninterrupted one leaves, byte for byte."""

import json
import os
import shutil
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from lume_unlearn.data import imitations
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.registry import METHODS
from lume_unlearn.model import masters
from lume_unlearn.scoring.score import Scores
from lume_unlearn.training.callbacks import record as records
from lume_unlearn.training.callbacks import scores
from lume_unlearn.training.checkpoints import MARK, whole_checkpoints
from tests.conftest import make_model, saved_weights
from tests.faults.runs import Broken, assert_equal, assert_resumes, broken_off, make, record

pytestmark = pytest.mark.faults

# With these, what a method remembers beside the weights changes within a few steps, and makes a difference.
REMEMBERING: dict[str, dict[str, Any]] = {
    "pdu": {"dual_warmup": 0.0},
    "selective": {"retain_weight": 1.0},
    "sugd": {"chunk": 3, "warmup_steps": 0.0},
    "agad": {"chunk": 3},
}


def remembered(checkpoint: Path) -> tuple[dict[str, float], int]:
    """What the method knows beside the weights: its own state, and how many phases after the first have begun."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    rates = [entry["learning_rate"] for entry in state["log_history"]]
    values = state["stateful_callbacks"]["Progress"]["attributes"]["values"]
    return values, sum(after > before for before, after in pairwise(rates))


@pytest.mark.parametrize(("method", "tuning"), zip(METHODS, cycle(("full", "lora")), strict=False))
def test_every_method_resumes_bit_for_bit(method, tuning, inputs, tmp_path):
    options = REMEMBERING.get(method, {})
    whole = make(inputs, tmp_path / "whole", method, tuning, **options)()
    steps = record(whole)["history"][-1]["step"]
    step = steps // 2 + 1 if options else 2 + [*METHODS].index(method) % (steps - 1)
    broken = make(inputs, tmp_path / "broken", method, tuning, **options)
    broken_off(broken, step)
    if options:
        kept = remembered(tmp_path / "broken" / f"checkpoint-{step - 1}")
        assert ({}, 0) != kept != remembered(whole / f"checkpoint-{steps}")
    assert_equal(whole, broken(resume=True))


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("robust", ["sam", "path"])
def test_robust_resumes_bit_for_bit(robust, tuning, inputs, tmp_path):
    assert_resumes(3, inputs, tmp_path, "npo", tuning, robust=robust, path_every=3)


@pytest.mark.parametrize("contexts", [0, 2])
def test_a_target_loss_of_unseen_texts_resumes(contexts, inputs, tmp_path):
    options = {"unseen": str(inputs / "unseen.jsonl"), "learning_rate": 1e-2, "contexts": contexts}
    whole, _ = assert_resumes(4, inputs, tmp_path, "level", **options)  # after the measurement of step 2
    state = json.loads((whole / "checkpoint-4" / "trainer_state.json").read_text())
    values = state["stateful_callbacks"]["Progress"]["attributes"]["values"]
    assert values["shift"] != (0.0 if contexts else values["unseen_nll"])
    lines = (whole / "substitutes.jsonl").read_text().splitlines() if contexts else []
    assert [len(json.loads(line)["contexts"]) for line in lines] == ([2] * 7 if contexts else [])


def test_texts_tied_to_unseen_ones_resume(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(imitations, "templated", lambda *_: set())  # all made-up rows are alike
    options = {"unseen": str(inputs / "unseen.jsonl"), "controls": 2, "answers": 2}
    whole, _ = assert_resumes(3, inputs, tmp_path, "swap", **options)
    plain = make(inputs, tmp_path / "plain", "swap", **(options | {"unseen": None}))()
    assert not all(weight.equal(saved_weights(plain)[name]) for name, weight in saved_weights(whole).items())


def test_terms_between_two_log_entries_are_not_lost(inputs, tmp_path):
    options = {"logging_steps": 3, "num_train_epochs": 3} | REMEMBERING["pdu"]
    whole, _ = assert_resumes(3, inputs, tmp_path, "pdu", **options)
    assert [entry["step"] for entry in record(whole)["history"]] == [1, 3, 6]


@pytest.mark.skipif(not masters.AVAILABLE, reason="this torch has no Tensor.grad_dtype")
@pytest.mark.parametrize(("method", "tuning"), [("kl", "full"), ("sugd", "last:1"), ("rmu", "full")])
def test_bfloat16_weights_resume_from_their_float32_masters(method, tuning, inputs, tmp_path):
    options = {"weights": "masters", "bf16": True} | REMEMBERING.get(method, {})
    whole, _ = assert_resumes(3, inputs, tmp_path, method, tuning, **options)
    assert any(not weight.equal(weight.bfloat16().float()) for weight in saved_weights(whole).values())
    assert json.loads((whole / "config.json").read_text())["dtype"] == "float32"


def test_incomplete_checkpoints_do_not_count(inputs, tmp_path):
    """One without its mark, one with a short file; nor is the record beside them needed."""
    whole = make(inputs, tmp_path / "whole", save_total_limit=0)()
    broken, output = make(inputs, tmp_path / "out", save_total_limit=0), tmp_path / "out"
    broken_off(broken, 4)
    (output / "unlearning.json").unlink()
    (output / "checkpoint-3" / MARK).unlink()
    optimizer = output / "checkpoint-2" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-1])
    assert [path.name for path in whole_checkpoints(output)] == ["checkpoint-1"]
    assert_equal(whole, broken(resume=True))
    assert [path.name for path in whole_checkpoints(output)] == [f"checkpoint-{step}" for step in (4, 3, 2, 1)]


def test_without_a_checkpoint_a_run_starts_anew_and_a_finished_one_is_refused(inputs, tmp_path, caplog):
    broken = make(inputs, tmp_path / "out")
    with pytest.raises(ConfigError, match="--resume: there is no run"):
        broken(resume=True)
    broken_off(broken, 1)
    assert whole_checkpoints(tmp_path / "out") == []
    (tmp_path / "out" / ".partial").mkdir()  # a checkpoint that was being written
    with pytest.raises(ConfigError, match="use --resume"):
        broken()
    assert_equal(make(inputs, tmp_path / "whole")(), broken(resume=True))
    assert "no complete checkpoint" in caplog.text
    with pytest.raises(ConfigError, match="is finished"):
        broken(resume=True)


def test_a_resumed_run_with_other_options_model_or_rows_is_refused(inputs, tmp_path, monkeypatch):
    files = {side: str(inputs / "data" / f"{side}.jsonl") for side in ("forget", "retain")}
    texts = {name: tmp_path / f"{name}.jsonl" for name in ("substitutes", "unseen")}
    texts["substitutes"].write_text('{"text": "fox", "substitute": "cat"}\n')
    shutil.copyfile(inputs / "unseen.jsonl", texts["unseen"])
    given = {"data": None, "substitutes": str(texts["substitutes"]), "unseen": str(texts["unseen"])}
    broken = make(inputs, tmp_path / "out", "level", **(given | files))
    broken_off(broken, 3)
    changes = {
        "learning_rate|seed|contexts": {"learning_rate": 1.0, "seed": 1, "contexts": 2},
        "lora_rank": {"lora_rank": 2},
        "tuning": {"tuning": "full"},
        "model": {"model": str(tmp_path / "model")},
        "forget|retain": {"forget": files["retain"], "retain": files["forget"]},
    }
    shutil.copytree(inputs / "model", tmp_path / "model")
    make_model(seed=1).save_pretrained(tmp_path / "model")
    for names, options in changes.items():
        with pytest.raises(ConfigError) as caught:
            broken(resume=True, **options)
        assert {line.split()[0].strip("-:") for line in str(caught.value).splitlines()} == set(names.split("|"))
    for name, text in (("substitutes", '{"text": "fox", "substitute": "dog"}'), ("unseen", '{"document": "or heard"}')):
        before = texts[name].read_text()
        texts[name].write_text(text + "\n")
        with pytest.raises(ConfigError, match=f"^--{name}: "):
            broken(resume=True)
        texts[name].write_text(before)
    monkeypatch.setattr(records, "processes", lambda: 2)
    with pytest.raises(ConfigError, match="--resume: the run to resume has 1 processes, this one 2; start as many"):
        broken(resume=True)


@pytest.mark.parametrize("name", ["arguments", "data_sha256", "seconds", "processes"])
def test_a_damaged_record_is_named(name, inputs, tmp_path):
    broken = make(inputs, tmp_path / "out", save_steps=3)
    broken_off(broken, 4)
    path = tmp_path / "out" / "checkpoint-3" / "unlearning.json"
    path.write_text(path.read_text().replace(f'"{name}"', f'"{name[::-1]}"'))
    with pytest.raises(ConfigError, match=r"checkpoint-3/unlearning.json cannot be read"):
        broken(resume=True)


def scored(*values: float) -> Any:
    """Give the evaluations these task aggregates."""
    results = [
        Scores({"higher_is_better": {}, "results": {"lume_score": {"task_aggregate,none": value}}}) for value in values
    ]
    return mock.patch.object(scores, "score", side_effect=results)


def test_the_best_weights_survive_while_they_are_replaced(inputs, tmp_path):
    broken = make(inputs, tmp_path / "out", num_train_epochs=3, eval_strategy="epoch")
    own = os.replace

    def replace(old, new):
        if Path(new).name == "best" and (tmp_path / "out" / "scores" / "checkpoint-2").exists():
            raise Broken
        own(old, new)

    with scored(0.5, 0.9, 0.9, 0.8):
        with mock.patch.object(os, "replace", replace), pytest.raises(Broken):
            broken()
        broken(resume=True)
    best = json.loads((tmp_path / "out" / "best" / "best.json").read_text())
    assert (best["value"], best["step"]) == (0.9, 4)
    assert {path.name for path in (tmp_path / "out").iterdir() if path.name.startswith("best")} == {"best"}


def test_scores_while_training_survive(inputs, tmp_path):
    """The best weights are remembered, and an epoch that ended before it was scored is scored."""
    broken = make(inputs, tmp_path / "out", num_train_epochs=3, eval_strategy="epoch")
    best, folder = tmp_path / "out" / "best" / "best.json", tmp_path / "out" / "scores"
    with scored(0.5, 0.9, 0.8, 0.7) as score:
        broken_off(broken, 5)
        shutil.rmtree(folder / "checkpoint-4")
        best.write_text(json.dumps({"metric": "lume_score.task_aggregate", "value": 0.85, "step": 2}))
        broken(resume=True)
        assert score.call_count == 4
    assert json.loads(best.read_text())["step"] == 2
    assert all((folder / f"checkpoint-{step}" / "results_lume.json").is_file() for step in (4, 6))
