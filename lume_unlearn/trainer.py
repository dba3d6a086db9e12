"""transformers' Trainer with an unlearning loss: the loop, accumulation, checkpoints and logging are its own."""

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from lume_unlearn import losses
from lume_unlearn.config import ConfigError, RunConfig
from lume_unlearn.data import MicroBatches, PairDataset, epoch_pairs
from lume_unlearn.forward import Labelled, Reference, labelled_tokens
from lume_unlearn.methods import METHODS, ForgetBatch
from lume_unlearn.packing import Pack


class UnlearningTrainer(Trainer):
    """Minimises ``forget_weight * L_forget + retain_weight * L_retain`` over pairs of rows.

    Both terms are divided by the number of tokens or rows of the whole optimiser step, over all accumulated batches and
    all processes, so that neither the micro batch nor the number of processes changes the loss.
    """

    def __init__(
        self, config: RunConfig, model: Any, args: TrainingArguments, reference: Reference | None, **kwargs: Any
    ) -> None:
        """``reference``: only for a retain term that needs live distributions; the rest is passed on to Trainer."""
        super().__init__(model=model, args=args, **kwargs)
        self.config = config
        self.method = METHODS[config.method]
        self.reference = reference
        # The loss below is already divided by the counts of the whole step.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._sums: dict[str, Tensor] = {}
        self._steps_summed = 0

    def get_train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Micro batches of this process; accelerate's sharding would repeat rows where they do not divide evenly."""
        dataset = cast(PairDataset, self.train_dataset)
        forget, retain = len(dataset.forget), len(dataset.retain)
        batches = MicroBatches(
            pairs=lambda: epoch_pairs(forget, retain, self.config.seed, int(self.state.epoch or 0)),
            count=forget,
            batch_size=self.config.batch_size,
            micro_batch_size=self.config.micro_batch_size,
            process=self.args.process_index,
            processes=self.args.world_size,
        )
        return DataLoader(dataset, batch_sampler=batches, collate_fn=self.data_collator)

    def get_batch_samples(  # type: ignore[override]  # several counts instead of one
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        """The batches of one optimiser step, and what all of them together hold, on all processes.

        Returns:
            batches, and ``{"forget_tokens", "retain_tokens", "forget_rows"}``, each a float32 scalar.
        """
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        packs = [batch["pack"] for batch in batches]
        counts = {
            "forget_tokens": sum(p.forget_tokens for p in packs),
            "retain_tokens": sum(len(p.targets) - p.forget_tokens for p in packs),
            "forget_rows": sum(p.forget_rows for p in packs),
        }
        total = self.accelerator.reduce(torch.tensor(list(counts.values()), dtype=torch.float32, device=device), "sum")
        self._steps_summed += 1
        return batches, dict(zip(counts, total, strict=True))

    def compute_loss(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """This batch's share of the optimiser step's loss."""
        assert num_items_in_batch is not None, "the trainer always counts the items of a step"
        batch: Pack = inputs["pack"].to(self.args.device)
        unwrapped = self.accelerator.unwrap_model(model)
        tokens = labelled_tokens(model, unwrapped.config, batch)
        terms = {"forget": self._forget_term(tokens[: batch.forget_tokens], batch, num_items_in_batch)}
        loss: Tensor = self.config.forget_weight * terms["forget"]
        if self.config.needs_retain:
            terms["retain"] = self._retain_term(
                tokens[batch.forget_tokens :], model, unwrapped, batch, num_items_in_batch["retain_tokens"]
            )
            loss = loss + self.config.retain_weight * terms["retain"]
        self._remember(terms)
        # Gradients are averaged over processes; the terms are already shares of one sum.
        loss = loss * self.accelerator.num_processes
        return loss

    def _forget_term(self, tokens: Labelled, batch: Pack, counts: dict[str, Tensor]) -> Tensor:
        nll = losses.token_nll(tokens.logits, tokens.targets)
        forget = ForgetBatch(nll, tokens.rows, batch.reference, counts["forget_tokens"], counts["forget_rows"])
        return self.method.forget(forget, self.config.beta)

    def _retain_term(
        self, tokens: Labelled, model: nn.Module, unwrapped: nn.Module, batch: Pack, count: Tensor
    ) -> Tensor:
        if self.config.terms == "nll":
            return losses.nll_mean(losses.token_nll(tokens.logits, tokens.targets), count)
        assert self.reference is not None
        with self.accelerator.autocast():  # a copy of the model has not been wrapped in it
            reference = self.reference.labelled_tokens(model, unwrapped, batch.retain())
        return losses.kl_to_reference(tokens.logits, reference.logits, count)

    def _remember(self, terms: dict[str, Tensor]) -> None:
        """Add this batch's shares to what the next log entry reports."""
        for name, term in terms.items():
            self._sums[name] = self._sums.get(name, term.new_zeros(())) + term.detach()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add each term's mean over the optimiser steps since the last entry, over all processes.

        Raises:
            ConfigError: the loss or its gradient is infinite or not a number: the weights cannot recover.
        """
        if "loss" in logs:
            sums = {name: self.accelerator.reduce(value, "sum").item() for name, value in self._sums.items()}
            logs |= {f"{name}_loss": value / self._steps_summed for name, value in sums.items()}
            self._sums, self._steps_summed = {}, 0
        super().log(logs, *args, **kwargs)
        if lost := [name for name in ("loss", "grad_norm") if not math.isfinite(logs.get(name, 0.0))]:
            raise ConfigError(
                f"--learning_rate {self.config.rate:g}: training diverged ({lost[0]} is {logs[lost[0]]} at step "
                f"{self.state.global_step}); lower it, or the number of --epochs"
            )
