"""The method's own state and the loss terms since the last log entry, which checkpoints keep."""

from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


def saved_attributes(callback: TrainerCallback, state: Any) -> dict[str, Any] | None:
    """Return what the checkpoint of a resumed run kept of a callback, or None in a run that starts."""
    saved = (state.stateful_callbacks or {}).get(type(callback).__name__)
    return dict(saved["attributes"]) if saved is not None and state.global_step else None


class Progress(TrainerCallback, ExportableState):
    """Keeps the method's state and sums of loss terms; Trainer's state file holds them to the last bit."""

    def __init__(self, values: dict[str, float], device: torch.device) -> None:
        """``values``: the method's state at the start (see `Method.adapt`); ``device``: of the loss terms."""
        self.values, self.device = values, device
        self.sums: dict[str, Tensor] = {}
        """Each loss term, summed over the optimiser steps since the last log entry; this process's share."""
        self.steps = 0
        """Optimiser steps since the last log entry."""

    def add(self, terms: dict[str, Tensor]) -> None:
        """Add loss terms to the sums."""
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, term.new_zeros(())) + term.detach()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        sums = {name: value.item() for name, value in self.sums.items()}
        return {"args": {}, "attributes": {"values": self.values, "sums": sums, "steps": self.steps}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore what the checkpoint kept."""
        kept = saved_attributes(self, state)
        if kept is not None:
            self.values, self.steps = dict(kept["values"]), kept["steps"]
            self.sums = {name: torch.tensor(value, device=self.device) for name, value in kept["sums"].items()}
