"""Watching the retain rows: each policy, and that watching changes nothing."""

import re
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerState

from lume_tasks.data.files import read_rows
from lume_tasks.data.rows import SIDES
from lume_unlearn.config import ConfigError, RunConfig
from lume_unlearn.data.encode import encode_rows
from lume_unlearn.model.forward import Passes, row_nlls
from lume_unlearn.training.checkpoints import whole_checkpoints
from lume_unlearn.training.monitor import Watch
from lume_unlearn.training.run import run
from tests.conftest import make_tokenizer
from tests.faults.runs import assert_equal, broken_off, make_config, record, resumed

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("little_to_collect")]

# Ascent without a retain term, fast: the watched retain rows are 1.0 nats worse at the fourth step.
COLLAPSING: dict[str, Any] = {"method": "ga", "tuning": "full", "learning_rate": 5e-3, "warmup": 0.0, "epochs": 4}
BOUND = 1.0


def steps(output: Path) -> list[int]:
    return [entry["step"] for entry in record(output)["watched"]]


def test_the_measurements_are_those_of_the_rows(inputs: Path, tmp_path: Path) -> None:
    output = run(make_config(inputs, tmp_path / "out", tuning="full"))
    assert steps(output) == [0, 2, 4]
    for folder, entry in ((inputs / "model", record(output)["watched"][0]), (output, record(output)["watched"][-1])):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        for side in ("forget", "retain"):
            found = read_rows(inputs / "data" / f"{side}.jsonl")
            rows = encode_rows(make_tokenizer(), found, "answer", None, None)
            with torch.no_grad():
                logits = [model(torch.tensor([row.input_ids])).logits[0, :-1].log_softmax(-1) for row in rows]
            picked = [
                -line[label]
                for lines, row in zip(logits, rows, strict=True)
                for line, label in zip(lines, row.labels[1:], strict=True)
                if label >= 0
            ]
            assert entry[f"{side}_nll"] == pytest.approx(torch.stack(picked).mean().item(), rel=1e-5)


def test_watching_changes_nothing(inputs: Path, tmp_path: Path) -> None:
    often, never = (
        run(make_config(inputs, tmp_path / str(every), watch_steps=every, save_steps=0)) for every in (1, 0)
    )
    assert (steps(often), steps(never)) == ([0, 1, 2, 3, 4], [0, 4])
    assert record(often)["history"] == record(never)["history"]
    ours, theirs = (load_file(output / "adapter_model.safetensors") for output in (often, never))
    assert all(value.equal(theirs[name]) for name, value in ours.items())


def test_a_pass_of_watching_holds_no_more_tokens_than_one_of_training(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert "the NLL of watched retain rows is 1." in warning
    assert "nats a token above the start (--collapse_bound 1)" in warning


def test_stop(inputs: Path, tmp_path: Path) -> None:
    config = make_config(inputs, tmp_path / "out", on_collapse="stop", **COLLAPSING)
    with pytest.raises(ConfigError, match=r"--on_collapse stop: the model has collapsed: at step (\d)"):
        run(config)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert whole_checkpoints(tmp_path / "out")
    assert record(resumed(config, on_collapse="warn", learning_rate=1e-5))["finished"] is True


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (
            {},
            "remove checkpoint-3; then --resume with a lower --learning_rate goes on from checkpoint-2, which is from",
        ),
        ({"watch_steps": 1}, "; --resume with a lower --learning_rate goes on from checkpoint-2, which is from before"),
        ({"save_total_limit": 1}, "; no checkpoint is from before that: begin anew with a lower"),
    ],
)
def test_what_to_go_on_from_is_said(options: dict[str, Any], advice: str, inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run(make_config(inputs, tmp_path / "out", on_collapse="stop", **(COLLAPSING | options)))
    assert advice in str(caught.value)


@pytest.mark.parametrize("policy", ["stop", "rollback"])
def test_a_policy_that_comes_after_the_collapse(policy: str, inputs: Path, tmp_path: Path) -> None:
    """What was warned of once is no longer to be gone on with, and there is nothing to go back to."""
    config = make_config(inputs, tmp_path / "out", **COLLAPSING)
    broken_off(config, 6)
    with pytest.raises(ConfigError, match=f"--on_collapse {policy}: the model has collapsed: at step 5 the NLL"):
        resumed(config, on_collapse=policy)
    assert [path.name for path in whole_checkpoints(tmp_path / "out")] == ["checkpoint-5", "checkpoint-4"]
    assert steps(resumed(config, on_collapse="warn")) == [0, 2, 4, 6, 8]


def test_a_policy_that_comes_before_the_collapse(inputs: Path, tmp_path: Path) -> None:
    """What it goes back to are the weights that it found, under their own step."""
    options: dict[str, Any] = COLLAPSING | {"collapse_bound": 1.3}
    measured = run(make_config(inputs, tmp_path / "warn", save_total_limit=0, **options))
    config = make_config(inputs, tmp_path / "out", **options)
    broken_off(config, 4)
    output = resumed(config, on_collapse="rollback")
    assert steps(output) == [0, 2, 3]
    expected, found = (load_file(path / "model.safetensors") for path in (measured / "checkpoint-3", output))
    assert all(value.equal(found[name]) for name, value in expected.items())


@pytest.mark.parametrize("broken", [None, 3, 4])
def test_best(broken: int | None, inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The result is the model at the last measurement before, also where the run was broken off after that."""
    measured = run(make_config(inputs, tmp_path / "warn", save_total_limit=0, **COLLAPSING))
    entries = record(measured)["watched"]
    rises = [entry["retain_nll"] - entries[0]["retain_nll"] for entry in entries]
    good = max(entry["step"] for entry, rise in zip(entries, rises, strict=True) if rise <= BOUND)
    assert good == 2  # else the steps below make no sense
    config = make_config(inputs, tmp_path / "out", on_collapse="rollback", **COLLAPSING)
    if broken is None:
        output = run(config)
    else:
        broken_off(config, broken)
        output = resumed(config)
    assert f"going back to the weights of step {good} and ending here" in caplog.text
    assert steps(output) == [0, 2]
    expected = load_file(measured / f"checkpoint-{good}" / "model.safetensors")
    found = load_file(output / "model.safetensors")
    assert all(value.equal(found[name]) for name, value in expected.items())
    # A checkpoint of the step of the collapse would hold these weights and go on from them.
    assert not (output / f"checkpoint-{good + 2}").exists()
    assert_equal(run(make_config(inputs, tmp_path / "whole", on_collapse="rollback", **COLLAPSING)), output)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"forget_weight": 0.0, "retain_weight": 0.0}, ["the result has forgotten little or nothing"]),
        ({"method": "ga", "tuning": "full", "learning_rate": 5e-4, "epochs": 4}, []),
    ],
)
def test_a_run_that_did_no_good_says_so(
    options: dict[str, Any], said: list[str], inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(make_config(inputs, tmp_path / "out", **options))
    assert [line.partition(":")[0] for line in caplog.messages if line.startswith("the result")] == said


@pytest.mark.parametrize(
    ("forget", "retain", "said"),
    [
        (0.08, -1.0, "the result has forgotten little or nothing"),
        (0.68, 0.0, "the result has forgotten little or nothing"),
        (-0.3, -1.0, "the result has forgotten little or nothing"),
        (0.70, 0.05, None),
        (2.0, 2.0, "the result is no better than doing nothing"),
        (2.0, 2.5, "the result is no better than doing nothing"),
        (nan, 0.0, "the result is worse than doing nothing"),
        (0.8, inf, "the result is worse than doing nothing"),
    ],
)
def test_what_is_said_of_a_result(forget: float, retain: float, said: str | None) -> None:
    rows: list[Any] = [None]
    watch = Watch(None, rows, rows, every=0, bound=1.0, policy="warn", max_tokens=1)  # type: ignore[arg-type]
    start = {"step": 0, "forget_nll": 1.0, "retain_nll": 1.0}
    watch.measured = [start, {"step": 9, "forget_nll": 1.0 + forget, "retain_nll": 1.0 + retain}]
    verdict = watch.verdict()
    assert (verdict and verdict.partition(":")[0]) == said


@pytest.mark.parametrize(("forget", "warned"), [(1.1, True), (0.9, False)])
def test_a_model_that_does_not_know_the_forget_rows_is_warned_of(
    forget: float, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[Any] = [None]
    watch = Watch(None, rows, rows, every=0, bound=1.0, policy="warn", max_tokens=1)  # type: ignore[arg-type]
    start = {"step": 0, "forget_nll": forget, "retain_nll": 0.1}
    monkeypatch.setattr(watch, "_measure", lambda *_: watch.measured.append(start))
    watch.on_train_begin(None, TrainerState(), None)  # type: ignore[arg-type]
    assert ("--model hardly knows the forget rows: their NLL is 1.100" in caplog.text) == warned


def test_a_run_prints_what_it_did(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = run(make_config(inputs, tmp_path / "out"))
    first, *_, last = record(output)["watched"]
    said = ", ".join(f"{side} NLL {first[f'{side}_nll']:.3f} -> {last[f'{side}_nll']:.3f}" for side in SIDES)
    assert f"4 optimiser steps: {said} nats a token (of 7 and 5 rows)\n" in capsys.readouterr().out


def test_a_result_that_is_no_number_says_so(inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The last step is followed by no other one that could find out."""
    options: dict[str, Any] = {"epochs": 1, "batch_size": 8, "warmup": 0.0, "learning_rate": 1e38}
    run(make_config(inputs, tmp_path / "out", "ga", "full", **options))
    assert "its NLL is not a finite number" in caplog.text


def vector(inputs: Path, output: Path, scale: float, **options: Any) -> RunConfig:
    return make_config(inputs, output, "task-vector", "full", params={"scale": scale}, **options)


def test_of_a_task_vector_the_result_is_judged(inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = run(vector(inputs, tmp_path / "out", 1e4))
    assert re.search(r"the model has collapsed: at step 4 the NLL of watched retain rows is \d{5}", caplog.text)
    assert steps(output) == [0, 2, 4]
    watched = record(output)["watched"]
    assert watched[2]["retain_nll"] > 1e4
    model = AutoModelForCausalLM.from_pretrained(output).eval()
    rows = encode_rows(make_tokenizer(), read_rows(inputs / "data" / "retain.jsonl"), "answer", None, None)
    found = torch.cat(row_nlls(model, Passes(model), rows, 1000, model.device)).mean().item()
    assert watched[2]["retain_nll"] == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize(
    ("scale", "policy", "said"),
    [
        (1e4, "stop", "--on_collapse stop: the model has collapsed: at step 4 .*; lower --scale"),
        (1e39, "warn", r"--scale 1e\+39: weights become infinite; lower it"),
    ],
)
def test_a_task_vector_that_cannot_be_published(
    scale: float, policy: str, said: str, inputs: Path, tmp_path: Path
) -> None:
    """Training stays, and a lower factor goes on from it."""
    with pytest.raises(ConfigError, match=said):
        run(vector(inputs, tmp_path / "out", scale, on_collapse=policy))
    assert not (tmp_path / "out" / "model.safetensors").exists()
    output = resumed(vector(inputs, tmp_path / "out", 1.0))
    whole = run(vector(inputs, tmp_path / "whole", 1.0))
    assert (output / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert record(output)["watched"] == record(whole)["watched"]


def test_what_a_task_vector_cannot_do_is_refused(inputs: Path, tmp_path: Path) -> None:
    for options in ({"on_collapse": "rollback"}, {"evaluate_every": "epoch"}):
        with pytest.raises(ConfigError, match=r"task-vector makes its weights after training"):
            vector(inputs, tmp_path / "out", 1.0, **options)
