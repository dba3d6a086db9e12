"""Estimate how long a request takes, before it starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

from lume_tasks.data.rows import Row
from lume_tasks.data.source import Data
from lume_unlearn.audit.stages import Loader, Work, measured_speed, seconds_of
from lume_unlearn.audit.suite import Suite
from lume_unlearn.forget.settings import Setting
from lume_unlearn.forget.signals import CONTROLS, MOST
from lume_unlearn.forget.tries import JUDGED
from lume_unlearn.methods.base import Method
from lume_unlearn.training.arguments import DEFAULTS

RETRAINED_EPOCHS = 12
"""Epochs of fine-tuning the base model on the retain rows."""
PAIRS, EPOCHS = 16, 4
"""Uses of each forget row in a first try: with `swap`, each time with another person; with other methods, unless their
default is fewer epochs."""
READ, READ_ABOUT_PERSONS = 2, 4
"""Rows that a method reads for each forget row: itself and a retain row; for `swap` also control and imitation."""


@dataclass(frozen=True)
class Estimates:
    """Estimated seconds of each stage."""

    one_try: float
    verdict: float
    retraining: float

    def verdict_after(self, seconds: float) -> float:
        """Return the seconds of the verdict, more than estimated if a try took more than estimated.

        A try that was continued or ended early is short, so the result is never below the estimate.
        """
        return self.verdict * max(1.0, seconds / self.one_try)

    def line(self, tries: int, base: bool) -> str:
        """Return the plan in words, without ``tries`` that of retraining; it says if retraining would be cheaper."""
        verdict, retraining = in_minutes(self.verdict), in_minutes(self.retraining)
        if not tries:
            total = in_minutes(self.retraining + self.verdict)
            return f"about {total} minutes: {retraining} for retraining, {verdict} for the verdict"
        least, most = (in_minutes(number * self.one_try + self.verdict) for number in (1, tries))
        text = f"about {least} to {most} minutes: {in_minutes(self.one_try)} for each of up to {tries} tries, "
        text += f"{verdict} for the verdict"
        if base and self.retraining < self.one_try:
            text += f". Retraining the base model on the retain rows takes about {retraining} minutes and is the surer "
            text += "way, if the model was fine-tuned on nothing else: --retrain"
        return text


def in_minutes(seconds: float) -> str:
    """Return seconds as minutes: with one decimal below ten minutes, so that a short stage is not "0"."""
    minutes = seconds / 60
    return f"{minutes:.1f}" if minutes < 9.95 else f"{minutes:.0f}"


def estimates(
    load: Loader,
    data: Data,
    probes: Sequence[str],
    first: Setting,
    method: Method,
    control: bool,
    options: Mapping[str, Any],
) -> Estimates:
    """Measure the speed of a model, and estimate how long a try, the verdict and retraining take.

    Args:
        load: loads the target.
        data: rows.
        probes: probes of the verdict.
        first: setting of the first try.
        method: unlearning method.
        control: whether a control is audited as well.
        options: options of `Suite`: ``chat``, ``batch_size``, ``controls``, ``seed``, ...
    """
    model, tokenizer = load()
    speed = measured_speed(model, tokenizer, [*data.forget, *data.retain])
    controls, rows = options["controls"], [*data.forget, *data.retain]

    seconds = partial(seconds_of, tokenizer=tokenizer, speed=speed)
    asked = [*data.forget[:MOST] * 2, *data.retain[:MOST]]
    judging = seconds(Work(asked, read=data.forget[:MOST], readings=CONTROLS + 1))
    passes = first.steps * rows_per_step(method) / len(data.forget)
    read = READ_ABOUT_PERSONS if method.needs.persons else READ
    training = seconds(Work(trained=data.forget, epochs=passes * read))
    suite = [seconds(stage.work) for stage in Suite(load, data, **options).stages(probes)]
    measured = (2 + control) * seconds(Work(rows, read=data.forget, readings=controls + 1))
    return Estimates(
        one_try=training + JUDGED * judging,
        verdict=sum(suite) * (1 + control) + measured,
        retraining=seconds(Work(trained=data.retain, epochs=RETRAINED_EPOCHS)),
    )


def default_steps(method: Method, forget: Sequence[Row]) -> int:
    """Return the optimiser steps of a first try, which uses each forget row `PAIRS` or up to `EPOCHS` times.

    Worked example: `swap` and 30 rows, 8 in a step: 16 * 30 / 8 = 60 steps.
    """
    uses = PAIRS if method.needs.persons else min(EPOCHS, {**DEFAULTS, **method.defaults}["num_train_epochs"])
    return ceil(uses * len(forget) / rows_per_step(method))


def rows_per_step(method: Method) -> int:
    """Return the default number of forget rows in an optimiser step."""
    return int({**DEFAULTS, **method.defaults}["per_device_train_batch_size"])
