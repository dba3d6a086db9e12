"""Make a model memorise texts: a target model, or a retrained model (trained without the forget rows)."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from transformers import TrainerCallback

from lume_tasks.data.source import Data
from lume_tasks.errors import DataError
from lume_unlearn.data.encode import Encoder, Tokens
from lume_unlearn.data.rows import RowsLike, as_rows
from lume_unlearn.methods.gradient import Finetune
from lume_unlearn.training.arguments import UnlearningArguments
from lume_unlearn.training.callbacks.memorised import Memorised
from lume_unlearn.training.trainer import UnlearningTrainer


def finetune(
    model: Any,
    processing_class: Any,
    rows: RowsLike,
    args: UnlearningArguments,
    *,
    until: float = 0.99,
    callbacks: Sequence[TrainerCallback] = (),
) -> Any:
    """Train a model on rows until it has memorised them, and return it; nothing is saved.

    The loss is the NLL of the whole text and its EOS (or of an answer in the chat template), token mean.

    Args:
        model: causal language model, or a PEFT model; trained in place.
        processing_class: the tokenizer.
        rows: see `as_rows`.
        args: arguments; by default 20 epochs of 16 rows a step, learning rate 1e-4 (1e-3 with an adapter), a warm-up of
            5 % of the steps and a cosine schedule.
        until: training ends after the epoch in which the model ranks this share of the rows' output tokens first; 0 to
            train all epochs.
        callbacks: called after those of the trainer.

    Raises:
        ConfigError: an option that cannot work, or training that diverged.
        DataError: rows that are faulty or do not fit the model.
    """
    trainer = FinetuneTrainer(model, processing_class, rows, args, until, callbacks=callbacks)
    trainer.train()
    return model.eval()


class FinetuneTrainer(UnlearningTrainer):
    """Trains on texts, which are the forget side of its loss history."""

    def __init__(
        self, model: Any, processing_class: Any, rows: RowsLike, args: UnlearningArguments, until: float, **options: Any
    ) -> None:
        """Set up the training; see `finetune` for the arguments, `UnlearningTrainer` for ``options``."""
        texts, args = as_rows(rows, "rows"), replace(args, loss_on="text")
        scored = Data([], texts)  # as retain rows: the best weights are those that have memorised them
        super().__init__(model, Finetune(), args, texts, processing_class=processing_class, eval_data=scored, **options)
        self.remove_callback(self.monitor)  # its warnings are about unlearning
        # A model cannot predict how a text begins, so the share is over the outputs of rows, not over whole texts.
        encode: Encoder = replace(self.encode, loss_on="answer")
        fitting: list[Tokens] = []
        for row in texts:
            with suppress(DataError):  # an output may begin beyond --max_length
                fitting += encode([row]) if row.task else []
        self.memorised = Memorised(self, until, fitting)
        self.add_callback(self.memorised)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and record the share of output tokens that are ranked first."""
        result = super().train(*args, **kwargs)
        model: Any = self.model
        share = self.memorised.share(model, self.memorised.rows) if self.memorised.rows else None
        self.record.extra |= {"memorised": self.memorised.measured, "ranked_first": share}
        self.record.extra["finetune"] = {"until": self.memorised.until}
        return result

    def summary(self) -> str:
        """Return the texts, the optimiser steps and the share of output tokens ranked first, in one line."""
        share, until = self.record.extra["ranked_first"], self.memorised.until
        first = "" if share is None else f": {share:.4f} of the output tokens are ranked first"
        missed = "" if share is None or share >= until else f", less than --until {until:g}"
        return f"{len(self.forget)} texts, {self.state.global_step} optimiser steps{first}{missed}"
