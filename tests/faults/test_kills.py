"""Signals at any moment: what is left can be loaded or is not there, and the run goes on from it."""

import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from safetensors.torch import load_file

from lume_unlearn.config import RunConfig
from lume_unlearn.files import LOCK
from lume_unlearn.training import run as run_module
from lume_unlearn.training.checkpoints import whole_checkpoints
from lume_unlearn.training.record import is_finished
from lume_unlearn.training.run import run
from lume_unlearn.training.signals import Interrupted
from tests.faults.runs import assert_equal, ended, in_child, make_config, record

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("little_to_collect")]

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}


def go_on(config: RunConfig) -> None:
    """Begin, or resume what is there."""
    with suppress(Interrupted):
        run(replace(config, resume=Path(config.output).exists()))
        return
    os._exit(128 + signal.SIGTERM)


def done(output: Path) -> bool:
    """Whether the run is finished; one that died when only its lock was left to clear away cannot be resumed."""
    if finished := is_finished(output):
        (output / LOCK).unlink(missing_ok=True)
    return finished


def assert_loadable(output: Path) -> None:
    """Whatever looks like a result or a checkpoint is one."""
    for checkpoint in whole_checkpoints(output):
        assert load_file(next(checkpoint.glob("*model.safetensors")))
        assert record(checkpoint)["finished"] is False
    for config, weights in (("adapter_config", "adapter_model"), ("config", "model")):
        if (output / f"{config}.json").exists():
            assert load_file(output / f"{weights}.safetensors")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_twenty_signals_at_random_moments(number: int, status: int, inputs: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 6, "watch_steps": 3}
    tunings = ("lora", "full")
    run(make_config(inputs, tmp_path / "first", **options))  # which is slower
    started = time.monotonic()
    whole = [run(make_config(inputs, tmp_path / tuning, "npo", tuning, **options)) for tuning in tunings]
    longest = 0.4 * (time.monotonic() - started)
    draw, ends, runs = random.Random(number), Counter[int](), 0
    while ends[status] < 20 or runs < 2:
        output = tmp_path / f"out{runs}"
        config = make_config(inputs, output, "npo", tunings[runs % 2], **options)
        process = in_child(lambda config=config: go_on(config))  # type: ignore[misc]
        if ends[status] < 20:
            time.sleep(draw.uniform(0, longest))
            os.kill(process, number)
        ends[ended(process)] += 1
        assert set(ends) <= {status, 0, -number}  # a SIGTERM before the first step ends the process as any other
        if output.exists():
            assert_loadable(output)
        if done(output):
            assert_equal(whole[runs % 2], output)
            runs += 1
    assert runs >= 2


@pytest.mark.parametrize(("tuning", "first"), [("lora", 1), ("full", 4)])
def test_a_kill_at_every_change_of_a_file_leaves_something_to_go_on_from(
    tuning: str, first: int, inputs: Path, tmp_path: Path
) -> None:
    """Each run dies before its n-th change in the output folder, is resumed and dies before the n-th again, ..."""
    options: dict[str, Any] = {"epochs": 1, "save_total_limit": 1}
    whole = run(make_config(inputs, tmp_path / "whole", tuning=tuning, **options))
    survived = 0
    for number in range(first, 200, 7):
        config = make_config(inputs, tmp_path / f"out{number}", tuning=tuning, **options)
        ends = [ended(in_child(lambda: dying(config, number)))]  # noqa: B023
        assert_loadable(tmp_path / f"out{number}")
        if ends[0] == 0:
            survived += 1
            break
        assert ends == [-9]
        assert done(Path(config.output)) or ended(in_child(lambda: go_on(config))) == 0  # noqa: B023
        assert_equal(whole, tmp_path / f"out{number}")
    assert survived == 1  # no change was left out


def dying(config: RunConfig, number: int) -> None:
    """Run until just before the ``number``-th change of a file."""
    left = [number]

    def hook(event: str, args: Any) -> None:
        written = event == "open" and isinstance(args[1], str) and args[1][:1] in "wax"
        if (event in CHANGES or written) and str(args[0]).startswith(config.output):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    go_on(config)


@pytest.mark.parametrize("place", ["_negate", "publish_result"])
def test_a_signal_behind_the_last_step_lets_the_result_be_saved(
    place: str, inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = make_config(inputs, tmp_path / "out", "task-vector", save_steps=0)
    own = getattr(run_module, place)

    def interrupted(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        own(*args)

    def work() -> None:
        logging.getLogger("lume_unlearn").addHandler(logging.StreamHandler())
        run(config)

    with mock.patch.object(run_module, place, interrupted):
        assert ended(in_child(work)) == 0
    assert record(tmp_path / "out")["finished"] is True
    assert "SIGTERM came behind the last step: the run is finished" in capfd.readouterr().err


def test_the_command_says_how_to_go_on(inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    where = ["--model", str(inputs / "model"), "--data", str(inputs / "data"), "--output", str(output)]
    command = [sys.executable, "-m", "lume_unlearn", "run", "--method", "gd", *where, "--epochs", "400"]
    process = subprocess.Popen([*command, "--save_steps", "1"], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 100
    while not whole_checkpoints(output) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("lume-unlearn run: stopped by SIGINT after step ")
    assert last.endswith(" of 400; a checkpoint is saved: give the same command with --resume to go on")
    assert "Traceback" not in errors
    assert record(output)["finished"] is False
