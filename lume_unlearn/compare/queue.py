"""A queue of trials in an Optuna storage, which several processes share and which outlives them.

Every trial of a study is put into the queue when the study is made, with a ``slot`` number. A process takes one, and
says every few seconds that it is alive. A trial whose process fell silent is put into the queue again.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
        with FileLock(output / ".storage.lock"):  # two processes cannot create one SQLite file
            return optuna.storages.RDBStorage(url or f"sqlite:///{output / 'trials.db'}", engine_kwargs=options)
    except Exception as error:  # drivers of databases raise errors of their own
        raise ConfigError(f"--storage {url or output}: cannot be opened: {type(error).__name__}: {error}") from error


class Queue:
    """The trials of one study."""

    def __init__(self, storage: Any, name: str, comparison: dict[str, Any], slots: Sequence[Slot]) -> None:
        """Make the study, or join it if another process made it; add the slots that it lacks.

        Args:
            storage: of `open_storage`.
            name: of the study.
            comparison: what all trials depend on, to refuse a storage of another comparison.
            slots: the trials.

        Raises:
            ConfigError: the study belongs to another comparison.
        """
        import optuna

        self.name, self.optuna = name, optuna
        try:
            self.study = optuna.create_study(storage=storage, study_name=name, direction="minimize")
            self.study.set_user_attr("comparison", comparison)
        except optuna.exceptions.DuplicatedStudyError:
            self.study = optuna.load_study(storage=storage, study_name=name)
            self._wait_until_filled()
        self.study.pruner = optuna.pruners.MedianPruner(n_startup_trials=FIRST_TRIALS, n_warmup_steps=1)
        other = self.study.user_attrs.get("comparison", comparison)
        differing = [key for key in comparison if other.get(key) != comparison[key]]
        if differing:
            found = ", ".join(f"{key} {other.get(key)!r} instead of {comparison[key]!r}" for key in differing)
            raise ConfigError(f"--storage: it holds another comparison ({found}); name another --output or --storage")
        there = {trial.user_attrs.get("slot") for trial in self.study.trials}
        for slot in slots:
            if slot["slot"] not in there:
                self.study.enqueue_trial(slot["fixed"], user_attrs=slot)
        self.study.set_user_attr("filled", True)
        self.slots = [slot["slot"] for slot in slots]

    def _wait_until_filled(self) -> None:
        """Wait until the process that made the study has put its trials into the queue, unless it died before."""
        for _ in range(int(SILENCE * 2)):
            if "filled" in self.study.user_attrs:
                return
            time.sleep(0.5)

    def results(self) -> dict[Any, Any]:
        """Return the finished trials, slot to Optuna's trial: the complete, the pruned, and those that failed."""
        states = self.optuna.trial.TrialState
        done: dict[Any, Any] = {}
        for trial in self.study.trials:
            lost = trial.state == states.FAIL and "reason" not in trial.user_attrs
            if trial.state.is_finished() and not lost and "slot" in trial.user_attrs:
                done.setdefault(trial.user_attrs["slot"], trial)
        return done

    @property
    def finished(self) -> bool:
        """Whether every slot has a result."""
        done = self.results()
        return all(slot in done for slot in self.slots)

    def take(self) -> Any:
        """Take a trial from the queue for this process; None if none waits."""
        self._requeue_lost()
        states = self.optuna.trial.TrialState
        waiting = [trial for trial in self.study.trials if trial.state == states.WAITING]
        if not waiting:
            return None
        # Seeded by the slot, so that a trial's parameters depend on the results so far, not on who runs it.
        seed = stable_number(self.name, waiting[0].user_attrs["slot"]) % 2**32
        self.study.sampler = self.optuna.samplers.TPESampler(seed=seed, n_startup_trials=FIRST_TRIALS)
        trial = self.study.ask()
        if "slot" not in trial.user_attrs:  # another process was faster, and Optuna made a trial beyond the budget
            self.study.tell(trial, state=states.FAIL)
            return None
        trial.set_user_attr("alive", time.time())
        return trial

    def _requeue_lost(self) -> None:
        """Put the trials of dead processes into the queue again."""
        states = self.optuna.trial.TrialState
        for trial in self.study.trials:
            silent = time.time() - trial.user_attrs.get("alive", time.time())
            if trial.state != states.RUNNING or silent < SILENCE:
                continue
            try:
                self.study.tell(trial.number, state=states.FAIL)
            except (ValueError, RuntimeError):  # another process has done so
                continue
            attributes = {key: value for key, value in trial.user_attrs.items() if key != "alive"}
            self.study.enqueue_trial(attributes["fixed"], user_attrs=attributes)

    @contextmanager
    def running(self, trial: Any) -> Iterator[None]:
        """Say regularly that this process is alive while the block runs the trial."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(BEAT):
                try:
                    trial.set_user_attr("alive", time.time())
                except self.optuna.exceptions.UpdateFinishedTrialError:  # its result is stored already
                    return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def complete(self, trial: Any, value: float, **attributes: Any) -> None:
        """Store the result of a trial."""
        for key, result in attributes.items():
            trial.set_user_attr(key, result)
        self.study.tell(trial, value)

    def pruned(self, trial: Any) -> None:
        """Store that a trial was ended early, because others were better at the same point."""
        self.study.tell(trial, state=self.optuna.trial.TrialState.PRUNED)

    def failed(self, trial: Any, reason: str) -> None:
        """Store that a trial failed, and why."""
        trial.set_user_attr("reason", reason)
        self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)


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
