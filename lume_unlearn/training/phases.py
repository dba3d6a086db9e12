"""Methods that go through phases: the steps of each, its learning rate, its fresh optimiser."""

from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lume_unlearn.config import RunConfig
from lume_unlearn.data.dataset import Sides
from lume_unlearn.methods.spec import Pair


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


def phases_of(config: RunConfig, sides: Sides) -> list[list[list[Pair]]]:
    """The method's phases of steps; none for methods that go through pairs of rows, epoch by epoch."""
    if config.spec.phases is None:
        return []
    counts = (len(sides.forget), len(sides.retain), config.batch_size, int(config.epochs))
    return config.spec.phases(*counts, {**config.params, "seed": config.seed})


def phase_factor(lengths: Sequence[int]) -> Callable[[int], float]:
    """(optimiser step) to the factor of the learning rate that falls from 1 to 0 within each phase."""
    factors = [1 - step / length for length in lengths for step in range(length)]
    return lambda step: factors[step] if step < len(factors) else 0.0


def warmed_up(factor: Callable[[int], float], warmup: int) -> Callable[[int], float]:
    """Put a warm-up before a learning rate factor: (step + 1) / (warmup + 1), then ``factor`` itself.

    Steps count from 0. Trainer's own warm-up has factor 0 in the first step, which then changes nothing.
    """
    return lambda step: (step + 1) / (warmup + 1) if step < warmup else factor(step)
