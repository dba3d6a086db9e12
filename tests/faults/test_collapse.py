"""The collapse monitor: each policy, what it says, and that it changes nothing."""

from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from lume_tasks.data.rows import SIDES
from lume_unlearn.errors import ConfigError
from lume_unlearn.training.monitor import verdict
from lume_unlearn.training.run import run
from tests.conftest import assert_same_weights
from tests.faults.runs import assert_equal, broken_off, make_config, nll_by_hand, record, resumed

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("little_to_collect")]

# Ascent without a retain term, fast: the retain rows are 1.0 nats worse at the fourth step.
COLLAPSING: dict[str, Any] = {"method": "ga", "tuning": "full", "learning_rate": 5e-3, "warmup": 0.0, "epochs": 4}


def steps(output: Path) -> list[int]:
    return [entry["step"] for entry in record(output)["watched"]]


def test_measurements_are_token_means_of_the_rows(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = run(make_config(inputs, tmp_path / "out", tuning="full"))
    assert steps(output) == [0, 2, 4]
    first, _, last = record(output)["watched"]
    for folder, entry in ((inputs / "model", first), (output, last)):
        for side in SIDES:
            assert entry[f"{side}_nll"] == pytest.approx(nll_by_hand(folder, inputs, side), rel=1e-5)
    said = ", ".join(f"{side} NLL {first[f'{side}_nll']:.3f} -> {last[f'{side}_nll']:.3f}" for side in SIDES)
    printed = capsys.readouterr().out
    assert f"4 optimiser steps: {said} nats a token (of 7 and 5 rows); " in printed
    assert "tokens a second without padding, peak memory" in printed


def test_the_monitor_does_not_change_training(inputs: Path, tmp_path: Path) -> None:
    often, never = (
        run(make_config(inputs, tmp_path / str(every), watch_steps=every, save_steps=0)) for every in (1, 0)
    )
    assert (steps(often), steps(never)) == ([0, 1, 2, 3, 4], [0, 4])
    assert record(often)["history"] == record(never)["history"]
    assert_same_weights(often, never)


def test_stop(inputs: Path, tmp_path: Path) -> None:
    vector = {"method": "task-vector", "params": {"scale": 1e4}}
    for name, options, advice in (("rate", {}, "lower --learning_rate"), ("scale", vector, "lower --scale")):
        with pytest.raises(ConfigError, match=f"--on_collapse stop: the model has collapsed: at step .*{advice}"):
            run(make_config(inputs, tmp_path / name, on_collapse="stop", **(COLLAPSING | options)))
        assert not (tmp_path / name / "model.safetensors").exists()


def test_warn_and_rollback_to_the_last_good_weights(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if the run was resumed in between."""
    measured = run(make_config(inputs, tmp_path / "warn", save_total_limit=0, **COLLAPSING))
    assert steps(measured) == [0, 2, 4, 6, 8]
    (warning,) = [entry.message for entry in caplog.records if "collapsed" in entry.message]
    assert "the NLL of 5 retain rows is 1." in warning
    assert "nats a token above the reference (--collapse_bound 1)" in warning
    start, *entries = record(measured)["watched"]
    good = [entry["step"] for entry in entries if entry["retain_nll"] - start["retain_nll"] <= 1.0][-1]
    config = make_config(inputs, tmp_path / "out", on_collapse="rollback", **COLLAPSING)
    broken_off(config, 4)
    output = resumed(config)
    assert f"rolling back to the weights of step {good} and ending here" in caplog.text
    assert steps(output) == [0, 2]
    assert_same_weights(measured / f"checkpoint-{good}", output)
    assert not (output / f"checkpoint-{good + 2}").exists()  # a resumed run would train on from it
    assert_equal(run(replace(config, output=str(tmp_path / "whole"))), output)


@pytest.mark.parametrize(
    ("forget", "retain", "said"),
    [
        (0.68, 0.0, "the result has forgotten little or nothing"),
        (-0.3, -1.0, "the result has forgotten little or nothing"),
        (0.70, 0.05, None),
        (2.0, 2.0, "the result is no better than doing nothing"),
        (nan, 0.0, "the result is worse than doing nothing"),
        (0.8, inf, "the result is worse than doing nothing"),
    ],
)
def test_verdict_at_the_end(forget: float, retain: float, said: str | None) -> None:
    start = {"step": 0.0, "forget_nll": 1.0, "retain_nll": 1.0}
    found = verdict([start, {"step": 9.0, "forget_nll": 1.0 + forget, "retain_nll": 1.0 + retain}])
    assert (found and found.partition(":")[0]) == said


def test_a_run_that_did_nothing_warns(inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(make_config(inputs, tmp_path / "out", forget_weight=0.0, retain_weight=0.0))
    assert "the result has forgotten little or nothing" in caplog.text
    assert "--model hardly knows the forget rows: their reference NLL is " in caplog.text


def test_nan_after_the_last_step_warns(inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {"epochs": 1, "batch_size": 8, "warmup": 0.0, "learning_rate": 1e38}
    run(make_config(inputs, tmp_path / "out", "ga", "full", **options))
    assert "its NLL is not a finite number" in caplog.text
