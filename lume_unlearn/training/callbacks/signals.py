"""SIGTERM and Ctrl-C: finish the optimiser step, save a checkpoint, and say how to continue."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback

from lume_unlearn.errors import Interrupted, log


class Stop(TrainerCallback):
    """Ends training with a checkpoint after the step in which a signal came; a second signal ends it at once.

    A signal after the last step does not prevent saving the result.
    """

    def __init__(self) -> None:
        """Set up; signals are handled within `listening` only."""
        self.signal = 0
        self.stopped = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals within the block, in the main thread only: Python allows no handlers in other threads."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop if any process got a signal, unless training ends here anyway."""
        if args.world_size > 1:  # all processes have to stop after the same step
            came = torch.tensor(self.signal, device=PartialState().device)
            self.signal = int(reduce(came, "sum").item() and max(self.signal, signal.SIGTERM))
        last = state.global_step >= state.max_steps or control.should_training_stop
        if self.signal and not last:
            self.stopped = True
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raise an error if a signal has stopped training, before anything scores or judges the unfinished weights.

        Raises:
            Interrupted: training stopped before its last step.
        """
        if self.stopped:
            name = signal.Signals(self.signal).name
            raise Interrupted(
                f"stopped by {name} after step {state.global_step} of {state.max_steps}; a checkpoint is saved: "
                "give the same command with --resume to continue",
                self.signal,
            )

    def say_if_late(self) -> None:
        """Warn that a signal came too late to stop anything."""
        if self.signal and not self.stopped:
            log.warning("%s came after the last step: the run is finished", signal.Signals(self.signal).name)
