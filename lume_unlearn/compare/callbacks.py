"""Judge a final run of a comparison while it trains: at the start and after each epoch."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback


class Curve(TrainerCallback):
    """Judges the model at the start and after each epoch, in the precision of training."""

    def __init__(self, judge: Callable[[Any], Mapping[str, float]]) -> None:
        """Take a function that returns a model's numbers."""
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
