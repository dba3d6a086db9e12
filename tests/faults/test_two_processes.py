"""Two processes that train together: where one dies the other one ends, and both can go on."""

import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from lume_unlearn.config import RunConfig
from lume_unlearn.errors import Interrupted
from lume_unlearn.training.checkpoints import whole_checkpoints
from lume_unlearn.training.run import run
from tests.faults.runs import assert_equal, ended, in_child, make_config, record

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("little_to_collect"), pytest.mark.timeout(200)]


def start(config: RunConfig) -> list[int]:
    """Both processes, as torchrun would start them.

    Not by `accelerate launch --cpu --num_processes 2`: without MPI that starts a single process. By torchrun itself run
    those of tests/unlearn/test_distributed.py.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [in_child(member(config, rank, port)) for rank in (0, 1)]


def member(config: RunConfig, rank: int, port: int) -> Callable[[], None]:
    def work() -> None:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()})
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"})
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        try:
            run(config)
        except Interrupted as error:
            os._exit(error.code)

    return work


def until(checkpoint: Path, processes: list[int]) -> None:
    """Wait until a checkpoint is there."""
    limit = time.monotonic() + 100
    while checkpoint not in whole_checkpoints(checkpoint.parent):
        assert time.monotonic() < limit
        assert os.waitpid(processes[0], os.WNOHANG) == (0, 0)
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of an uninterrupted run of two processes."""
    output = tmp_path_factory.mktemp("two") / "whole"
    assert [ended(process) for process in start(make_config(inputs, output, epochs=5))] == [0, 0]
    assert record(output)["processes"] == 2
    return output


@pytest.mark.parametrize("killed", [0, 1])
def test_one_is_killed(
    killed: int, whole: Path, inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = make_config(inputs, tmp_path / "out", epochs=5)
    processes = start(config)
    until(tmp_path / "out" / "checkpoint-2", processes)
    os.kill(processes[killed], signal.SIGKILL)
    since = time.monotonic()
    assert ended(processes[1 - killed], within=60) == 1
    assert time.monotonic() - since < 60
    assert ended(processes[killed]) == -9
    assert "Error" in capfd.readouterr().err
    assert [ended(process) for process in start(replace(config, resume=True))] == [0, 0]
    assert_equal(whole, tmp_path / "out")


def test_one_is_told_to_end_and_both_save(whole: Path, inputs: Path, tmp_path: Path) -> None:
    config = make_config(inputs, tmp_path / "out", epochs=5)
    processes = start(config)
    until(tmp_path / "out" / "checkpoint-2", processes)
    os.kill(processes[1], signal.SIGTERM)
    assert [ended(process) for process in processes] == [143, 143]
    assert [ended(process) for process in start(replace(config, resume=True))] == [0, 0]
    assert_equal(whole, tmp_path / "out")
