"""Measure after each epoch how much of its rows a model has memorised, and end training when that is enough."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from lume_unlearn.data.encode import Tokens
from lume_unlearn.model.forward import row_values
from lume_unlearn.training.callbacks.progress import saved_attributes

if TYPE_CHECKING:
    from lume_unlearn.training.trainer import UnlearningTrainer

SAMPLE = 256
"""Rows to measure after an epoch; all rows are measured when these are memorised, and at the end."""


def ranked_first(logits: Tensor, targets: Tensor, reference: Tensor | None) -> Tensor:
    """Return whether the model ranks each token first, given the true tokens before it: (N,) of 0 and 1.

    Its mean is the exact memorisation of Tirumala et al. 2022 (arXiv 2205.10770). Of equal logits the first one counts.
    """
    return (logits.argmax(dim=-1) == targets).float()


class Memorised(TrainerCallback, ExportableState):
    """Measures the share of labelled tokens that are ranked first; training ends at the share ``until``."""

    def __init__(self, trainer: "UnlearningTrainer", until: float, rows: Sequence[Tokens]) -> None:
        """Choose a sample of the rows.

        Args:
            trainer: its model is measured.
            until: share to reach; 0 to train all epochs.
            rows: the rows, with their outputs labelled.
        """
        self.trainer, self.until, self.rows = trainer, until, list(rows)
        self.sample = random.Random(trainer.args.seed).sample(self.rows, min(SAMPLE, len(rows)))
        self.measured: list[dict[str, float]] = []
        self.ended = False

    def state(self) -> dict[str, Any]:
        """Return the state that a checkpoint stores."""
        return {"args": {}, "attributes": {"measured": self.measured}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the state in the checkpoint of a resumed run."""
        self.ended = False
        kept = saved_attributes(self, state)
        if kept is not None:
            self.measured = [dict(entry) for entry in kept["measured"]]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """After an epoch, measure the sample, and if it is memorised, all rows; end training if these are memorised.

        This is not in `on_epoch_end`: the checkpoint of the epoch's last step is saved before that, and has to contain
        the measurement.
        """
        epoch, step_of_epoch = divmod(state.global_step, self.trainer.steps_per_epoch)
        if not self.until or not self.rows or step_of_epoch:
            return
        share = self.share(model, self.sample)
        if share >= self.until:
            share = self.share(model, self.rows)
        self.measured.append({"epoch": epoch, "ranked_first": share})
        if state.is_world_process_zero:
            print(f"epoch {epoch}: {share:.4f} of the output tokens are ranked first", flush=True)
        if share >= self.until:
            self.ended, control.should_training_stop = True, True
            control.should_save = False  # see `on_epoch_end`

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save no checkpoint of the step that ended the training, since a run resumed from it would train on."""
        control.should_save = control.should_save and not self.ended

    def share(self, model: nn.Module, rows: Sequence[Tokens]) -> float:
        """Compute the share of the labelled tokens of some rows that are ranked first, without dropout."""
        found = row_values(model, self.trainer.passes, rows, self.trainer.max_tokens, ranked_first)
        return float(torch.cat(found).mean())
