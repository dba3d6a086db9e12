"""Tune one method: the ranges that trials are drawn from, and one trial."""

import math
import traceback
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback

from lume_unlearn.compare.judge import judged, objective
from lume_unlearn.compare.options import CompareConfig, is_recipe
from lume_unlearn.compare.queue import WORST, Queue, Slot
from lume_unlearn.config import RunConfig
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.registry import METHODS
from lume_unlearn.training.arguments import filled_in
from lume_unlearn.training.monitor import Monitor
from lume_unlearn.training.run import prepare, unlearned, with_inputs

RATES = (0.05, 20.0)
"""Learning rates to try, as multiples of the method's default for the model."""
LADDER = (1.0, 0.2, 5.0)
"""The first trials are the method's defaults with the learning rate times these."""
WEIGHTS = (0.1, 10.0)
"""Retain weights to try, as multiples of the method's default."""

SHARED = ("model", "data", "split", "loss_on", "epochs", "batch_size", "max_tokens", "precision", "trust_remote_code")
"""Options that are the same for all methods."""

Setting = dict[str, float]
"""Option to value: ``learning_rate``, ``retain_weight``, and parameters of the method."""


def defaults(config: CompareConfig, method: str, tuning: str) -> RunConfig:
    """Return the options of a run with the method's defaults, or a recipe's options, as this comparison asks for it.

    Raises:
        ConfigError: a recipe names no method, or an option that `run` does not have.
    """
    options: dict[str, Any] = {name: getattr(config, name) for name in SHARED}
    recipe = recipe_options(method) if is_recipe(method) else {"method": method}
    if METHODS[recipe["method"]].alternative == "file":
        options["alternatives"] = config.alternatives
    return filled_in(RunConfig(output=config.output, tuning=tuning, **(recipe | options)))


def recipe_options(path: str) -> dict[str, Any]:
    """Read a recipe as options of `RunConfig`; ConfigError if it names no method, or no option of `run`."""
    recipe: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(recipe, dict) or recipe.get("method") not in METHODS:
        raise ConfigError(f"--methods {path}: must name a method, as `method: npo`")
    params = {name: recipe.pop(name) for name in METHODS[recipe["method"]].params if name in recipe}
    unknown = recipe.keys() - {field.name for field in fields(RunConfig)}
    if unknown:
        raise ConfigError(f"--methods {path}: `run` has no option {', '.join(sorted(unknown))}")
    recipe.pop("tuning", None)  # --tunings says what is trained
    return recipe | {"params": params}


def ranges(run: RunConfig) -> dict[str, tuple[float, float]]:
    """Return the range of each option to tune, from the run's defaults; trials are spread evenly over its logarithm."""
    found = {"learning_rate": (RATES[0] * run.learning_rate, RATES[1] * run.learning_rate)}
    if run.needs_retain and run.retain_weight and not run.spec.adapt:
        found["retain_weight"] = (WEIGHTS[0] * run.retain_weight, WEIGHTS[1] * run.retain_weight)
    for name, param in run.spec.params.items():
        if param.search is not None:
            found[name] = param.search
    return found


def default_setting(run: RunConfig) -> Setting:
    """Return the defaults of the options to tune."""
    values = asdict(run) | run.params
    return {name: float(values[name]) for name in ranges(run)}


def slots(run: RunConfig, trials: int) -> list[Slot]:
    """Return the trials of one method: those of `LADDER`, then as many as the budget allows, chosen by the sampler."""
    first = default_setting(run)
    known = [first | {"learning_rate": times * first["learning_rate"]} for times in LADDER]
    return [{"slot": i, "fixed": known[i] if i < len(known) else {}} for i in range(trials)]


def with_setting(run: RunConfig, setting: Setting, **changes: Any) -> RunConfig:
    """Return a run with tuned values in place of its defaults, and with other changes."""
    params = {name: setting.get(name, value) for name, value in run.params.items()}
    options: dict[str, Any] = {name: value for name, value in setting.items() if name not in params}
    return replace(run, params=params, **options, **changes)


class Pruner(TrainerCallback):
    """Ends a trial after an epoch in which it is worse than most others were after that epoch.

    It compares the monitor's token probabilities exp(-NLL) with where they should be: on forget rows the retrained
    model's (or 0), on retain rows the target's. The mean of both distances is reported.
    """

    def __init__(self, trial: Any, monitor: Monitor, forget_goal: float) -> None:
        """``forget_goal``: see `forget_goal`."""
        self.trial, self.monitor, self.forget_goal = trial, monitor, forget_goal
        self.pruned = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure and report, and end training if the trial is pruned."""
        if state.global_step >= state.max_steps:
            return
        first, last = self.monitor.measured[0], self.monitor.measure(model, state.global_step)
        forget = abs(math.exp(-last["forget_nll"]) - self.forget_goal)
        retain = abs(math.exp(-last["retain_nll"]) - math.exp(-first["retain_nll"])) if "retain_nll" in last else 0.0
        value = (forget + retain) / 2
        self.trial.report(value if math.isfinite(value) else WORST, round(state.epoch))
        if self.trial.should_prune():
            self.pruned = control.should_training_stop = True


def forget_goal(config: CompareConfig, data: Path) -> float:
    """Return the retrained model's token probability exp(-NLL) on the rows that the monitor measures; 0 without one."""
    if config.retrained is None:
        return 0.0
    plain = defaults(replace(config, model=config.retrained), "ga", "full")
    trainer, monitor = prepare(*with_inputs(replace(plain, data=str(data), split="all")))
    model: Any = trainer.model
    return math.exp(-monitor.measure(model, 0)["forget_nll"])


def run_trial(
    queue: Queue, trial: Any, run: RunConfig, data: Path, retrained: Mapping[str, float] | None, goal: float, size: int
) -> None:
    """Train with one setting on the tuning rows, judge the result there, and store it in the queue.

    Args:
        queue: of the method's trials.
        trial: of this queue.
        run: the method's defaults.
        data: directory of the tuning rows.
        retrained: the retrained model's numbers on these rows, if there is one.
        goal: see `forget_goal`.
        size: prompts of one scoring batch.
    """
    setting = {name: trial.suggest_float(name, *ends, log=True) for name, ends in ranges(run).items()}
    pruners: list[Pruner] = []

    def callbacks(monitor: Monitor) -> list[Pruner]:
        if not run.spec.negated:  # its weights become those of the result after training
            pruners.append(Pruner(trial, monitor, goal))
        return pruners

    try:
        model, tokenizer = unlearned(with_setting(run, setting), callbacks)
        if any(pruner.pruned for pruner in pruners):
            queue.pruned(trial)
            return
        numbers = judged(model, tokenizer, data, size)
    except Exception as error:  # diverged, or out of memory: a result
        traceback.print_exc()
        queue.failed(trial, str(error) if isinstance(error, ConfigError) else repr(error))
        return
    queue.complete(trial, objective(numbers, retrained), numbers=numbers)
