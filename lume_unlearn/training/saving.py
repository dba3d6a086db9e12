"""Trainer that writes checkpoints and results atomically, without pickled arguments."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import nn
from transformers import Trainer

from lume_unlearn.files import PARTIAL, PREFIX, fresh_partial, publish_result, writing
from lume_unlearn.model.masters import float32_weights
from lume_unlearn.training.callbacks.record import Record
from lume_unlearn.training.checkpoints import publish_checkpoint


class SavingTrainer(Trainer):
    """Writes into ``.partial`` first, and moves complete files to their place."""

    record: Record

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write model or adapter (in float32 if float32 was trained), tokenizer and ``unlearning.json``.

        Args:
            output_dir: folder; by default that of the training.
            _internal_call: set by Trainer for checkpoints.

        Raises:
            ConfigError: the folder cannot be written.
        """
        if _internal_call:
            with float32_weights(self.model):
                super().save_model(output_dir, _internal_call=True)
            return
        output = Path(str(output_dir or self.args.output_dir))
        with writing(output):
            if self.is_world_process_zero():
                fresh_partial(output)
            self.accelerator.wait_for_everyone()
            self.save_model(str(output / PARTIAL), _internal_call=True)
            if self.is_world_process_zero():
                publish_result(output / PARTIAL, output)
                self.record.write(output, finished=True)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write Trainer's checkpoint into ``.partial`` and move it to its place when it is complete."""
        output = Path(str(self.args.output_dir))
        with writing(output):
            if self.is_world_process_zero():
                fresh_partial(output)
            self.accelerator.wait_for_everyone()
            with patch.object(self, "_get_output_dir", lambda trial: str(output / PARTIAL)):
                super()._save_checkpoint(model, trial)
            written = output / PARTIAL / f"{PREFIX}{self.state.global_step}"
            for callback in self.callback_handler.callbacks:
                if hasattr(callback, "write_into"):  # the record, the monitor and `robust`
                    callback.write_into(written, self.state)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                publish_checkpoint(output / PARTIAL, output, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Follow ``metric_for_best_model``, which `EarlyStoppingCallback` reads; it may have no value."""
        named = f"eval_{self.args.metric_for_best_model}" in metrics
        return named and bool(super()._determine_best_metric(metrics, trial))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with float32_weights(model or self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
