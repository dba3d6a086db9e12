"""A queue of trials in an Optuna storage, which several processes share and which outlives them.

Every trial of a study is put into the queue when the study is created. A process takes one and writes a heartbeat every
few seconds. A trial whose process died is put into the queue again, and so is a trial that ended with an error.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from lume_unlearn.checks import stable_number
from lume_unlearn.errors import ConfigError

BEAT = 5.0
"""Seconds between two heartbeats."""
SILENCE = 30.0
"""Seconds without a heartbeat after which a process counts as dead."""
WAIT = 2.0
"""Seconds between two checks of the trials that other processes run."""
TRIES = 3
"""How often a trial that ends with an error is run before the comparison goes on without it."""
FIRST_TRIALS = 3
"""Trials before the sampler (TPE) uses the results."""
WORST = 1.0
"""Value of a setting that diverged: objectives lie between 0 and 1."""

Task = dict[str, Any]
"""A trial: its number or name as ``slot``, ``fixed`` parameters, and everything else that the trial needs.

Only numbers, text, lists and dictionaries, since it is stored as JSON."""


def shared_queues(url: str | None, output: Path) -> Callable[..., "Queue"]:
    """Open the storage that ``--storage`` names, or a journal in the output folder.

    Returns:
        A function that makes a `Queue` in this storage from name, comparison and tasks.

    Raises:
        ConfigError: Optuna is not installed, or the storage cannot be opened.
    """
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
    except ImportError as error:
        raise ConfigError("compare: needs Optuna; install it with pip install 'lume-unlearning[compare]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url = url or f"journal:{output / 'trials.log'}"
    kind, _, path = url.partition(":")
    try:
        if kind == "journal":
            storage: Any = JournalStorage(JournalFileBackend(path, JournalFileOpenLock(path)))
        else:
            storage = optuna.storages.RDBStorage(url)
    except Exception as error:  # each database driver has its own error classes
        raise ConfigError(
            f"--storage {url}: cannot be opened; check the URL ({type(error).__name__}: {error})"
        ) from error
    return partial(Queue, storage, FileLock(output / ".storage.lock"))


class Queue:
    """The trials of one study."""

    def __init__(
        self, storage: Any, lock: FileLock, name: str, comparison: dict[str, Any], tasks: Sequence[Task]
    ) -> None:
        """Create the study, or join it if another process did; add the tasks without a result that no process runs.

        Args:
            storage: storage of Optuna.
            lock: lock for the processes of one machine, since some databases let two of them take the same trial.
            name: name of the study.
            comparison: what all trials depend on; a storage of another comparison is refused.
            tasks: the trials.

        Raises:
            ConfigError: the study belongs to another comparison.
        """
        import optuna

        self.name, self.optuna, self.lock = name, optuna, lock
        self.states = optuna.trial.TrialState
        self.tasks = {task["slot"]: task for task in tasks}
        self.heard: dict[int, tuple[Any, float]] = {}
        """Running trial to the last heartbeat of its process, and when this process saw it."""
        with lock:
            self.study = optuna.create_study(
                storage=storage, study_name=name, direction="minimize", load_if_exists=True
            )
            self._require_same(comparison)
            self._fill(anew=True)

    def _require_same(self, comparison: dict[str, Any]) -> None:
        """Store what all trials depend on, or compare it with what the creator of the study stored."""
        other = self.study.user_attrs.get("comparison")
        if other is None:
            self.study.set_user_attr("comparison", comparison)
        elif other != comparison:
            differing = [key for key in other | comparison if other.get(key) != comparison.get(key)]
            found = ", ".join(f"{key} {other.get(key)!r} instead of {comparison.get(key)!r}" for key in differing)
            raise ConfigError(
                f"--storage: holds a comparison with other settings ({found}); name another --output or --storage"
            )

    def _fill(self, anew: bool = False) -> None:
        """Put each task into the queue that has no result and is neither waiting nor running.

        A task that failed `TRIES` times is left out, unless ``anew``.
        """
        decisive = self._decisive()
        for slot, task in self.tasks.items():
            trial = decisive.get(slot)
            if trial is None or trial.state == self.states.FAIL:
                attempt = 1 if trial is None or anew else trial.user_attrs["attempt"] + ("error" in trial.user_attrs)
                if attempt <= TRIES:
                    attributes = {"slot": slot, "task": task, "attempt": attempt}
                    self.study.enqueue_trial(task["fixed"], user_attrs=attributes)

    def _trials(self) -> list[Any]:
        """Return Optuna's trials of the tasks, the oldest first; a task that has changed since has none."""
        found = [trial for trial in self.study.trials if "task" in trial.user_attrs]
        return [trial for trial in found if trial.user_attrs["task"] == self.tasks.get(trial.user_attrs["slot"])]

    def _decisive(self) -> dict[str, Any]:
        """Return slot to its first trial with a result or, if there is none, to its latest trial."""
        found: dict[str, Any] = {}
        for trial in self._trials():
            slot = trial.user_attrs["slot"]
            if slot not in found or found[slot].state != self.states.COMPLETE:
                found[slot] = trial
        return found

    def results(self) -> dict[str, Any]:
        """Return slot to the trial that has a result (complete, or diverged), in the order of the tasks."""
        found = self._decisive()
        return {slot: found[slot] for slot in self.tasks if slot in found and found[slot].state == self.states.COMPLETE}

    def errors(self) -> dict[str, str]:
        """Return slot to the error of each task that has no result after `TRIES` attempts."""
        failed = {slot: trial.user_attrs for slot, trial in self._decisive().items() if trial.state.name == "FAIL"}
        return {slot: has["error"] for slot, has in failed.items() if "error" in has and has["attempt"] >= TRIES}

    @property
    def finished(self) -> bool:
        """Whether every task has a result, or has failed too often."""
        return self.tasks.keys() == self.results().keys() | self.errors().keys()

    def take(self) -> Any:
        """Take a trial from the queue for this process; None if none waits."""
        with self.lock:
            self._end_lost()
            self._fill()
            if not any(trial.state == self.states.WAITING for trial in self.study.trials):
                return None
            trial = self.study.ask()
        slot: Any = trial.user_attrs.get("slot")
        if slot in self.results() or trial.user_attrs.get("task") != self.tasks.get(slot, 0):
            # Another machine was faster, and Optuna created a trial beyond the budget; or the task has changed since.
            self.end(trial, state=self.states.FAIL)
            return None
        trial.set_user_attr("alive", 0)
        # The slot is the seed, so a trial's parameters depend on the results so far, not on the process that runs it.
        seed = stable_number(self.name, slot) % 2**32
        self.study.sampler = self.optuna.samplers.TPESampler(seed=seed, n_startup_trials=FIRST_TRIALS)
        return trial

    def _end_lost(self) -> None:
        """End the trials of dead processes."""
        for trial in self._trials():
            if trial.state != self.states.RUNNING:
                continue
            alive, now = trial.user_attrs.get("alive"), time.monotonic()
            last, since = self.heard.setdefault(trial.number, (alive, now))
            if last != alive:
                self.heard[trial.number] = alive, now
            elif now - since > SILENCE:
                self.end(trial.number, state=self.states.FAIL)

    @contextmanager
    def running(self, trial: Any) -> Iterator[None]:
        """Write heartbeats while the block runs the trial."""
        stop = threading.Event()

        def beat() -> None:
            count = 0
            while not stop.wait(BEAT):
                count += 1
                with suppress(Exception):  # a locked database, or a trial that is finished
                    trial.set_user_attr("alive", count)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def end(self, trial: Any, value: float | None = None, state: Any = None, **attributes: Any) -> None:
        """End a trial with a value or, without one, a state, unless another process has ended it.

        ``attributes``: what to store with it; ``reason``: why it diverged; ``error``: why it must be run again.
        """
        with suppress(ValueError, RuntimeError):  # Optuna's UpdateFinishedTrialError is a RuntimeError
            for key, attribute in attributes.items():
                trial.set_user_attr(key, attribute)
            self.study.tell(trial, value, state)


def trials_of(queues: Sequence[Queue]) -> Iterator[tuple[Queue, Any]]:
    """Yield trials for this process to run, from each queue in turn, until this or other processes finished all."""
    while not all(queue.finished for queue in queues):
        idle = True
        for queue in queues:
            trial = queue.take()
            if trial is not None:
                idle = False
                with queue.running(trial):
                    yield queue, trial
        if idle:
            time.sleep(WAIT)  # other processes run the rest, and may die
