"""`compare`: what ends it, what it tries again, and what a comparison that was stopped need not do again."""

import json

import pytest
import torch

from lume_tasks.errors import NotFinite
from lume_unlearn.audit.probes import run_probes
from lume_unlearn.cli.main import main
from lume_unlearn.compare import comparison, judge
from lume_unlearn.compare import queue as queues
from lume_unlearn.compare.queue import TRIES
from lume_unlearn.errors import Diverged
from tests.unlearn.test_compare import command

pytest.importorskip("optuna")
pytestmark = pytest.mark.usefixtures("short_answers")


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_final_run_that_is_stopped_within_its_probes_is_not_trained_again(tuning, files, tmp_path, monkeypatch):
    options = ("--tunings", tuning, "--trials", "0", "--seeds", "1", "--relearn_steps", "3")
    options += ("--max_tokens", "1024")  # its default depends on the free memory, and changes rounding
    assert main(command(files, tmp_path / "whole", *options)) == 0
    whole = json.loads((tmp_path / "whole" / "compare.json").read_text())
    assert not [*(tmp_path / "whole").glob("*.safetensors")]
    calls = []

    def stopped(*args, **more):
        calls.append(args)
        if len(calls) == 2:  # after the target
            raise KeyboardInterrupt
        return run_probes(*args, **more)

    def done_twice(*args, **more):
        raise AssertionError

    monkeypatch.setattr(queues, "SILENCE", 0.2)
    monkeypatch.setattr(queues, "WAIT", 0.3)
    monkeypatch.setattr(judge, "run_probes", stopped)
    assert main(command(files, tmp_path / "out", *options)) == 130
    monkeypatch.setattr(comparison, "unlearned", done_twice)
    assert main(command(files, tmp_path / "out", *options)) == 0
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    for one in (content, whole):
        del one["table"][f"gd {tuning}"]["seconds"]
    assert content == whole
    assert not [*(tmp_path / "out").glob("*.safetensors")]


def test_a_mistake_of_the_user_ends_the_comparison_at_once(files, tmp_path, monkeypatch, capsys):
    recipe, calls = tmp_path / "late.yaml", []
    recipe.write_text("method: sugd\nmax_steps: 999\n")
    own = comparison.unlearned

    def counted(*args, **options):
        calls.append(args)
        return own(*args, **options)

    monkeypatch.setattr(comparison, "unlearned", counted)
    options = ("--probes", "none", "--trials", "1", "--seeds", "1", "--methods", f"{recipe},gd")
    assert main(command(files, tmp_path / "out", *options)) == 2
    assert "lume-unlearn compare: --max_steps 999: sugd has " in capsys.readouterr().err
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("error", "times"),
    [
        (Diverged("the loss is NaN"), 99),
        (NotFinite("the log-probability is NaN"), 99),
        (torch.OutOfMemoryError("8 GiB"), 99),
        (torch.OutOfMemoryError("8 GiB"), 1),
    ],
)
def test_divergence_is_a_result_and_an_error_is_tried_again_and_said(
    error, times, files, tmp_path, monkeypatch, capsys
):
    own, calls = comparison.unlearned, []

    def fail(*args, **options):
        calls.append(args)
        if len(calls) <= times:
            raise error
        return own(*args, **options)

    monkeypatch.setattr(queues, "WAIT", 0.01)
    monkeypatch.setattr(comparison, "unlearned", fail)
    options = ("--probes", "none", "--trials", "1", "--seeds", "1")
    diverged, passes = isinstance(error, (Diverged, NotFinite)), times == 1
    assert main(command(files, tmp_path, *options)) == (0 if diverged or passes else 2)
    content = json.loads((tmp_path / "compare.json").read_text())
    assert len(calls) == (1 if diverged else 3 if passes else TRIES)
    states = ["diverged"] if diverged else ["complete"] if passes else []
    assert [trial["state"] for trial in content["trials"]["gd lora"]] == states
    assert len(content["failures"]) == (0 if diverged or passes else 1)
    out = capsys.readouterr().out
    assert ("OutOfMemoryError: 8 GiB" in out) != diverged
    assert ("gd lora, trial 1: objective 0." in out) == passes
    assert (f"gd lora, trial 1: {error}\n" in out) == diverged
    assert set(content["table"]) == ({"target", "gd lora"} if passes else {"target"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--retrained", "{}/other"), "another tokenizer"),
        (("--methods", "gd,nothing"), "--methods nothing"),
        (("--methods", "dpo"), "--alternatives"),
        (("--alternatives", "{}/alternatives.jsonl"), "--alternatives: no method of this comparison uses them"),
        (("--tunings", "lora,3"), "--tunings 3"),
        (("--model", "/nowhere"), "--model /nowhere"),
        (("--tuning_share", "0"), "--tuning_share"),
        (("--output", "{}/alternatives.jsonl"), "alternatives.jsonl: is a file; name a folder"),
        (("--max_length", "2", "--loss_on", "answer"), "rows do not fit"),
        (("--relearn_rows", "0"), "--relearn_rows 0: must be above 0"),
        (("--relearn_rate", "-1"), "--relearn_rate -1.0: must be above 0"),
        (("--per_device_eval_batch_size", "-1"), "--per_device_eval_batch_size -1: must be above 0"),
    ],
)
def test_usage_errors_are_named_and_exit_with_2(options, message, files, tmp_path, capsys):
    assert main(command(files, tmp_path, *(option.format(files) for option in options))) == 2
    assert message in capsys.readouterr().err
