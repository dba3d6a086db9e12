"""The queues of a comparison: trials of every contestant, then the final runs of the best settings."""

import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lume_tasks.errors import DataError
from lume_unlearn.compare.comparison import Comparison
from lume_unlearn.compare.contestants import Contestant
from lume_unlearn.compare.documents import digest
from lume_unlearn.compare.queue import TRIES, Queue, Task, trials_of
from lume_unlearn.compare.training import default_arguments
from lume_unlearn.compare.tuning import Setting, default_setting, tasks
from lume_unlearn.errors import ConfigError, Diverged
from lume_unlearn.model.fingerprint import weights_sha256
from lume_unlearn.training.arguments import UnlearningArguments

MODELS = "models"
"""Name of the queue in which target and retrained model are scored."""


class Study:
    """What a comparison has to do, and what is done of it, by whatever process."""

    def __init__(
        self,
        comparison: Comparison,
        contestants: Mapping[str, Contestant],
        trials: int,
        seeds: int,
        make_queue: Callable[[str, dict[str, Any], list[Task]], Queue],
        say: Callable[[str], None],
    ) -> None:
        """Load the models once, fill in the contestants' defaults, and put their trials into queues.

        Args:
            comparison: runs trials and final runs.
            contestants: by name.
            trials: of each contestant.
            seeds: final runs of each contestant.
            make_queue: from name, what all its trials depend on, and trials to a queue.
            say: prints a line.

        Raises:
            ConfigError: a model cannot be loaded, or the storage holds another comparison.
        """
        self.comparison, self.contestants, self.trials, self.seeds = comparison, contestants, trials, seeds
        self.make_queue, self.say = make_queue, say
        self.args: dict[str, UnlearningArguments] = {}
        """Contestant to its arguments without tuning, filled in."""
        digests = {}
        for name, load in comparison.models.items():
            model = load()
            digests[name] = weights_sha256(model)
            if name == "target":
                self.args = {key: default_arguments(found, model) for key, found in contestants.items()}
        self.same = {"models": digests, "rows": digest(comparison.parts, comparison.alternatives)}
        self.defaults = {name: default_setting(contestants[name], args) for name, args in self.args.items()}
        self.queues = {}
        for name, found in contestants.items():
            same = self.same | found.identity() | {"trials": trials}
            self.queues[name] = make_queue(name, same, tasks(self.defaults[name], trials))
        self.finals: dict[str, Queue] = {}
        """`MODELS` and each contestant to its final runs."""

    def tune(self) -> None:
        """Run the trials that no other process runs, and wait for those."""
        for queue, trial in trials_of(list(self.queues.values())):
            name = f"{queue.name}: trial {trial.user_attrs['slot'] + 1} of {self.trials}"
            self.say(name)
            contestant, args = self.contestants[queue.name], self.args[queue.name]
            self._attempt(name, queue, trial, partial(self.comparison.run_trial, queue, trial, contestant, args))

    def best(self, name: str) -> Setting | None:
        """Return the setting of a contestant's trial with the lowest value; None if no trial was judged."""
        found = [trial for trial in self.queues[name].results().values() if trial.state.name == "COMPLETE"]
        judged = [trial for trial in found if "reason" not in trial.user_attrs]
        return dict(min(judged, key=lambda trial: trial.value).params) if judged else None

    def run_finals(self) -> None:
        """Score the models, and run the best settings with each seed.

        Raises:
            ConfigError: the target or the retrained model could not be scored.
        """
        chats = sorted({contestant.chat for contestant in self.contestants.values()}, reverse=True)
        work = [
            {"slot": row_of(name, chat), "fixed": {}, "model": name, "chat": chat}
            for name in self.comparison.models
            for chat in chats
        ]
        probed = {**self.same, "probes": list(self.comparison.probes), **self.comparison.probe_options}
        self.finals = {MODELS: self.make_queue(MODELS, probed, work)}
        for name, contestant in self.contestants.items():
            setting = self.best(name)
            work = [{"slot": seed, "fixed": {}, "setting": setting} for seed in range(self.seeds if setting else 0)]
            self.finals[name] = self.make_queue(f"final {name}", probed | contestant.identity(), work)
        names = {id(queue): name for name, queue in self.finals.items()}
        for queue, trial in trials_of(list(self.finals.values())):
            name, task = names[id(queue)], trial.user_attrs["task"]
            label = f"final: {task['slot']}" if name == MODELS else f"final: {name}, seed {task['slot']}"
            self.say(label)
            self._attempt(label, queue, trial, partial(self._run_final, queue, trial, name, task))
        for row, error in self.finals[MODELS].errors().items():
            raise ConfigError(f"the {row} model could not be scored: {error}")

    def _run_final(self, queue: Queue, trial: Any, name: str, task: Task) -> None:
        comparison = self.comparison
        if name == MODELS:
            result = comparison.result_of(comparison.models[task["model"]](), task["chat"], comparison.probes)
        else:
            args = self.args[name]
            result = comparison.final_run(self.contestants[name], args, task["setting"], task["slot"])
        queue.complete(trial, 0.0, result=result)

    def _attempt(self, name: str, queue: Queue, trial: Any, work: Callable[[], None]) -> None:
        """Do the work of a trial: divergence is its result, another error is stored, so that it is tried again."""
        try:
            work()
        except Diverged as error:
            queue.diverged(trial, str(error))
        except Exception as error:  # out of memory, a full disk, an option that cannot work
            traceback.print_exc()
            reason = str(error) if isinstance(error, (ConfigError, DataError)) else f"{type(error).__name__}: {error}"
            queue.failed(trial, reason)
            attempt = trial.user_attrs["attempt"]
            self.say(f"{name} failed ({attempt} of {TRIES} attempts): {reason}")

    def failures(self) -> dict[str, str]:
        """Return trial or final run to the error with which it failed too often."""
        found = {}
        for queue in self.queues.values():
            found |= {f"{queue.name}, trial {slot + 1}": error for slot, error in queue.errors().items()}
        for name, queue in self.finals.items():
            found |= {f"{name}, seed {slot}": error for slot, error in queue.errors().items()}
        return found

    def diverged(self) -> dict[str, str]:
        """Return final run to why it diverged."""
        found = {}
        for name, queue in self.finals.items():
            reasons = {slot: trial.user_attrs.get("reason") for slot, trial in queue.results().items()}
            found |= {f"{name}, seed {slot}": reason for slot, reason in reasons.items() if reason}
        return found


def row_of(model: str, chat: bool) -> str:
    """Return how a row of the table is called that shows the target or the retrained model."""
    return model if chat else f"{model}, without chat template"
