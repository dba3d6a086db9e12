"""What training remembers from step to step beside weights, optimiser and schedule."""

from typing import Any, cast

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState


class Progress(TrainerCallback, ExportableState):
    """The method's own state, and the loss terms since the last log entry; checkpoints carry both.

    They stand in Trainer's own state file, as decimal numbers that read back as the same bits.
    """

    def __init__(self, values: dict[str, float], device: torch.device) -> None:
        """``values``: the method's state at the start of training."""
        self.values, self.device = values, device
        self.sums: dict[str, Tensor] = {}
        """Sum over the steps since the last log entry of each loss term; of this process's share."""
        self.steps = 0
        """Those steps."""

    def add(self, terms: dict[str, Tensor]) -> None:
        """Count some terms in."""
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, term.new_zeros(())) + term.detach()

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        sums = {name: value.item() for name, value in self.sums.items()}
        return {"args": {}, "attributes": {"values": self.values, "sums": sums, "steps": self.steps}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on with what the checkpoint held."""
        saved = cast(dict[str, Any], state.stateful_callbacks or {}).get(type(self).__name__)
        if saved is not None and state.global_step:
            held = saved["attributes"]
            self.values, self.steps = dict(held["values"]), held["steps"]
            self.sums = {name: torch.tensor(value, device=self.device) for name, value in held["sums"].items()}
