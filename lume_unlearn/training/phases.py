"""Methods that go through phases: the steps of each, its learning rate, its fresh optimiser."""

from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lume_unlearn.config import RunConfig
from lume_unlearn.data.dataset import Sides
from lume_unlearn.data.schedule import Key


class FreshOptimizer(TrainerCallback):
    """Forget the optimiser's state where a new phase begins."""

    def __init__(self, phases: Sequence[Sequence[Any]]) -> None:
        """``phases``: the steps of each."""
        self.starts = {sum(map(len, phases[:number])) for number in range(len(phases))}

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Clear it before the first step of a phase."""
        if state.global_step in self.starts:
            getattr(optimizer, "optimizer", optimizer).state.clear()


def phases_of(config: RunConfig, sides: Sides) -> list[list[list[Key]]]:
    """The method's phases of steps; none for methods that go through pairs of rows, epoch by epoch."""
    if config.spec.phases is None:
        return []
    counts = (len(sides.forget), len(sides.retain), config.batch_size, int(config.epochs))
    return config.spec.phases(*counts, {**config.params, "seed": config.seed})


def phase_factor(lengths: Sequence[int]) -> Callable[[int], float]:
    """(optimiser step) to the factor of the learning rate that falls from 1 to 0 within each phase."""
    factors = [1 - step / length for length in lengths for step in range(length)]
    return lambda step: factors[step] if step < len(factors) else 0.0
