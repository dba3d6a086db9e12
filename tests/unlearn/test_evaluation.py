"""Scores while training: written as the harness writes them, the best weights kept, the training left as it is."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lume_unlearn import scoring
from lume_unlearn.config import ConfigError, RunConfig
from lume_unlearn.unlearning import run


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    score = scoring.score
    monkeypatch.setattr(
        scoring, "score", lambda *args, **kwargs: score(*args, gen_kwargs={"max_gen_toks": 8}, **kwargs)
    )


def options(model_dir: Path, data_dir: Path, output: Path) -> RunConfig:
    return RunConfig(
        model=str(model_dir),
        output=str(output),
        data=str(data_dir),
        method="gd",
        tuning="full",
        epochs=2,
        batch_size=6,
        learning_rate=1e-2,
        evaluate_every="epoch",
        evaluate_tasks="lume_task1,lume_mia,lume_score",
        best_metric="lume_mia.loss_auc",
    )


def test_scores_of_each_epoch_and_the_best_weights(model_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    config = options(model_dir, data_dir, tmp_path / "out")
    run(config)
    results = {step: tmp_path / "out" / "scores" / f"checkpoint-{step}" / "results_lume.json" for step in (2, 4)}
    aucs = {
        step: json.loads(path.read_text())["results"]["lume_mia"]["loss_auc,none"] for step, path in results.items()
    }
    best = json.loads((tmp_path / "out" / "best" / "best.json").read_text())
    # A lower AUC is better here, says the task; the first of two equal ones stays.
    assert best == {
        "metric": "lume_mia.loss_auc",
        "value": min(aucs.values()),
        "step": min(aucs, key=lambda s: aucs[s]),
    }
    AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "best")


def test_scoring_does_not_change_the_training(model_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    scored = options(model_dir, data_dir, tmp_path / "scored")
    run(scored)
    run(replace(scored, output=str(tmp_path / "plain"), evaluate_every="none"))
    states = [AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("scored", "plain")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_what_it_needs_is_said_before_anything_is_loaded() -> None:
    with pytest.raises(ConfigError, match="--best_metric"):
        RunConfig(model="m", output="o", method="gd", evaluate_every="epoch", best_metric="lume_mmlu.acc")
    with pytest.raises(ConfigError, match="--data"):
        RunConfig(model="m", output="o", method="ga", forget="f", evaluate_every="epoch")
