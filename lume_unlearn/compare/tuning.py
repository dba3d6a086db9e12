"""Tune one method: the ranges that trials are drawn from, the first trials, and one trial."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback

from lume_unlearn.compare.contestants import Contestant
from lume_unlearn.compare.queue import WORST, Task
from lume_unlearn.training.arguments import UnlearningArguments
from lume_unlearn.training.callbacks.monitor import Monitor

RATES = (0.05, 20.0)
"""Learning rates to try, as multiples of the method's default for the model."""
WEIGHTS = (0.1, 10.0)
"""Retain weights to try, as multiples of the method's default."""
DESIGN = ((1.0, 1.0), (0.2, 1.0), (1.0, 3.0), (5.0, 3.0), (5.0, 1.0))
"""The first trials: the method's defaults with the learning rate and the retain weight times these.

Three trials so vary both: lower rates and higher weights destroy less. A method without a retain weight to tune has the
rates alone, each once."""

Setting = dict[str, float]
"""Option to value: ``learning_rate``, ``retain_weight``, and hyperparameters of the method."""


def default_setting(contestant: Contestant, args: UnlearningArguments) -> Setting:
    """Return the defaults of the options to tune.

    Args:
        contestant: the method, whose hyperparameters with a range (`param(search=...)`) are tuned.
        args: its arguments, filled in.
    """
    found = {"learning_rate": float(args.learning_rate or 0)}
    if args.retain_weight and args.retain_term != "none" and not contestant.method.adapt:
        found["retain_weight"] = float(args.retain_weight)
    values = {name: getattr(contestant.method, name) for name in _searched(contestant)}
    return found | {name: float(value) for name, value in values.items() if value > 0}


def ranges(contestant: Contestant, default: Setting) -> dict[str, tuple[float, float]]:
    """Return the range of each option to tune, around its default; trials are spread evenly over its logarithm."""
    found = {}
    for name, (low, high) in {"learning_rate": RATES, "retain_weight": WEIGHTS}.items():
        if name in default:
            found[name] = (low * default[name], high * default[name])
    for name, (low, high) in _searched(contestant).items():
        if name in default:
            found[name] = (min(low, default[name]), max(high, default[name]))
    return found


def _searched(contestant: Contestant) -> dict[str, tuple[float, float]]:
    metadata = {name: field.metadata.get("search") for name, field in contestant.method.params().items()}
    return {name: search for name, search in metadata.items() if search is not None}


def tasks(default: Setting, trials: int) -> list[Task]:
    """Return the trials of one method: those of `DESIGN`, then as many as the budget allows, chosen by the sampler."""
    first: list[Setting] = []
    for rate, weight in DESIGN:
        times = {"learning_rate": rate, "retain_weight": weight}
        setting = {name: times.get(name, 1.0) * value for name, value in default.items()}
        if setting not in first:
            first.append(setting)
    return [{"slot": i, "fixed": first[i] if i < len(first) else {}} for i in range(trials)]


class Pruner(TrainerCallback):
    """Ends a trial after an epoch in which it is worse than most others were after that epoch.

    It compares the monitor's token probabilities exp(-NLL) with where they should be: on forget rows the retrained
    model's (or 0), on retain rows the target's. The mean of both distances is reported.
    """

    def __init__(self, trial: Any, monitor: Monitor, goal: Callable[[Any], float]) -> None:
        """Take Optuna's trial, the run's monitor, and a function from its forget rows to the probability to aim at."""
        self.trial, self.monitor, self.goal = trial, monitor, goal
        self.pruned = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure and report, and end training if the trial is pruned."""
        if state.global_step >= state.max_steps:
            return
        first, last = self.monitor.measured[0], self.monitor.measure(model, state.global_step)
        value = progress(first, last, self.goal(self.monitor.rows["forget"]))
        self.trial.report(value if math.isfinite(value) else WORST, round(state.epoch))
        if self.trial.should_prune():
            self.pruned = control.should_training_stop = True


def progress(first: Mapping[str, float], last: Mapping[str, float], goal: float) -> float:
    """Compute the mean distance of the token probabilities of forget rows from ``goal``, of retain rows from the start.

    Worked example: forget NLL 0.7 (probability .4966) and goal .1, retain NLL from 0.1 to 0.2 (.9048, .8187):
    (.3966 + .0861) / 2 = .2413.
    """
    found = [abs(math.exp(-last["forget_nll"]) - goal)]
    if "retain_nll" in last:
        found.append(abs(math.exp(-last["retain_nll"]) - math.exp(-first["retain_nll"])))
    else:
        found.append(0.0)
    return sum(found) / 2
