"""The collapse monitor: each policy, what it says, and that it changes nothing."""

from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lume_tasks.data.files import read_rows
from lume_tasks.data.rows import SIDES
from lume_unlearn.config import RunConfig
from lume_unlearn.data.encode import encode_rows
from lume_unlearn.errors import ConfigError
from lume_unlearn.model.forward import Passes, row_nlls
from lume_unlearn.training.checkpoints import whole_checkpoints
from lume_unlearn.training.monitor import unknown_rows, verdict
from lume_unlearn.training.run import run
from tests.conftest import make_tokenizer
from tests.faults.runs import assert_equal, broken_off, make_config, record, resumed

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("little_to_collect")]

# Ascent without a retain term, fast: the retain rows are 1.0 nats worse at the fourth step.
COLLAPSING: dict[str, Any] = {"method": "ga", "tuning": "full", "learning_rate": 5e-3, "warmup": 0.0, "epochs": 4}


def steps(output: Path) -> list[int]:
    return [entry["step"] for entry in record(output)["watched"]]


def nll_by_hand(folder: Path, inputs: Path, side: str) -> float:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    rows = encode_rows(make_tokenizer(), read_rows(inputs / "data" / f"{side}.jsonl"), "answer", None, None)
    picked = []
    for row in rows:
        with torch.no_grad():
            logp = model(torch.tensor([row.input_ids])).logits[0, :-1].log_softmax(-1)
        picked += [-line[label] for line, label in zip(logp, row.labels[1:], strict=True) if label >= 0]
    return torch.stack(picked).mean().item()


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
    ours, theirs = (load_file(output / "adapter_model.safetensors") for output in (often, never))
    assert all(value.equal(theirs[name]) for name, value in ours.items())


def test_max_tokens_bounds_the_monitor_too(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    own = Passes.values

    def values(passes: Passes, model: Any, batch: Any, spans: Any) -> Any:
        sizes.append(len(batch.input_ids))
        return own(passes, model, batch, spans)

    monkeypatch.setattr(Passes, "values", values)
    run(make_config(inputs, tmp_path / "out", max_tokens=150))
    assert 75 < max(sizes) <= 150


def test_warn(inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = run(make_config(inputs, tmp_path / "out", **COLLAPSING))
    assert steps(output) == [0, 2, 4, 6, 8]
    (warning,) = [entry.message for entry in caplog.records if "collapsed" in entry.message]
    assert "the NLL of 5 retain rows is 1." in warning
    assert "nats a token above the reference (--collapse_bound 1)" in warning


RESUME = "the same command with --resume and a lower --learning_rate continues from checkpoint-2"


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({}, f"remove checkpoint-3; then {RESUME}"),
        ({"watch_steps": 1}, f"; {RESUME}"),
        ({"save_total_limit": 1}, "; no checkpoint is from before that: start again"),
    ],
)
def test_stop_says_how_to_continue(options: dict[str, Any], advice: str, inputs: Path, tmp_path: Path) -> None:
    config = make_config(inputs, tmp_path / "out", on_collapse="stop", **(COLLAPSING | options))
    with pytest.raises(ConfigError, match="--on_collapse stop: the model has collapsed: at step ") as caught:
        run(config)
    assert advice in str(caught.value)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert record(resumed(config, on_collapse="warn", learning_rate=1e-5))["finished"] is True


@pytest.mark.parametrize("policy", ["stop", "rollback"])
def test_resuming_a_collapsed_run_with_another_policy_stops(policy: str, inputs: Path, tmp_path: Path) -> None:
    config = make_config(inputs, tmp_path / "out", **COLLAPSING)
    broken_off(config, 6)
    with pytest.raises(ConfigError, match=f"--on_collapse {policy}: the model has collapsed: at step 5 the NLL"):
        resumed(config, on_collapse=policy)
    assert [path.name for path in whole_checkpoints(tmp_path / "out")] == ["checkpoint-5", "checkpoint-4"]
    assert steps(resumed(config, on_collapse="warn")) == [0, 2, 4, 6, 8]


def test_rollback_given_on_resume_goes_back_to_the_resumed_weights(inputs: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = COLLAPSING | {"collapse_bound": 1.3}
    measured = run(make_config(inputs, tmp_path / "warn", save_total_limit=0, **options))
    config = make_config(inputs, tmp_path / "out", **options)
    broken_off(config, 4)
    output = resumed(config, on_collapse="rollback")
    assert steps(output) == [0, 2, 3]
    expected, found = (load_file(path / "model.safetensors") for path in (measured / "checkpoint-3", output))
    assert all(value.equal(found[name]) for name, value in expected.items())


@pytest.mark.parametrize("broken", [None, 3, 4])
def test_rollback_restores_the_last_good_weights(
    broken: int | None, inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if the run was resumed in between."""
    measured = run(make_config(inputs, tmp_path / "warn", save_total_limit=0, **COLLAPSING))
    start, *entries = record(measured)["watched"]
    good = [entry["step"] for entry in entries if entry["retain_nll"] - start["retain_nll"] <= 1.0][-1]
    config = make_config(inputs, tmp_path / "out", on_collapse="rollback", **COLLAPSING)
    if broken is None:
        output = run(config)
    else:
        broken_off(config, broken)
        output = resumed(config)
    assert f"rolling back to the weights of step {good} and ending here" in caplog.text
    assert steps(output) == [0, 2]
    expected = load_file(measured / f"checkpoint-{good}" / "model.safetensors")
    found = load_file(output / "model.safetensors")
    assert all(value.equal(found[name]) for name, value in expected.items())
    assert not (output / f"checkpoint-{good + 2}").exists()  # a resumed run would train on from it
    assert_equal(run(make_config(inputs, tmp_path / "whole", on_collapse="rollback", **COLLAPSING)), output)


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


@pytest.mark.parametrize(("forget", "warned"), [(1.1, True), (0.9, False)])
def test_warning_about_a_model_that_does_not_know_the_rows(forget: float, warned: bool) -> None:
    assert (unknown_rows({"step": 0, "forget_nll": forget}) is not None) == warned


def test_nan_after_the_last_step_warns(inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {"epochs": 1, "batch_size": 8, "warmup": 0.0, "learning_rate": 1e38}
    run(make_config(inputs, tmp_path / "out", "ga", "full", **options))
    assert "its NLL is not a finite number" in caplog.text


def vector(inputs: Path, output: Path, scale: float, **options: Any) -> RunConfig:
    return make_config(inputs, output, "task-vector", "full", params={"scale": scale}, **options)


def test_for_a_task_vector_the_result_is_checked(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = run(vector(inputs, tmp_path / "out", 1e4))
    assert caplog.text.count("the model has collapsed: at step 4") == 1
    assert steps(output) == [0, 2, 4]
    last = record(output)["watched"][-1]["retain_nll"]
    model = AutoModelForCausalLM.from_pretrained(output).eval()
    rows = encode_rows(make_tokenizer(), read_rows(inputs / "data" / "retain.jsonl"), "answer", None, None)
    found = torch.cat(row_nlls(model, Passes(model), rows, 1000, model.device)).mean().item()
    assert last == pytest.approx(found, rel=1e-4)
    assert last > 1e4


@pytest.mark.parametrize(
    ("scale", "policy", "said"),
    [
        (1e4, "stop", "--on_collapse stop: the model has collapsed: at step 4 .*; lower --scale"),
        (1e39, "warn", r"--scale 1e\+39: weights become infinite; lower it"),
    ],
)
def test_a_refused_task_vector_can_be_resumed_at_a_lower_scale(
    scale: float, policy: str, said: str, inputs: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        run(vector(inputs, tmp_path / "out", scale, on_collapse=policy))
    assert not (tmp_path / "out" / "model.safetensors").exists()
    output = resumed(vector(inputs, tmp_path / "out", 1.0))
    whole = run(vector(inputs, tmp_path / "whole", 1.0))
    assert (output / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert record(output)["watched"] == record(whole)["watched"]
