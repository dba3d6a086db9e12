"""The setting of the first try, and of each next one, as pure functions."""

from dataclasses import dataclass

from lume_unlearn.forget.signals import DOUBT, Signals

RATE, RATE_OF_WEIGHTS = 1e-3, 1e-4
"""Learning rate of the first try with an adapter, and with the model's own weights."""
RETAIN_WEIGHT, STEPS = 4.0, 32
"""Retain weight and fewest optimiser steps of the first try."""
PARAMETERS = 135e6
"""Parameters of the model for which the rates were found."""
HIGHEST = 5
"""Highest multiple of the rate, for small models."""


@dataclass(frozen=True)
class Setting:
    """Options of one try."""

    learning_rate: float
    retain_weight: float
    steps: int
    """Optimiser steps."""
    continued: bool = False
    """Whether it starts from the best weights of the try before instead of the target."""

    def line(self) -> str:
        """Return the setting in a few words."""
        start = ", continued" if self.continued else ""
        return f"rate {self.learning_rate:.2g}, retain weight {self.retain_weight:g}{start}"


def first_setting(parameters: int, steps: int, tuning: str = "lora") -> Setting:
    """Return the setting of the first try; its learning rate is proportional to 1 / sqrt(parameters).

    The rate is at most `HIGHEST` times that of a model with `PARAMETERS`. Worked example: with an adapter and 1.35
    billion parameters, 1e-3 / sqrt(10) = 3.2e-4.

    Args:
        parameters: number of parameters of the model.
        steps: optimiser steps for the forget rows; raised to `STEPS`.
        tuning: what is trained (see `trainable`).
    """
    rate = RATE if tuning == "lora" else RATE_OF_WEIGHTS
    return Setting(rate * min((PARAMETERS / parameters) ** 0.5, HIGHEST), RETAIN_WEIGHT, max(STEPS, steps))


def next_setting(setting: Setting, best: Signals | None, cut: bool = False) -> tuple[Setting, str]:
    """Return the setting of the next try, and the reason.

    The first of these cases that applies decides:

    1. The training diverged or collapsed, or retain rows were lost: half the rate, twice the retain weight, from the
       target, but after a collapse from the best weights.
    2. Rows are still known: 1.5 times as many steps, from the best weights.
    3. Some retain rows were lost, though fewer than a verdict allows: as 1.
    4. The answers are avoided: half the rate, from the target.
    5. Nothing is wrong, but a verdict did not call it gone: half the steps, from the best weights.
    6. The answers are still tied to the person, or the swap test is too coarse: half the rate and half the steps, from
       the best weights.

    Args:
        setting: setting of the last try.
        best: its best signals; None if it diverged.
        cut: whether the training ended before its last step because the model collapsed.
    """
    rate, weight, steps = setting.learning_rate, setting.retain_weight, setting.steps
    gentler = "next: half the rate, twice the retain weight"
    if best is None or not best.intact:
        why = "the training diverged" if best is None else "retain rows were lost"
        return Setting(rate / 2, 2 * weight, steps), f"{why}; {gentler}"
    if cut:
        why = f"the model collapsed and was rolled back; {gentler}, from the best weights"
        return Setting(rate / 2, 2 * weight, steps, True), why
    if best.known:
        why = "rows are still known; next: 1.5 times as many steps, from the best weights"
        return Setting(rate, weight, steps + steps // 2, True), why
    if not best.spared:
        return Setting(rate / 2, 2 * weight, steps), f"some retain rows were lost; {gentler}"
    if best.swap and best.swap.avoided < DOUBT:
        return Setting(rate / 2, weight, steps), "the answers are avoided; next: half the rate"
    if best.good:
        why = "the verdict was not gone; next: half the steps, from the best weights"
        return Setting(rate, weight, max(2, steps // 2), True), why
    why = "the answers are still tied to the person" if best.doubt < DOUBT else "the swap test's interval is too wide"
    why += "; next: half the rate and half the steps, from the best weights"
    return Setting(rate / 2, weight, max(2, steps // 2), True), why
