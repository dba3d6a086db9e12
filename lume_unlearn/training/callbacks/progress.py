"""The method's own state and the loss terms since the last log entry, which checkpoints keep."""

from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


def saved_attributes(callback: TrainerCallback, state: Any) -> dict[str, Any] | None:
    """Return the state of a callback in the checkpoint of a resumed run; None in a new run."""
    saved = (state.stateful_callbacks or {}).get(type(callback).__name__)
    return dict(saved["attributes"]) if saved is not None and state.global_step else None


class Progress(TrainerCallback, ExportableState):
    """Keeps the method's state and sums of loss terms; Trainer's state file stores them exactly."""

    def __init__(self, values: dict[str, float], device: torch.device) -> None:
        """Start with ``values``, the method's state (see `Method.adapt`); ``device`` is that of the loss terms."""
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
        """Return the state that a checkpoint stores."""
        sums = {name: value.item() for name, value in self.sums.items()}
        return {"args": {}, "attributes": {"values": self.values, "sums": sums, "steps": self.steps}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the state in the checkpoint of a resumed run."""
        kept = saved_attributes(self, state)
        if kept is not None:
            self.values, self.steps = dict(kept["values"]), kept["steps"]
            self.sums = {name: torch.tensor(value, device=self.device) for name, value in kept["sums"].items()}
