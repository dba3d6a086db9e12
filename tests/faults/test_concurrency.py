"""Two runs into one folder: the second is refused and harms nothing."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from lume_unlearn.config import RunConfig
from lume_unlearn.errors import ConfigError
from lume_unlearn.files import LOCK, only_run
from lume_unlearn.training import run as run_module
from lume_unlearn.training.run import run
from tests.faults.runs import assert_equal, broken_off, ended, in_child, make_config, record, resumed

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("little_to_collect")]


def test_the_second_run_is_refused_and_the_first_continues(inputs: Path, tmp_path: Path) -> None:
    whole = run(make_config(inputs, tmp_path / "whole", epochs=8))
    config = make_config(inputs, tmp_path / "out", epochs=8)
    first = in_child(lambda: run(config))
    while not (tmp_path / "out" / "checkpoint-1").exists():
        time.sleep(0.01)
    os.kill(first, signal.SIGSTOP)
    with pytest.raises(ConfigError, match=r"--output .*: it exists and is not empty"):
        run(config)
    with pytest.raises(ConfigError, match=r"--output .*out: another run is writing there; wait for it, or name"):
        resumed(config)
    os.kill(first, signal.SIGCONT)
    assert ended(first) == 0
    assert_equal(whole, tmp_path / "out")


def meanwhile(what: Callable[[], Any]) -> Any:
    """Do something once while a run reads its rows, after its first look at the output folder."""
    own, left = run_module.load_inputs, [what]

    def load_inputs(config: RunConfig) -> Any:
        if left:
            left.pop()()
        return own(config)

    return mock.patch.object(run_module, "load_inputs", load_inputs)


def test_a_run_that_finishes_while_another_one_starts_is_not_overwritten(inputs: Path, tmp_path: Path) -> None:
    config = make_config(inputs, tmp_path / "out")
    with meanwhile(lambda: run(config)), pytest.raises(ConfigError, match="it exists and is not empty"):
        run(replace(config, seed=1))
    assert record(tmp_path / "out")["seed"] == 0
    assert not (tmp_path / "out" / LOCK).exists()


def test_resuming_uses_the_newest_checkpoint_under_the_lock(inputs: Path, tmp_path: Path) -> None:
    """The checkpoint that was there at first is removed while the second run starts."""
    whole = run(make_config(inputs, tmp_path / "whole", save_total_limit=1))
    config = make_config(inputs, tmp_path / "out", save_total_limit=1)
    broken_off(config, 2)
    with meanwhile(lambda: broken_off(replace(config, resume=True), 4)):
        assert_equal(whole, resumed(config))


def test_of_many_that_start_at_once_one_gets_the_folder(tmp_path: Path) -> None:
    """Also while others leave the folder and remove their lock."""
    log = tmp_path / "log"

    def take() -> None:
        for _ in range(200):
            try:
                with only_run(tmp_path / "out"):
                    with log.open("a") as file:
                        file.write("in\n")
                    time.sleep(0.0005)
                    with log.open("a") as file:
                        file.write("out\n")
            except ConfigError:
                continue

    children = [in_child(take) for _ in range(4)]
    assert [ended(child) for child in children] == [0] * 4
    lines = log.read_text().split()
    assert lines == ["in", "out"] * (len(lines) // 2)
    assert len(lines) > 8
