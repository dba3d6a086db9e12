"""Two processes that train together: where one dies the other one ends, and both can go on."""

import os
import signal
import socket
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from lume_unlearn.errors import Interrupted
from lume_unlearn.training.checkpoints import whole_checkpoints
from tests.faults.runs import Run, assert_equal, ended, in_child, make, record

pytestmark = [pytest.mark.faults, pytest.mark.timeout(200)]


def start(run: Run, **options: Any) -> list[int]:
    """Both processes, as torchrun would start them.

    Not by `accelerate launch --cpu --num_processes 2`: without MPI that starts a single process. By torchrun itself run
    those of tests/unlearn/test_distributed.py.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [in_child(partial(work, partial(run, **options), rank, port)) for rank in (0, 1)]


def work(run: Run, rank: int, port: int) -> None:
    """Run in one of the processes."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"})
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    try:
        run()
    except Interrupted as error:
        os._exit(error.code)


def until(checkpoint: Path, processes: list[int]) -> None:
    """Wait until a checkpoint is there."""
    limit = time.monotonic() + 100
    while checkpoint not in whole_checkpoints(checkpoint.parent):
        assert time.monotonic() < limit
        assert os.waitpid(processes[0], os.WNOHANG) == (0, 0)
        time.sleep(0.01)


OPTIONS: dict[str, Any] = {"num_train_epochs": 5, "per_device_train_batch_size": 2}


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of an uninterrupted run of two processes."""
    output = tmp_path_factory.mktemp("two") / "whole"
    assert [ended(process) for process in start(make(inputs, output, **OPTIONS))] == [0, 0]
    assert record(output)["processes"] == 2
    return output


@pytest.mark.parametrize(
    ("target", "number", "statuses"),
    [(0, signal.SIGKILL, (-9, 1)), (1, signal.SIGKILL, (1, -9)), (1, signal.SIGTERM, (143, 143))],
)
def test_one_gets_a_signal_both_end_and_resume(target, number, statuses, whole, inputs, tmp_path, capfd):
    """Where one is killed, the other one ends with an error; SIGTERM lets both save a checkpoint."""
    run = make(inputs, tmp_path / "out", **OPTIONS)
    processes = start(run)
    until(tmp_path / "out" / "checkpoint-2", processes)
    os.kill(processes[target], number)
    found = {rank: ended(processes[rank], within=60) for rank in (1 - target, target)}
    assert (found[0], found[1]) == statuses
    assert ("Error" in capfd.readouterr().err) == (number == signal.SIGKILL)
    assert [ended(process) for process in start(run, resume=True)] == [0, 0]
    assert_equal(whole, tmp_path / "out")
