"""Which tasks are scored, and scores while training: files, best weights, and that they do not change training."""

import json
import math
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from transformers import AutoModelForCausalLM

from lume_tasks.data.locate import MMLU_VARIABLE
from lume_tasks.errors import DataError
from lume_unlearn.errors import ConfigError
from lume_unlearn.evaluation import harness
from lume_unlearn.evaluation.callback import Evaluation
from lume_unlearn.evaluation.harness import tasks_for
from lume_unlearn.model import load
from lume_unlearn.training.run import run
from tests.conftest import Command, RunMaker, assert_same_weights, make_rows, write_rows

ROWS = ["lume_task1", "lume_task2", "lume_task3"]


def test_tasks_are_those_that_the_data_has(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MMLU_VARIABLE, raising=False)
    assert tasks_for(data_dir) == [*ROWS, "lume_mia", "lume_mmlu", "lume_score"]
    for side in ("forget", "retain"):
        shutil.copy(data_dir / f"{side}.jsonl", tmp_path)
        write_rows(tmp_path / "train" / f"{side}.jsonl", [row for row in make_rows(side) if row.task == "Task2"])
    assert tasks_for(tmp_path) == [*ROWS, "lume_score"]
    assert tasks_for(tmp_path, "train") == ["lume_task2", "lume_score"]
    monkeypatch.setenv(MMLU_VARIABLE, str(data_dir / "mmlu"))
    assert tasks_for(tmp_path, "train") == ["lume_task2", "lume_mmlu", "lume_score"]


def test_mean_of_the_task_scores_turns_forget_scores_around_and_leaves_out_missing_ones() -> None:
    task1 = {"forget_knowledge,none": 0.25, "retain_knowledge,none": 0.5, "forget_regurgitation,none": math.nan}
    results = {"results": {"lume_task1": task1, "lume_score": {"retain_knowledge,none": 0.5}}}
    assert harness.headline(results) == {"retain knowledge": 0.5, harness.MEAN: 0.625}
    assert harness.headline({"results": {}}) == {}


OPTIONS: dict[str, Any] = {"tuning": "full", "batch_size": 6, "learning_rate": 1e-2, "evaluate_every": "epoch"}
OPTIONS |= {"evaluate_tasks": "lume_task1,lume_mia,lume_score", "best_metric": "lume_mia.loss_auc"}


@pytest.mark.usefixtures("short_answers")
def test_scores_of_each_epoch_and_the_best_weights_without_a_change_of_the_training(
    make_run: RunMaker, tmp_path: Path
) -> None:
    config = make_run("gd", **OPTIONS)
    run(config)
    aucs = {}
    for step in (2, 4):
        path = tmp_path / "out" / "scores" / f"checkpoint-{step}" / "results_lume.json"
        aucs[step] = json.loads(path.read_text())["results"]["lume_mia"]["loss_auc,none"]
    best = json.loads((tmp_path / "out" / "best" / "best.json").read_text())
    # A lower AUC is better here, says the task.
    step = min(aucs, key=lambda s: aucs[s])
    assert (best["metric"], best["value"], best["step"]) == ("lume_mia.loss_auc", aucs[step], step)
    assert best["scores"]["lume_mia.loss_auc"] == aucs[step]
    AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "best")
    assert_same_weights(tmp_path / "out", run(make_run("gd", "plain", **OPTIONS | {"evaluate_every": "none"})))


def scores(aggregate: float | None, *task1: float) -> dict[str, Any]:
    """Results with this aggregate and these four scores of Task 1."""
    names = [f"{side}_{kind},none" for side in ("forget", "retain") for kind in ("regurgitation", "knowledge")]
    score = {} if aggregate is None else {"task_aggregate,none": aggregate}
    return {
        "higher_is_better": {},
        "results": {"lume_score": score, "lume_task1": dict(zip(names, task1, strict=True))},
    }


@pytest.mark.parametrize(
    ("epochs", "step"),
    [
        ([scores(0.0, 1, 1, 1, 1), scores(0.0, 0.2, 1, 1, 1), scores(0.0, 0.4, 1, 1, 1)], 4),  # by the mean
        ([scores(0.3, 1, 1, 1, 0), scores(0.0, 0, 0, 1, 1), scores(0.3, 1, 1, 1, 0)], 6),  # by the aggregate; later one
        ([scores(None, 1, 1, 1, 1), scores(None, 0, 1, 1, 1), scores(None, 1, 1, 1, 1)], 4),  # a task is missing
    ],
)
def test_the_best_epoch_and_what_is_printed(
    epochs: list[dict[str, Any]], step: int, model_dir: Path, data_dir: Path, tmp_path: Path, command: Command
) -> None:
    where = ["--model", model_dir, "--data", data_dir, "--output", tmp_path / "out"]
    options = ["--evaluate_every", "epoch", "--epochs", 3, "--batch_size", 6]
    with mock.patch.object(Evaluation, "_score", side_effect=epochs):
        code, out, _ = command("run", "--method", "gd", *where, *options)
    assert code == 0
    printed = out.splitlines()
    assert len([line for line in printed if line.startswith("step ") and "mean of the task scores" in line]) == 3
    kept = json.loads((tmp_path / "out" / "best" / "best.json").read_text())
    assert kept["step"] == step
    mean = kept["scores"]["mean of the task scores"]
    assert printed[-1].startswith(f"Best scores: step {step}, kept in {tmp_path / 'out' / 'best'} (")
    assert f"mean of the task scores {mean:.3f}" in printed[-1]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "--evaluate_tasks lume_task1,lume_mia,lume_score: .* has no data for lume_mia in split all; it has data"),
        ({"evaluate_tasks": None}, "--best_metric lume_mia.loss_auc: .* has no data for .*lume_mia"),
        ({"evaluate_tasks": "lume_x", "best_metric": "lume_x.y"}, "--evaluate_tasks lume_x: there is no such task"),
    ],
)
def test_tasks_without_data_are_refused_before_loading(
    changed: dict[str, Any], said: str, make_run: RunMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "load_for_training", lambda *_: pytest.fail("the model was loaded"))
    for side in ("forget", "retain"):
        write_rows(tmp_path / "data" / f"{side}.jsonl", make_rows(side, 2))  # of Task 1
    options = OPTIONS | {"data": str(tmp_path / "data")}
    with pytest.raises((ConfigError, DataError), match=said):
        run(make_run("gd", **options | changed))


def test_a_failing_evaluation_is_a_warning_and_the_model_is_saved(
    make_run: RunMaker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def score(*_: Any) -> Any:
        raise RuntimeError("out of patience")

    monkeypatch.setattr(Evaluation, "_score", score)
    output = run(make_run("gd", **OPTIONS))
    assert caplog.text.count("scoring failed (RuntimeError: out of patience); training continues") == 2
    AutoModelForCausalLM.from_pretrained(output)
