"""Measure the speed of a training and its peak memory."""

import sys
import time
from typing import Any

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback


class Throughput(TrainerCallback):
    """Times the optimiser steps, without monitor, checkpoints and scoring; it has to come before other callbacks."""

    def __init__(self) -> None:
        """Start at 0: a resumed run counts its own steps only."""
        self.seconds = self.started = 0.0
        self.tokens = 0
        """Tokens of all micro-batches on this process, without padding."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self.seconds += time.perf_counter() - self.started

    def summary(self) -> str:
        """Return tokens a second and peak memory; every process has to call this."""
        total = reduce(torch.tensor(self.tokens, device=PartialState().device), "sum").item()
        where = "GPU memory" if torch.cuda.is_available() else "memory"
        rate = total / max(self.seconds, 1e-9)
        return f"{rate:,.0f} tokens a second without padding, peak {where} {_peak_memory() / 2**30:.2f} GiB"


def _peak_memory() -> int:
    """Return the peak memory of this process in bytes: on the GPU if there is one, else in main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    on_windows: int | None = getattr(psutil.Process().memory_info(), "peak_wset", None)
    if on_windows is not None:
        return on_windows
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes elsewhere
