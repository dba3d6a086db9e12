"""Follow the NLL of texts never trained on, which is the target of the method `level`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import TrainerCallback

from lume_unlearn.data.encode import Tokens
from lume_unlearn.errors import ConfigError
from lume_unlearn.model.forward import Passes, placed, row_values

if TYPE_CHECKING:
    from lume_unlearn.training.trainer import UnlearningTrainer

LEVEL_TEXTS = 32
"""Maximum number of texts to measure."""


class Level(TrainerCallback):
    """Measures how far the NLL of unseen texts has moved: the ``shift`` in the loss of `methods.counterfactual.Level`.

    Without a teacher the level of every row is that NLL itself. With a base model as the teacher, the shift begins with
    the change by fine-tuning: the NLL of unseen texts under the model minus that under the base model.
    """

    def __init__(self, trainer: "UnlearningTrainer", unseen: Sequence[Tokens]) -> None:
        """Store the trainer and the texts.

        Args:
            trainer: its method's state gets the shift.
            unseen: the texts, encoded.

        Raises:
            ConfigError: there are no texts.
        """
        if not unseen:
            raise ConfigError("--unseen: no text of the file fits into the model's context; give shorter ones")
        self.trainer, self.unseen = trainer, unseen

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure before the first step; a resumed run has the shift of its checkpoint."""
        trainer, values = self.trainer, self.trainer.progress.values
        if not state.global_step:
            now = self.measured(model, trainer.logit_passes)
            values["unseen_nll"] = now
            if trainer.base is not None:
                with placed(trainer.base, args.device):
                    values["unseen_nll"] = self.measured(trainer.base, Passes(trainer.base))
            values["shift"] = now - values["unseen_nll"] if trainer.terms.teacher else now

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure again every ``monitor_steps``."""
        values = self.trainer.progress.values
        if args.monitor_steps and state.global_step % args.monitor_steps == 0:
            now = self.measured(model, self.trainer.logit_passes)
            values["shift"] = now - values["unseen_nll"] if self.trainer.terms.teacher else now

    def measured(self, model: nn.Module, passes: Passes) -> float:
        """Compute the mean over texts of their mean NLL, in nats a token, without dropout."""
        values = row_values(model, passes, self.unseen, self.trainer.max_tokens)
        return float(torch.stack([value.mean() for value in values]).mean())
