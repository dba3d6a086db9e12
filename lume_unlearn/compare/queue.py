"""A queue of trials in an Optuna storage, which several processes share and which outlives them.

Every trial of a study is put into the queue when the study is made, with a ``slot`` number. A process takes one, and
says every few seconds that it is alive. A trial whose process fell silent is put into the queue again.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.refusals import stable_number

BEAT = 5.0
"""Seconds between two signs of life."""
SILENCE = 30.0
"""Seconds without one after which a process counts as dead; clocks of several machines may differ by less."""
WAIT = 2.0
"""Seconds between two looks at trials that other processes run."""
FIRST_TRIALS = 3
"""Trials before the sampler (TPE) and the pruner use the results."""

WORST = 1.0
"""Value of a trial that failed: objectives lie between 0 and 1."""

Slot = dict[str, Any]
"""What a trial is: its number or name as ``slot``, ``fixed`` parameters, and what else the trial needs to know."""


def open_storage(url: str | None, output: Path) -> Any:
    """Open the storage that ``--storage`` names, or the SQLite file in the output folder.

    Raises:
        ConfigError: Optuna is not installed, or the storage cannot be opened.
    """
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalStorage
    except ImportError as error:
        raise ConfigError("compare: needs Optuna (pip install 'lume-unlearning[compare]')") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        if url is not None and url.startswith("journal:"):
            return JournalStorage(JournalFileBackend(url.removeprefix("journal:")))
        options = {"connect_args": {"timeout": 60}} if url is None else {}
        return optuna.storages.RDBStorage(url or f"sqlite:///{output / 'trials.db'}", engine_kwargs=options)
    except Exception as error:  # drivers of databases raise errors of their own
        raise ConfigError(f"--storage {url or output}: cannot be opened: {type(error).__name__}: {error}") from error


class Queue:
    """The trials of one study."""

    def __init__(
        self, storage: Any, lock: FileLock, name: str, comparison: dict[str, Any], slots: Sequence[Slot]
    ) -> None:
        """Make the study, or join it if another process made it; add the slots that it lacks.

        Args:
            storage: of `open_storage`.
            lock: of the processes of one machine, since SQLite lets two of them take the same trial.
            name: of the study.
            comparison: what all trials depend on, to refuse a storage of another comparison.
            slots: the trials.

        Raises:
            ConfigError: the study belongs to another comparison.
        """
        import optuna

        self.name, self.optuna, self.lock = name, optuna, lock
        self.slots = [slot["slot"] for slot in slots]
        self.heard: dict[int, tuple[Any, float]] = {}
        """Running trial to the last sign of life of its process, and when it came by this process's clock."""
        with lock:
            try:
                self.study = optuna.create_study(storage=storage, study_name=name, direction="minimize")
                self.study.set_user_attr("comparison", comparison)
            except optuna.exceptions.DuplicatedStudyError:
                self.study = optuna.load_study(storage=storage, study_name=name)
                self._wait_until_filled()
            self._require_same(comparison)
            there = {trial.user_attrs.get("slot") for trial in self.study.trials if not self._lost(trial)}
            for slot in slots:
                if slot["slot"] not in there:
                    self._enqueue(slot)
            self.study.set_user_attr("filled", True)
        self.study.pruner = optuna.pruners.MedianPruner(n_startup_trials=FIRST_TRIALS, n_warmup_steps=1)

    def _require_same(self, comparison: dict[str, Any]) -> None:
        other = self.study.user_attrs.get("comparison", comparison)
        differing = [key for key in comparison if other.get(key) != comparison[key]]
        if differing:
            found = ", ".join(f"{key} {other.get(key)!r} instead of {comparison[key]!r}" for key in differing)
            raise ConfigError(f"--storage: it holds another comparison ({found}); name another --output or --storage")

    def _wait_until_filled(self) -> None:
        """Wait until the process that made the study has put its trials into the queue, unless it died before."""
        for _ in range(int(SILENCE * 2)):
            if "filled" in self.study.user_attrs:
                return
            time.sleep(0.5)

    def _enqueue(self, slot: Slot) -> None:
        self.study.enqueue_trial(slot["fixed"], user_attrs={"slot": slot["slot"], "task": slot})

    def _lost(self, trial: Any) -> bool:
        """Return whether a trial ended without a result."""
        return trial.state == self.optuna.trial.TrialState.FAIL and "reason" not in trial.user_attrs

    def results(self) -> dict[Any, Any]:
        """Return the finished trials, slot to Optuna's trial: the complete, the pruned, and those that failed."""
        done: dict[Any, Any] = {}
        for trial in self.study.trials:
            if trial.state.is_finished() and not self._lost(trial) and "slot" in trial.user_attrs:
                done.setdefault(trial.user_attrs["slot"], trial)
        return done

    @property
    def finished(self) -> bool:
        """Whether every slot has a result."""
        done = self.results()
        return all(slot in done for slot in self.slots)

    def take(self) -> Any:
        """Take a trial from the queue for this process; None if none waits."""
        states = self.optuna.trial.TrialState
        with self.lock:
            self._requeue_lost()
            if not any(trial.state == states.WAITING for trial in self.study.trials):
                return None
            trial = self.study.ask()
        if "slot" not in trial.user_attrs:  # another machine was faster, and Optuna made a trial beyond the budget
            self._tell(trial, state=states.FAIL)
            return None
        trial.set_user_attr("alive", 0)
        # Seeded by the slot, so that a trial's parameters depend on the results so far, not on who runs it.
        seed = stable_number(self.name, trial.user_attrs["slot"]) % 2**32
        self.study.sampler = self.optuna.samplers.TPESampler(seed=seed, n_startup_trials=FIRST_TRIALS)
        return trial

    def _requeue_lost(self) -> None:
        """Put the trials of dead processes into the queue again."""
        states = self.optuna.trial.TrialState
        for trial in self.study.trials:
            if trial.state != states.RUNNING:
                continue
            alive, now = trial.user_attrs.get("alive"), time.monotonic()
            last, since = self.heard.setdefault(trial.number, (alive, now))
            if last != alive:
                self.heard[trial.number] = alive, now
            elif now - since > SILENCE and self._tell(trial.number, state=states.FAIL) and "task" in trial.user_attrs:
                self._enqueue(trial.user_attrs["task"])

    @contextmanager
    def running(self, trial: Any) -> Iterator[None]:
        """Say regularly that this process is alive while the block runs the trial."""
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

    def complete(self, trial: Any, value: float, **attributes: Any) -> None:
        """Store the result of a trial."""
        with suppress(self.optuna.exceptions.UpdateFinishedTrialError):  # another process did it meanwhile
            for key, result in attributes.items():
                trial.set_user_attr(key, result)
        self._tell(trial, value)

    def failed(self, trial: Any, reason: str) -> None:
        """Store that a trial failed, and why; the sampler learns that its setting is bad."""
        self.complete(trial, WORST, reason=reason)

    def pruned(self, trial: Any) -> None:
        """Store that a trial was ended early, because others were better at the same point."""
        self._tell(trial, state=self.optuna.trial.TrialState.PRUNED)

    def _tell(self, trial: Any, *args: Any, **kwargs: Any) -> bool:
        """End a trial; False if another process has ended it already."""
        try:
            self.study.tell(trial, *args, **kwargs)
        except (ValueError, RuntimeError):  # Optuna's UpdateFinishedTrialError is a RuntimeError
            return False
        return True


def trials_of(queues: Sequence[Queue]) -> Iterator[tuple[Queue, Any]]:
    """Yield trials for this process to run, from each queue in turn, until all are finished, by whatever process."""
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
