"""The collapse monitor: each policy, what it says, and that it changes nothing."""

from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from lume_tasks.data.rows import SIDES
from lume_unlearn.errors import Diverged
from lume_unlearn.training.callbacks.monitor import advice, is_good
from tests.conftest import assert_same_weights
from tests.faults.runs import assert_equal, broken_off, make, nll_by_hand, record

pytestmark = pytest.mark.faults

# Ascent without a retain term, fast: the retain rows are 1.0 nats worse at the fourth step.
COLLAPSING: dict[str, Any] = {"method": "ga", "tuning": "full", "learning_rate": 5e-3, "warmup_steps": 0.0}
COLLAPSING["num_train_epochs"] = 4


def steps(output: Path) -> list[int]:
    return [entry["step"] for entry in record(output)["monitored"]]


def test_measurements_are_token_means_of_the_rows(inputs, tmp_path, capsys):
    output = make(inputs, tmp_path / "out", tuning="full")()
    assert steps(output) == [0, 2, 4]
    first, _, last = record(output)["monitored"]
    for folder, entry in ((inputs / "model", first), (output, last)):
        for side in SIDES:
            assert entry[f"{side}_nll"] == pytest.approx(nll_by_hand(folder, inputs, side), rel=1e-5)
    said = ", ".join(f"{side} NLL {first[f'{side}_nll']:.3f} -> {last[f'{side}_nll']:.3f}" for side in SIDES)
    assert f"4 optimiser steps: {said} nats a token" in capsys.readouterr().out


def test_the_monitor_does_not_change_training(inputs, tmp_path):
    often, never = (make(inputs, tmp_path / str(every), monitor_steps=every, save_strategy="no")() for every in (1, 0))
    assert (steps(often), steps(never)) == ([0, 1, 2, 3, 4], [0, 4])
    assert record(often)["history"] == record(never)["history"]
    assert_same_weights(often, never)


@pytest.mark.parametrize(("options", "lower"), [({}, "rate"), ({"method": "task-vector", "scale": 1e4}, "scale")])
def test_stop(options, lower, inputs, tmp_path):
    with pytest.raises(Diverged, match=rf"^--on_collapse stop: .* at step \d.* lower --\w*{lower}"):
        make(inputs, tmp_path / "out", on_collapse="stop", **(COLLAPSING | options))()
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_warn_and_rollback_to_the_last_good_weights(inputs, tmp_path, caplog):
    """Also if the run was resumed in between."""
    measured = make(inputs, tmp_path / "warn", save_total_limit=0, **COLLAPSING)()
    assert steps(measured) == [0, 2, 4, 6, 8]
    (warning,) = [entry.message for entry in caplog.records if "collapsed" in entry.message]
    assert "the NLL of 5 retain rows is " in warning
    start, *entries = record(measured)["monitored"]
    good = [entry["step"] for entry in entries if entry["retain_nll"] - start["retain_nll"] <= 1.0][-1]
    broken = make(inputs, tmp_path / "out", on_collapse="rollback", **COLLAPSING)
    broken_off(broken, 4)
    output = broken(resume=True)
    assert f"rolling back to the weights of step {good} and ending here" in caplog.text
    assert steps(output) == [0, 2]
    assert_same_weights(measured / f"checkpoint-{good}", output)
    assert not (output / f"checkpoint-{good + 2}").exists()  # a resumed run would train on from it
    assert_equal(broken(output=str(tmp_path / "whole")), output)


@pytest.mark.parametrize(
    ("reference", "forget", "retain", "said"),
    [
        (1.0, 0.68, 0.0, "forgotten little or nothing"),
        (1.0, -0.3, -1.0, "forgotten little or nothing"),
        (1.0, 0.70, 0.05, None),
        (1.0, 2.0, 2.0, "no better than doing nothing"),
        (1.0, nan, 0.0, "NaN"),
        (1.0, 0.8, inf, "NaN"),
        (0.012, 2.0, 0.19, None),
        (0.5, 3.0, 1.5, "retain rows were lost"),  # above --collapse_bound
        (0.012, 2.0, 0.33, "retain rows were lost"),  # many times the reference, though below --collapse_bound
    ],
)
def test_advice_at_the_end(reference, forget, retain, said):
    start = {"step": 0.0, "forget_nll": reference, "retain_nll": reference}
    end = {"step": 9.0, "forget_nll": reference + forget, "retain_nll": reference + retain}
    found = advice([start, end], bound=1.0)
    assert said in found if said and found else found is said
    assert is_good(end, start, 1.0) == (retain < 0.2)
    assert is_good(end, start, 1.0, at_end=False) == (retain < 1.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"forget_weight": 0.0, "retain_weight": 0.0}, "the result has forgotten little or nothing"),
        ({"method": "ga", "tuning": "full", "learning_rate": 1e38, "per_device_train_batch_size": 8}, "NaN"),
    ],
)
def test_a_run_that_did_nothing_or_ended_in_nan_warns(options, said, inputs, tmp_path, caplog):
    make(inputs, tmp_path / "out", **({"num_train_epochs": 1, "warmup_steps": 0.0} | options))()
    assert said in caplog.text
    assert "--model hardly knows the forget rows: their reference NLL is " in caplog.text
