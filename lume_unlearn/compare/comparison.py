"""One comparison: its queues of trials and of final runs, and how they are run."""

import json
import math
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lume_tasks.data.source import Data
from lume_tasks.errors import DataError, NotFinite
from lume_unlearn.checks import stable_number
from lume_unlearn.compare.callbacks import Curve
from lume_unlearn.compare.contestants import Contestant
from lume_unlearn.compare.documents import Parts, digest
from lume_unlearn.compare.judge import Judge, Result, chance, objective
from lume_unlearn.compare.queue import TRIES, WORST, Queue, Task, trials_of
from lume_unlearn.compare.training import Load, default_arguments, keep, kept_run, unlearned
from lume_unlearn.compare.tuning import Setting, chosen, default_setting, ranges, tasks
from lume_unlearn.data.encode import Encoder
from lume_unlearn.errors import ConfigError, Diverged
from lume_unlearn.model.fingerprint import weights_sha256
from lume_unlearn.model.load import context_length
from lume_unlearn.training.arguments import UnlearningArguments

CURVE_QUESTIONS = 2
"""MMLU questions of each subject for the curves."""
PASSING = (RuntimeError, MemoryError, OSError)
"""Causes of an error, such as too little memory or a full disk, after which another attempt may work."""
MODELS = "models"
"""Name of the queue in which target and retrained model are scored."""


@dataclass
class Comparison:
    """The inputs of a comparison, and its queues, on which several processes may work."""

    models: Mapping[str, Load]
    """ "target", and "retrained" if there is a retrained model."""
    contestants: Mapping[str, Contestant]
    parts: Parts
    judge: Judge
    alternatives: Mapping[str, Sequence[str]] | None
    trials: int
    """Trials of each contestant; 0: its defaults are run without tuning."""
    seeds: int
    """Final runs of each contestant."""
    probes: Mapping[str, Any]
    """Options of `run_probes` (``probes``, ``relearn_rows``, ...); empty for no probes."""
    folder: Path
    """Folder for the weights of a final run while it is probed."""
    say: Callable[[str], None]
    """Prints a line."""
    args: dict[str, UnlearningArguments] = field(default_factory=dict)
    """Contestant to its arguments before tuning, with defaults filled in."""
    queues: dict[str, Queue] = field(default_factory=dict)
    """Contestant to the queue of its trials."""
    finals: dict[str, Queue] = field(default_factory=dict)
    """Contestant to the queue of its final runs; `MODELS` to that of the models."""
    before: dict[bool, dict[str, float]] = field(default_factory=dict)
    """The target's numbers on the tuning documents, with (True) or without the chat template."""

    def run(self, make_queue: Callable[[str, dict[str, Any], Sequence[Task]], Queue]) -> None:
        """Run the trials and the final runs that no other process runs, and wait for the others.

        ``make_queue``: makes a queue from a name, what all its trials depend on, and tasks.

        Raises:
            ConfigError: a model cannot be loaded or scored, an option of a method cannot work, a file that a recipe
                names is missing, or the storage holds another comparison.
            DataError: such a file has faults, or rows do not fit the model or a method.
        """
        same = {"models": self._load_models(), "rows": digest(self.parts, self.alternatives)}
        depends = {name: same | found.identity() | found.contents() for name, found in self.contestants.items()}
        for name, contestant in self.contestants.items():
            work = tasks(default_setting(contestant.method, self.args[name]), self.trials)
            work = [{"contestant": name, **task} for task in work]
            self.queues[name] = make_queue(name, depends[name] | {"trials": self.trials}, work)
        self._work(self.queues.values(), self._run_trial)
        self.finals[MODELS] = make_queue(MODELS, same, self._models())
        for name in self.contestants:
            task = {"contestant": name, "fixed": {}, "setting": self.best(name)}
            probes = [self.probes, *[{}] * (self.seeds - 1)] if task["setting"] else []
            work = [{"slot": f"seed {seed}", "seed": seed, "probes": own, **task} for seed, own in enumerate(probes)]
            self.finals[name] = make_queue(f"final {name}", depends[name], work)
        self._work(self.finals.values(), self._run_final)
        for row, error in self.finals[MODELS].errors().items():
            raise ConfigError(f"the {row} model could not be scored: {error}")

    def _load_models(self) -> dict[str, str]:
        """Fill in the contestants' arguments, which depend on the target; return the digest of each model's weights."""
        digests = {}
        for name, load in self.models.items():
            model = load(torch.float32)
            digests[name] = weights_sha256(model)
            if name == "target":
                self.args = {key: default_arguments(found, model) for key, found in self.contestants.items()}
                self._require_room(context_length(model))
        return digests

    def _require_room(self, context: int | None) -> None:
        """Refuse rows that do not fit the model, which may be in the final runs alone, before the first trial."""
        data, every = self.parts.whole, self.args.values()
        ways = {(args.loss_on, args.chat, args.max_length, args.retain_term == "none") for args in every}
        for loss_on, chat, max_length, alone in sorted(ways, key=str):
            encode = Encoder(self.judge.tokenizer, loss_on, chat, max_length, context)
            encode(data.forget if alone else [*data.forget, *data.retain])

    def _models(self) -> list[Task]:
        """Return the tasks that score the models, with and without chat template as the contestants need it."""
        chats = {contestant.chat for contestant in self.contestants.values()}
        pairs = [(name, chat) for name in self.models for chat in sorted(chats, reverse=True)]
        shared = {"fixed": {}, "probes": self.probes}
        return [{"slot": row_of(name, chat), "model": name, "chat": chat, **shared} for name, chat in pairs]

    def _work(self, queues: Iterable[Queue], run: Callable[[Queue, Any, Task], str]) -> None:
        """Run the trials that wait in the queues, and print what ``run`` returns for each.

        Divergence is a result. Any other error is stored. If it is due to an option or to the rows, it is raised, since
        another attempt ends in the same way; else the trial is tried again.
        """
        for queue, trial in trials_of(list(queues)):
            label, task = f"{queue.name}, {trial.user_attrs['slot']}", trial.user_attrs["task"]
            self.say(label)
            try:
                self.say(f"{label}: {run(queue, trial, task)}")
            except Exception as error:
                if isinstance(error, (Diverged, NotFinite)) and "model" not in task:
                    queue.end(trial, WORST, reason=str(error))
                    self.say(f"{label}: {error}")
                    continue
                traceback.print_exc()
                known = isinstance(error, (ConfigError, DataError))
                reason = str(error) if known else f"{type(error).__name__}: {error}"
                queue.end(trial, state=queue.states.FAIL, error=reason)
                if known and not isinstance(error.__cause__, PASSING):
                    raise
                self.say(f"{label}: failed ({trial.user_attrs['attempt']} of {TRIES} attempts): {reason}")

    def best(self, name: str) -> Setting | None:
        """Return the setting that is `chosen` from a contestant's trials; None if no trial was judged.

        Without trials, return the defaults.
        """
        if not self.trials:
            return default_setting(self.contestants[name].method, self.args[name])
        found = [trial for trial in self.queues[name].results().values() if trial.state.name == "COMPLETE"]
        judged = [trial for trial in found if "reason" not in trial.user_attrs]
        if not judged:
            return None
        return dict(chosen([(trial.params, trial.value) for trial in judged], chance(judged[0].user_attrs["numbers"])))

    def _run_trial(self, queue: Queue, trial: Any, task: Task) -> str:
        """Train with one setting on the tuning rows, judge and store the result, and return it in words.

        Tuning has fewer rows than the final runs and proportionally smaller batches, hence as many optimiser steps.
        """
        contestant, args = self.contestants[task["contestant"]], self.args[task["contestant"]]
        ends = ranges(contestant.method, default_setting(contestant.method, args))
        setting = {name: trial.suggest_float(name, *ends[name], log=True) for name in ends}
        data, chat = self.parts.tuning, contestant.chat
        size = max(1, round(args.rows_per_step * len(data.forget) / len(self.parts.whole.forget)))
        steps = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 1}
        found = self.judge.judged(self._unlearned(contestant, setting | steps, data), data, chat)
        if chat not in self.before:
            self.before[chat] = self.judge.judged(self.models["target"](torch.float32), data, chat)
        value = objective(found, self.before[chat])
        if not math.isfinite(value):
            raise Diverged("the scores of the result are not finite numbers")
        queue.end(trial, value, numbers=found)
        shown = ", ".join(f"{name} {option:.2g}" for name, option in setting.items())
        return f"objective {value:.3f} with {shown}"

    def _run_final(self, queue: Queue, trial: Any, task: Task) -> str:
        """Score one of the models, or train with one seed on all rows and score the result; store it in the queue."""
        probes = task["probes"]
        if "model" in task:
            model = self.models[task["model"]](torch.float32)
            result = self.judge.result(model, self.parts, task["chat"])
            queue.end(trial, 0.0, result=result | self.judge.audits(model, self.parts, task["chat"], probes))
            return "scored"
        contestant, setting = self.contestants[task["contestant"]], task["setting"] | {"seed": task["seed"]}
        about = json.dumps([queue.study.user_attrs["comparison"], task | {"probes": {}}], sort_keys=True)
        kept = self.folder / f"unfinished_{stable_number(about):x}.safetensors"
        if probes and kept.exists():  # the run was stopped while it was probed
            model, result = kept_run(kept, self.models["target"], contestant, setting)
        else:
            model, result = self._trained(task["contestant"], setting)
            if probes:
                keep(kept, model, result)
        queue.end(trial, 0.0, result=result | self.judge.audits(model, self.parts, contestant.chat, probes))
        kept.unlink(missing_ok=True)
        return f"trained in {result['seconds'] / 60:.0f} minutes, and scored"

    def _trained(self, name: str, setting: Setting) -> tuple[Any, Result]:
        """Train a contestant with a setting on all rows; return the model, and its result without probes."""
        contestant, final = self.contestants[name], self.parts.final
        chat = contestant.chat
        curve = Curve(lambda model: self.judge.followed(model, final, chat, CURVE_QUESTIONS))
        started = time.perf_counter()
        model = self._unlearned(contestant, setting, self.parts.whole, curve)
        seconds = time.perf_counter() - started - curve.seconds
        if contestant.method.negated:
            curve.add(model, float(self.args[name].num_train_epochs or 0))
        return model, self.judge.result(model, self.parts, chat) | {"seconds": seconds, "curve": curve.points}

    def _unlearned(self, contestant: Contestant, setting: Setting, data: Data, callback: Any = None) -> Any:
        """Unlearn from the target, with the alternatives of these rows if the method needs them; see `unlearned`."""
        others = None
        if self.alternatives is not None and contestant.method.needs.alternatives == "file":
            others = {row.id: self.alternatives.get(row.id, ()) for row in data.forget}
        given = {"processing_class": self.judge.tokenizer, "alternatives": others}
        return unlearned(self.models["target"], contestant, setting, data, callback, given)


def row_of(model: str, chat: bool) -> str:
    """Return the name of the table's row for the target or the retrained model."""
    return model if chat else f"{model}, without chat template"
