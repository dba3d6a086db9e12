"""Signals at any moment: results and checkpoints load or are not there, and the run can be resumed."""

import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from safetensors.torch import load_file

from lume_unlearn.errors import Interrupted
from lume_unlearn.files import LOCK
from lume_unlearn.training import saving, trainer
from lume_unlearn.training.callbacks.record import read_record
from lume_unlearn.training.checkpoints import whole_checkpoints
from tests.faults.runs import Run, assert_equal, ended, in_child, make, record

pytestmark = pytest.mark.faults

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}


def go_on(run: Run) -> None:
    """Start the run, or resume it."""
    with suppress(Interrupted):
        run(resume=Path(run.keywords["output"]).exists())
        return
    os._exit(128 + signal.SIGTERM)


def done(output: Path) -> bool:
    """Return whether the run is finished; remove its lock, since a finished run cannot be resumed."""
    if not read_record(output).get("finished"):
        return False
    (output / LOCK).unlink(missing_ok=True)
    return True


def assert_loadable(output: Path) -> None:
    """Check that whatever looks like a result or a checkpoint loads."""
    for checkpoint in whole_checkpoints(output):
        assert load_file(next(checkpoint.glob("*model.safetensors")))
        assert record(checkpoint)["finished"] is False
    for config, weights in (("adapter_config", "adapter_model"), ("config", "model")):
        if (output / f"{config}.json").exists():
            assert load_file(output / f"{weights}.safetensors")


@pytest.mark.parametrize("count", [3, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_signals_at_random_moments(number, status, count, inputs, tmp_path):
    """Runs get signals and are resumed, until so many signals have ended one; each result equals a whole run's."""
    options = {"num_train_epochs": 6, "monitor_steps": 3}
    tunings = ("lora", "full")
    make(inputs, tmp_path / "first", **options)()  # a process's first run is slower
    started = time.monotonic()
    whole = [make(inputs, tmp_path / tuning, "npo", tuning, **options)() for tuning in tunings]
    longest = 0.4 * (time.monotonic() - started)
    draw, ends, runs = random.Random(number), Counter[int](), 0
    while ends[status] < count or runs < 2:
        output = tmp_path / f"out{runs}"
        process = in_child(partial(go_on, make(inputs, output, "npo", tunings[runs % 2], **options)))
        if ends[status] < count:
            time.sleep(draw.uniform(0, longest))
            os.kill(process, number)
        ends[ended(process)] += 1
        assert set(ends) <= {status, 0, -number}  # before the first step, SIGTERM ends the process at once
        if output.exists():
            assert_loadable(output)
        if done(output):
            assert_equal(whole[runs % 2], output)
            runs += 1


@pytest.mark.parametrize("every", [35, pytest.param(13, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("tuning", "first"), [("lora", 1), ("full", 4)])
def test_kill_before_any_change_of_a_file_can_be_resumed(tuning, first, every, inputs, tmp_path):
    """Run n dies before its n-th change in the output folder and is resumed."""
    options = {"tuning": tuning, "num_train_epochs": 1, "save_total_limit": 1}
    whole = make(inputs, tmp_path / "whole", **options)()
    for number in range(first, 200, every):
        output = tmp_path / f"out{number}"
        run = make(inputs, output, **options)
        status = ended(in_child(partial(dying, run, number)))
        assert_loadable(output)
        if status == 0:  # the run has fewer changes
            return
        assert status == -9
        assert done(output) or ended(in_child(partial(go_on, run))) == 0
        assert_equal(whole, output)
    pytest.fail("some changes were left out")


def dying(run: Run, number: int) -> None:
    """Run until just before the ``number``-th change of a file."""
    left = [number]

    def hook(event: str, args: Any) -> None:
        written = event == "open" and isinstance(args[1], str) and args[1][:1] in "wax"
        if (event in CHANGES or written) and str(args[0]).startswith(run.keywords["output"]):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    go_on(run)


@pytest.mark.parametrize(("module", "place"), [(trainer, "negate"), (saving, "publish_result")])
def test_a_signal_after_the_last_step_does_not_prevent_saving(module, place, inputs, tmp_path, capfd):
    run = make(inputs, tmp_path / "out", "task-vector", save_strategy="no")
    own = getattr(module, place)

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        own(*args)

    def work():
        logging.getLogger("lume_unlearn").addHandler(logging.StreamHandler())
        run()

    with mock.patch.object(module, place, interrupted):
        assert ended(in_child(work)) == 0
    assert record(tmp_path / "out")["finished"] is True
    assert "SIGTERM came after the last step" in capfd.readouterr().err


@pytest.mark.parametrize("options", [{"method": "task-vector", "scale": 1e4}, {"eval_strategy": "epoch"}])
def test_a_stopped_run_says_how_to_resume_and_its_unfinished_weights_are_neither_judged_nor_scored(
    options, inputs, tmp_path
):
    run = make(inputs, tmp_path / "out", on_collapse="stop", tuning="full", **options)
    own = trainer.UnlearningTrainer.training_step

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return own(*args)

    with (
        mock.patch.object(trainer.UnlearningTrainer, "training_step", interrupted),
        pytest.raises(Interrupted, match=r"stopped by SIGINT after step 1 of 4; a checkpoint is saved: .* --resume"),
    ):
        run()
    assert whole_checkpoints(tmp_path / "out")
    assert not (tmp_path / "out" / "scores").exists()


def test_the_command_says_how_to_resume(inputs, tmp_path):
    output = tmp_path / "out"
    where = ["--model", str(inputs / "model"), "--data", str(inputs / "data"), "--output", str(output)]
    command = [sys.executable, "-m", "lume_unlearn", "run", "--method", "gd", *where, "--num_train_epochs", "400"]
    process = subprocess.Popen([*command, "--save_steps", "1"], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 100
    while not whole_checkpoints(output) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("lume-unlearn run: stopped by SIGINT after step ")
    assert last.endswith(" of 400; a checkpoint is saved: give the same command with --resume to continue")
    assert "Traceback" not in errors
    assert record(output)["finished"] is False
