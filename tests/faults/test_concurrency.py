"""Two runs into one folder: the second is refused and harms nothing."""

import os
import signal
import time

import pytest

from lume_unlearn.errors import ConfigError
from lume_unlearn.files import only_run
from tests.faults.runs import assert_equal, ended, in_child, make

pytestmark = pytest.mark.faults


def test_the_second_run_is_refused_and_the_first_continues(inputs, tmp_path):
    whole, run = (make(inputs, tmp_path / name, num_train_epochs=8) for name in ("whole", "out"))
    first = in_child(run)
    while not (tmp_path / "out" / "checkpoint-1").exists():
        time.sleep(0.01)
    os.kill(first, signal.SIGSTOP)
    for resume in (False, True):
        with pytest.raises(ConfigError, match=r"--output .*out: another run is writing there"):
            run(resume=resume)
    os.kill(first, signal.SIGCONT)
    assert ended(first) == 0
    assert_equal(whole(), tmp_path / "out")


def test_of_many_that_start_at_once_one_gets_the_folder(tmp_path):
    """Also while others leave the folder and remove their lock."""
    log = tmp_path / "log"

    def take():
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
