"""Signals at any moment: what is left can be loaded or is not there, and the run goes on from it."""

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

import pytest
from safetensors.torch import load_file

from lume_unlearn.checkpoints import whole_checkpoints
from lume_unlearn.config import RunConfig
from lume_unlearn.interruption import Interrupted
from lume_unlearn.unlearning import run
from tests.faults.runs import assert_equal, ended, in_child, make_config, record

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("little_to_collect")]

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}


def go_on(config: RunConfig) -> None:
    """Begin, or resume what is there."""
    with suppress(Interrupted):
        run(replace(config, resume=Path(config.output).exists()))
        return
    os._exit(128 + signal.SIGTERM)


def assert_loadable(output: Path) -> None:
    """Whatever looks like a result or a checkpoint is one."""
    for checkpoint in whole_checkpoints(output):
        assert load_file(checkpoint / "adapter_model.safetensors")
        assert record(checkpoint)["finished"] is False
    if (output / "adapter_config.json").exists():
        assert load_file(output / "adapter_model.safetensors")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_twenty_signals_at_random_moments(number: int, status: int, inputs: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 6, "watch_steps": 3}
    started = time.monotonic()
    whole = run(make_config(inputs, tmp_path / "whole", "npo", **options))
    longest = 0.8 * (time.monotonic() - started)
    draw, ends, runs = random.Random(number), Counter[int](), 0
    while ends[status] < 20 or not ends[0]:
        config = make_config(inputs, tmp_path / f"out{runs}", "npo", **options)
        process = in_child(lambda config=config: go_on(config))  # type: ignore[misc]
        if ends[status] < 20:
            time.sleep(draw.uniform(0, longest))
            os.kill(process, number)
        ends[ended(process)] += 1
        if (tmp_path / f"out{runs}").exists():
            assert_loadable(tmp_path / f"out{runs}")
            if record_is_finished(tmp_path / f"out{runs}"):
                assert_equal(whole, tmp_path / f"out{runs}")
                runs += 1
    # A SIGTERM before the first step ends the process as it ends any other.
    assert set(ends) <= {status, 0, -number}
    assert runs >= 1


def record_is_finished(output: Path) -> bool:
    return (output / "unlearning.json").exists() and record(output)["finished"] and not (output / ".lock").exists()


def test_a_kill_at_every_change_of_a_file_leaves_something_to_go_on_from(inputs: Path, tmp_path: Path) -> None:
    """Each run dies before its n-th change in the output folder, is resumed and dies before the n-th again, ..."""
    options: dict[str, Any] = {"epochs": 1, "save_total_limit": 1}
    whole = run(make_config(inputs, tmp_path / "whole", **options))
    survived = 0
    for number in range(1, 200, 5):
        config = make_config(inputs, tmp_path / f"out{number}", **options)
        ends = [ended(in_child(lambda: dying(config, number)))]  # noqa: B023
        assert_loadable(tmp_path / f"out{number}")
        if ends[0] == 0:
            survived += 1
            break
        assert ends == [-9]
        assert ended(in_child(lambda: go_on(config))) == 0  # noqa: B023
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
