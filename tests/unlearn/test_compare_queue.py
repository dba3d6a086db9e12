"""The queue of trials that processes share: every task once, again after an error or a death, never after a result."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from lume_unlearn.compare import queue as queues
from lume_unlearn.compare.queue import TRIES, Queue, shared_queues, trials_of
from lume_unlearn.errors import ConfigError

pytest.importorskip("optuna")


def make_queue(folder: Path, url: str | None = None, model: str = "m", count: int = 3, fixed: float = 1.0) -> Queue:
    tasks = [{"slot": i, "fixed": {"x": fixed}} for i in range(count)]
    return shared_queues(url, folder)("npo lora", {"model": model}, tasks)


@pytest.mark.parametrize("url", [None, "sqlite:///{}/trials.db"])
def test_a_trial_of_a_dead_process_is_repeated(url, tmp_path, monkeypatch):
    monkeypatch.setattr(queues, "SILENCE", 0.2)
    monkeypatch.setattr(queues, "WAIT", 0.05)
    first, second = (make_queue(tmp_path, url and url.format(tmp_path)) for _ in range(2))
    lost, other = first.take(), second.take()
    assert (lost.user_attrs["slot"], other.user_attrs["slot"]) == (0, 1)
    second.end(other, 0.5)
    done = []
    for queue, trial in trials_of([second]):
        done.append(trial.user_attrs["slot"])
        queue.end(trial, queues.WORST if trial.user_attrs["slot"] == 2 else 0.1)
    assert sorted(done) == [0, 2]
    first.end(lost, 0.9)  # it was only asleep: the other one's result counts
    assert {slot: trial.value for slot, trial in first.results().items()} == {0: 0.1, 1: 0.5, 2: queues.WORST}
    assert first.finished


def test_an_error_is_no_result_and_is_tried_again(tmp_path):
    queue = make_queue(tmp_path, count=1)
    for attempt in range(1, TRIES + 1):
        trial = queue.take()
        assert trial.user_attrs["attempt"] == attempt
        assert not queue.finished
        queue.end(trial, state=queue.states.FAIL, error="out of memory")
    assert queue.take() is None
    assert queue.finished
    assert (queue.results(), queue.errors()) == ({}, {0: "out of memory"})
    again = make_queue(tmp_path, count=1)  # the same command later, perhaps with more memory
    again.end(again.take(), 0.3)
    assert again.results()[0].value == 0.3
    assert again.errors() == {}


def test_a_changed_task_is_done_anew(tmp_path):
    queue = make_queue(tmp_path, count=1)
    queue.end(queue.take(), 0.3)
    changed = make_queue(tmp_path, count=1, fixed=2.0)
    assert not changed.results()
    assert changed.take().user_attrs["task"]["fixed"] == {"x": 2.0}


def take_all(folder: Path) -> list[int]:
    found = []
    for queue, trial in trials_of([make_queue(folder, count=12)]):
        found.append(trial.user_attrs["slot"])
        queue.end(trial, 0.5)
    return found


def test_two_processes_take_every_trial_once(tmp_path):
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        found = [*pool.map(take_all, [tmp_path, tmp_path])]
    assert sorted(found[0] + found[1]) == list(range(12))


def test_a_storage_of_another_comparison_is_refused(tmp_path):
    make_queue(tmp_path)
    with pytest.raises(ConfigError, match="model 'm' instead of 'other'"):
        make_queue(tmp_path, model="other")
    with pytest.raises(ConfigError, match="--storage nothing://x"):
        shared_queues("nothing://x", tmp_path)
