"""SIGTERM and Ctrl-C: finish the step, save, say how to go on."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lume_unlearn.errors import Interrupted

_log = logging.getLogger("lume_unlearn")


class Stop(TrainerCallback):
    """Stops training behind the step in which a signal came, with a checkpoint; a second signal stops at once.

    A signal that comes while an epoch is scored waits for the scores and for the next step. Behind the last step there
    is nothing to stop: the run saves its result and ends as it would have.
    """

    def __init__(self) -> None:
        """Nothing came yet."""
        self.signal = 0
        self.stopped = False
        """Whether training was stopped for it."""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals within the block (in the main thread; elsewhere Python allows no handlers)."""
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

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop if a signal came to any process, and nothing else stops the run already."""
        if args.world_size > 1:  # all have to stop behind the same step
            came = torch.tensor(self.signal, device=PartialState().device)
            self.signal = int(reduce(came, "sum").item() and max(self.signal, signal.SIGTERM))
        last = state.global_step >= state.max_steps or control.should_training_stop
        if self.signal and not last:
            self.stopped = True
            control.should_save = control.should_training_stop = True

    def say_if_late(self) -> None:
        """Say that a signal came which stopped nothing."""
        if self.signal and not self.stopped:
            _log.warning("%s came behind the last step: the run is finished", signal.Signals(self.signal).name)

    def raise_if_stopped(self, state: TrainerState) -> None:
        """Turn the signal into an error, unless it came too late to stop anything.

        Raises:
            Interrupted: training stopped before its end.
        """
        if self.stopped:
            name = signal.Signals(self.signal).name
            raise Interrupted(
                f"stopped by {name} after step {state.global_step} of {state.max_steps}; a checkpoint is saved: "
                "give the same command with --resume to go on",
                self.signal,
            )
