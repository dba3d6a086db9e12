"""What compare does while a run trains: end a poor trial early, and judge a final run after each epoch."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import TrainerCallback

from lume_unlearn.compare.queue import WORST


class Pruner(TrainerCallback):
    """Ends a trial after an epoch in which it is worse than most others were after that epoch."""

    trainer: Any

    def __init__(self, trial: Any, goal: Callable[[Sequence[Any], int], float]) -> None:
        """Take Optuna's trial, and a function from forget rows and ``max_tokens`` to the probability to aim at."""
        self.trial, self.goal = trial, goal
        self.pruned = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure and report, and end training if the trial is pruned."""
        if state.global_step >= state.max_steps:
            return
        monitor = self.trainer.monitor
        first, last = monitor.measured[0], monitor.measure(model, state.global_step)
        value = unreached(first, last, self.goal(monitor.rows["forget"], args.max_tokens))
        self.trial.report(value if math.isfinite(value) else WORST, round(state.epoch))
        if self.trial.should_prune():
            self.pruned = control.should_training_stop = True


def unreached(first: Mapping[str, float], last: Mapping[str, float], goal: float) -> float:
    """Compute the mean distance of the token probabilities exp(-NLL) from where they should be.

    On forget rows that is ``goal``, on retain rows (distance 0 without such rows) the target's probability.

    Worked example: forget NLL 0.7 (probability .4966) and goal .1, retain NLL from 0.1 to 0.2 (.9048, .8187):
    (.3966 + .0861) / 2 = .2413.
    """
    kept = [math.exp(-entry["retain_nll"]) for entry in (first, last) if "retain_nll" in entry]
    return (abs(math.exp(-last["forget_nll"]) - goal) + (max(kept) - min(kept) if kept else 0.0)) / 2


class Curve(TrainerCallback):
    """Judges the model at the start and after each epoch, in the arithmetic of training."""

    def __init__(self, judge: Callable[[Any], Mapping[str, float]]) -> None:
        """Take a function from the model to its numbers."""
        self.judge = judge
        self.points: list[dict[str, float]] = []
        self.seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Judge the target."""
        self.add(model, 0.0)

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Judge the model in training."""
        self.add(model, float(state.epoch))

    def add(self, model: Any, epoch: float) -> None:
        """Add a point to the curve."""
        started = time.perf_counter()
        self.points.append({"epoch": epoch, **self.judge(model)})
        self.seconds += time.perf_counter() - started
