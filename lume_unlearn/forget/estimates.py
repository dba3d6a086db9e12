"""How long a request takes, estimated before it starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lume_tasks.data.source import Data
from lume_unlearn.audit.stages import Loader, Work, measured_speed, seconds_of
from lume_unlearn.audit.suite import Suite
from lume_unlearn.forget.settings import Setting
from lume_unlearn.forget.signals import CONTROLS, MOST
from lume_unlearn.forget.tries import JUDGED

RETRAINED_EPOCHS = 12
"""Epochs that fine-tuning the base model on the retain rows is taken to need."""
READ = 3
"""Rows that `swap` reads for each forget row and invented person: the row, the control, the imitation."""


@dataclass(frozen=True)
class Estimates:
    """Seconds."""

    one_try: float
    verdict: float
    retraining: float

    def verdict_after(self, seconds: float) -> float:
        """Return the seconds of the verdict, when a try took these: the machine is then slower or faster than it was.

        A try that was continued or ended early is short, so nothing is taken off.
        """
        return self.verdict * max(1.0, seconds / self.one_try)

    def line(self, tries: int, base: bool) -> str:
        """Say what is planned, and whether retraining from the base model would be cheaper."""
        one, verdict, retraining = (seconds / 60 for seconds in (self.one_try, self.verdict, self.retraining))
        text = f"about {one + verdict:.0f} to {tries * one + verdict:.0f} minutes: {one:.0f} for each of up to {tries} "
        text += f"tries, {verdict:.0f} for the verdict"
        if base and retraining < one:
            text += f". Retraining the base model on the retain rows takes about {retraining:.0f} minutes and is the "
            text += "surer way, if they are all that the model was fine-tuned on: --retrain"
        return text


def estimates(
    load: Loader,
    data: Data,
    probes: Sequence[str],
    first: Setting,
    repeats: int,
    control: bool,
    options: Mapping[str, Any],
) -> Estimates:
    """Measure the speed of a model, and estimate how long a try, the verdict and retraining take.

    Args:
        load: gives the target.
        data: rows.
        probes: of the verdict.
        first: setting of the first try.
        repeats: how often an epoch uses each forget row.
        control: whether a control is audited as well.
        options: of `Suite`: ``chat``, ``batch_size``, ``controls``, ``seed``, ...
    """
    model, tokenizer = load()
    speed = measured_speed(model, tokenizer, [*data.forget, *data.retain])
    controls, rows = options["controls"], [*data.forget, *data.retain]

    def seconds(work: Work) -> float:
        return seconds_of(work, tokenizer, speed)

    asked = [*data.forget[:MOST] * 2, *data.retain[:MOST]]
    judging = seconds(Work(asked, read=data.forget[:MOST], readings=CONTROLS + 1))
    training = seconds(Work(trained=data.forget, epochs=first.epochs * (READ * repeats + 1)))
    suite = [seconds(stage.work) for stage in Suite(load, data, **options).stages(probes)]
    measured = (2 + control) * seconds(Work(rows, read=data.forget, readings=controls + 1))
    return Estimates(
        one_try=training + JUDGED * judging,
        verdict=sum(suite) * (1 + control) + measured,
        retraining=seconds(Work(trained=data.retain, epochs=RETRAINED_EPOCHS)),
    )
