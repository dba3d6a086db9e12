"""The options of a method to tune, their ranges, the first trials, and the choice among the trials."""

from collections.abc import Sequence

from lume_unlearn.compare.judge import WITHIN_BUDGET
from lume_unlearn.compare.queue import Task
from lume_unlearn.methods.base import Method
from lume_unlearn.training.arguments import UnlearningArguments

RATES = (0.05, 20.0)
"""Learning rates to try, as multiples of the method's default for the model."""
WEIGHTS = (0.1, 10.0)
"""Retain weights to try, as multiples of the method's default."""
DESIGN = ((1.0, 1.0), (5.0, 3.0), (0.2, 1.0), (1.0, 3.0), (5.0, 1.0))
"""The first trials: factors of the default learning rate and the default retain weight.

Thus three trials try three rates, and a higher retain weight with the highest. For a method without a retain weight to
tune, each rate is tried once."""

Setting = dict[str, float]
"""Option to value: ``learning_rate``, ``retain_weight``, and hyperparameters of the method."""


def default_setting(method: Method, args: UnlearningArguments) -> Setting:
    """Return the defaults of the options to tune: learning rate, retain weight, and each `param(search=...)`.

    Args:
        method: the method with its hyperparameters.
        args: arguments of its runs, filled in.
    """
    found = {"learning_rate": args.learning_rate}
    if args.retain_weight and args.retain_term != "none" and not method.adapt:
        found["retain_weight"] = args.retain_weight
    found |= {name: getattr(method, name) for name in _searched(method)}
    return {name: float(value) for name, value in found.items() if value}


def ranges(method: Method, default: Setting) -> dict[str, tuple[float, float]]:
    """Return the range of each option to tune, around its default; trials sample it on a logarithmic scale."""
    times = {"learning_rate": RATES, "retain_weight": WEIGHTS}
    ends = {name: (low * default[name], high * default[name]) for name, (low, high) in times.items() if name in default}
    ends |= {name: search for name, search in _searched(method).items() if name in default}
    return {name: (min(low, default[name]), max(high, default[name])) for name, (low, high) in ends.items()}


def _searched(method: Method) -> dict[str, tuple[float, float]]:
    found = {name: field.metadata.get("search") for name, field in method.params().items()}
    return {name: search for name, search in found.items() if search}


def tasks(default: Setting, trials: int) -> list[Task]:
    """Return the trials of one method: those of `DESIGN`, then as many as the budget allows, chosen by the sampler."""
    first: list[Setting] = []
    for rate, weight in DESIGN:
        times = {"learning_rate": rate, "retain_weight": weight}
        setting = {name: times.get(name, 1.0) * value for name, value in default.items()}
        if setting not in first:
            first.append(setting)
    return [{"slot": f"trial {i + 1}", "fixed": first[i] if i < len(first) else {}} for i in range(trials)]


def chosen(trials: Sequence[tuple[Setting, float]], chance: float) -> Setting:
    """Choose a setting: of those whose objective is the lowest or within chance of it, the one with the highest rate.

    Of several with this rate, choose the one with the highest retain weight, then the lowest objective. A low rate
    hides the rows and a high one removes them, and a final run, on more forget rows, loses more of the retain rows than
    a trial: the objective sees neither (rows 50 to 59 of ``results/tried.md``). A setting beyond the budget for the
    retain rows is chosen only if all are; then the lowest objective decides alone.

    Worked example: rate 1e-3: .06; 5e-3: .08 and .12. With a chance of .03 choose 5e-3 with .08, with .01 1e-3.

    Args:
        trials: settings, each with its objective (`judge.objective`); at least one.
        chance: how far apart the objectives of two settings may be by chance (`judge.chance`).
    """
    lowest = min(value for _, value in trials)
    highest = min(lowest + chance, WITHIN_BUDGET) if lowest <= WITHIN_BUDGET else lowest
    near = [(setting, value) for setting, value in trials if value <= highest]

    def preferred(trial: tuple[Setting, float]) -> tuple[float, float, float]:
        setting, value = trial
        return setting.get("learning_rate", 0.0), setting.get("retain_weight", 0.0), -value

    return max(near, key=preferred)[0]
