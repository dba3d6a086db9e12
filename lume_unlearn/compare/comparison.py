"""One comparison: its models and data, one trial of tuning, and one final run."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lume_tasks.data.source import Data
from lume_tasks.metrics.unlearning import RowScores, distances
from lume_unlearn.compare import final, judge
from lume_unlearn.compare.contestants import Contestant
from lume_unlearn.compare.documents import Parts
from lume_unlearn.compare.queue import Queue
from lume_unlearn.compare.training import Load, unlearned
from lume_unlearn.compare.tuning import Pruner, Setting, default_setting, ranges
from lume_unlearn.errors import Diverged
from lume_unlearn.model.forward import Passes
from lume_unlearn.scoring.score import Scores
from lume_unlearn.training.arguments import UnlearningArguments
from lume_unlearn.training.callbacks.monitor import mean_nll


@dataclass
class Comparison:
    """The models and the data of a comparison, and what is computed of the retrained model once."""

    models: Mapping[str, Load]
    """ "target", and "retrained" if there is a retrained model."""
    tokenizer: Any
    parts: Parts
    alternatives: Mapping[str, Sequence[str]] | None
    batch_size: int
    """Prompts of one scoring batch."""
    probes: Sequence[str]
    """Probes of seed 0, and of the models."""
    probe_options: Mapping[str, Any]
    """Further options of `run_probes`."""
    goals: dict[Any, float] = field(default_factory=dict)
    """Monitored forget rows to the retrained model's token probability."""
    retrained_rows: dict[bool, RowScores] = field(default_factory=dict)
    """With or without the chat template, to the retrained model's scores of the tuning documents."""

    @property
    def retrained(self) -> Load | None:
        """Loads the retrained model; None if there is none."""
        return self.models.get("retrained")

    def judge(self, model: Any, data: Data, chat: bool, mmlu: int | None = None) -> Scores:
        """Judge a model on these rows; see `judge.judged`."""
        return judge.judged(model, self.tokenizer, data, chat=chat, batch_size=self.batch_size, mmlu=mmlu)

    def objective(self, scores: Scores, chat: bool) -> float:
        """Return what tuning minimises: the distance to the retrained model, without one `judge.shortfall`.

        Raises:
            Diverged: it is not a finite number.
        """
        if self.retrained is None:
            value = judge.shortfall(judge.numbers(scores))
        else:
            if chat not in self.retrained_rows:
                self.retrained_rows[chat] = judge.rows_of(self.judge(self.retrained(), self.parts.tuning, chat))
            value = distances(judge.rows_of(scores), self.retrained_rows[chat])["distance"]
        if not math.isfinite(value):
            raise Diverged("the scores of the result are not finite numbers")
        return value

    def goal(self, rows: Sequence[Any], max_tokens: int) -> float:
        """Return the retrained model's token probability exp(-NLL) of these rows; 0 without a retrained model."""
        if self.retrained is None:
            return 0.0
        key = tuple(rows)
        if key not in self.goals:
            model = self.retrained()
            self.goals[key] = math.exp(-mean_nll(model, Passes(model), rows, max_tokens, model.device))
        return self.goals[key]

    def run_trial(self, queue: Queue, trial: Any, contestant: Contestant, args: UnlearningArguments) -> None:
        """Train with one setting on the tuning rows, judge the result there, and store it in the queue.

        Args:
            queue: of the contestant's trials.
            trial: of this queue.
            contestant: what to run.
            args: its arguments without tuning, filled in. Tuning has fewer rows than the final runs and proportionally
                smaller batches, hence as many optimiser steps.
        """
        ends = ranges(contestant, default_setting(contestant, args))
        setting = {name: trial.suggest_float(name, *ends[name], log=True) for name in ends}
        size = max(1, round(args.rows_per_step * len(self.parts.tuning.forget) / len(self.parts.whole.forget)))
        pruners: list[Pruner] = []

        def callbacks(trainer: Any) -> list[Pruner]:
            if not contestant.method.negated:  # its weights become those of the result after training
                pruners.append(Pruner(trial, trainer.monitor, lambda rows: self.goal(rows, trainer.args.max_tokens)))
            return pruners

        steps = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 1}
        model = self.unlearned(contestant, setting, self.parts.tuning, callbacks, **steps)
        if any(pruner.pruned for pruner in pruners):
            queue.pruned(trial)
            return
        scores = self.judge(model, self.parts.tuning, contestant.chat)
        queue.complete(trial, self.objective(scores, contestant.chat), numbers=judge.numbers(scores))

    def final_run(self, contestant: Contestant, args: UnlearningArguments, setting: Setting, seed: int) -> final.Result:
        """Train with one seed on all rows; return scores, curve, seconds and, for seed 0, the results of the probes."""

        def numbers(model: Any) -> dict[str, float]:
            return judge.numbers(self.judge(model, self.parts.final, contestant.chat, final.CURVE_QUESTIONS))

        curve, negated = final.Curve(numbers), contestant.method.negated
        started = time.perf_counter()
        # A task vector is made after training: until then the model learns the forget rows.
        model = self.unlearned(
            contestant, setting, self.parts.whole, lambda trainer: [] if negated else [curve], seed=seed
        )
        seconds = time.perf_counter() - started - curve.seconds
        if negated:
            curve.add(model, float(args.num_train_epochs or 0))
        result = self.result_of(model, contestant.chat, self.probes if seed == 0 else ())
        return result | {"seconds": seconds, "curve": curve.points}

    def unlearned(
        self, contestant: Contestant, setting: Setting, data: Data, callbacks: Callable[[Any], Any], **changes: Any
    ) -> Any:
        """Unlearn the forget rows of ``data`` from the target; see `training.unlearned`."""
        options = {"alternatives": self.alternatives, "callbacks": callbacks} | changes
        return unlearned(self.models["target"], self.tokenizer, contestant, setting, data, **options)

    def result_of(self, model: Any, chat: bool, probes: Sequence[str]) -> final.Result:
        """Score a model on the final documents; see `final.results_of`."""
        options = {"chat": chat, "batch_size": self.batch_size, "probes": probes, "train": self.parts.tuning}
        return final.results_of(model, self.tokenizer, self.parts.final, **options, **self.probe_options)
