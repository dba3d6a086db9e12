"""transformers' Trainer with an unlearning loss: the loop, checkpoints and logging are its own."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from lume_unlearn.config import RunConfig
from lume_unlearn.data import schedule
from lume_unlearn.data.dataset import Sides
from lume_unlearn.data.packs import Pack
from lume_unlearn.data.schedule import Limits, Steps
from lume_unlearn.files import PARTIAL
from lume_unlearn.methods.retain import part_needs_reference, retain_parts, retain_value
from lume_unlearn.methods.spec import Batch, Pair, Rows, Side, TokenCounts
from lume_unlearn.model.forward import Passes, Span
from lume_unlearn.model.load import use_bfloat16
from lume_unlearn.model.output_layer import TokenValue, nll_value
from lume_unlearn.model.reference import Reference
from lume_unlearn.training.checkpoints import PREFIX, InCheckpoint, fresh_partial, publish_checkpoint, writing
from lume_unlearn.training.failures import require_finite
from lume_unlearn.training.phases import FreshOptimizer, phase_factor, phases_of, warmed_up
from lume_unlearn.training.state import Progress


class UnlearningTrainer(Trainer):
    """Minimises ``forget_weight * L_forget + retain_weight * L_retain``, step by step of a schedule.

    Both terms are divided by the number of tokens or rows of the whole optimiser step, over all passes and processes,
    so that neither the size of a pass nor the number of processes changes the loss. The passes of a step are cut by
    tokens, and there may be more in one step than in another: Trainer sees each step as one batch.
    """

    def __init__(
        self,
        config: RunConfig,
        model: Any,
        args: TrainingArguments,
        passes: Passes,
        reference: Reference | None,
        callbacks: Sequence[TrainerCallback],
        **kwargs: Any,
    ) -> None:
        """Set up training.

        Args:
            config: of the run.
            model: to train.
            args: our options in Trainer's words.
            passes: how the model is passed.
            reference: for values that need the model before unlearning while training.
            callbacks: beside the method's own.
            **kwargs: passed on to Trainer.
        """
        self.progress = Progress({"weight": config.retain_weight} if config.spec.adapt else {}, args.device)
        self.sides: Sides = kwargs["train_dataset"]
        self.phases = phases_of(config, self.sides)
        own: list[TrainerCallback] = [self.progress]
        own += [FreshOptimizer(self.phases)] if self.phases else []
        super().__init__(model=model, args=args, callbacks=[*own, *callbacks], **kwargs)
        self.config, self.method = config, config.spec
        self.passes, self.reference = passes, reference
        self.params = {**config.params, "seed": config.seed}
        self._partial: Path | None = None
        self._step_retain = torch.zeros((), device=args.device)

    def get_train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """This process's passes of each step; accelerate's sharding would repeat rows where they do not divide."""
        config, sides = self.config, self.sides
        limits = Limits(config.micro_batch_size, config.max_tokens, padded=not self.passes.packs)
        forget, retain, size = len(sides.forget), len(sides.retain), config.batch_size

        def steps() -> list[list[Pair]]:
            if self.phases:
                return [step for phase in self.phases for step in phase]
            return schedule.paired(forget, retain, size, config.seed, int(self.state.epoch or 0))

        place = (self.args.process_index, self.args.world_size)
        batches = Steps(steps, self.steps_per_epoch, sides.lengths, limits, *place)
        return DataLoader(sides, batch_sampler=batches, collate_fn=_only)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass over the forget rows, or of all phases."""
        if self.phases:
            return sum(map(len, self.phases))
        return -(-len(self.sides.forget) // self.config.batch_size)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Trainer's schedule with a warm-up that starts above 0; for methods with phases, linear to 0 in each phase."""
        if self.lr_scheduler is not None:
            return self.lr_scheduler
        optimizer = optimizer or self.optimizer
        assert optimizer is not None
        if self.phases:
            factor = phase_factor([len(phase) for phase in self.phases])
        else:
            own: Any = super().create_scheduler(num_training_steps, optimizer)
            factor = warmed_up(own.lr_lambdas[0], self.args.get_warmup_steps(num_training_steps))
        self.lr_scheduler = LambdaLR(optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The passes of one optimiser step, each with its backward pass; returns the step's loss."""
        model.train()
        total = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(inputs["packs"]):
            last = number == len(inputs["packs"]) - 1
            with self._exchange(model, last):
                total += self._pass(model, batch.to(self.args.device), inputs["sizes"])
        return self._finished(model, total, inputs["names"])

    def _finished(self, model: nn.Module, total: Tensor, rows: list[str]) -> Tensor:
        """Count the step's loss (this process's share, times the processes), and let the method adapt.

        Raises:
            ConfigError: it or a gradient is infinite or not a number; the weights are still as before the step.
        """
        require_finite(self.config, model, total, self.state.global_step + 1, rows)
        self.progress.steps += 1
        self.progress.add({"loss": total / self.accelerator.num_processes})
        self._adapt()
        return total

    def _exchange(self, model: nn.Module, last: bool) -> Any:
        """Processes exchange gradients once a step where they hold whole ones, else in every pass."""
        self.accelerator.gradient_state._set_sync_gradients(last)  # DeepSpeed steps where this is set
        return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()

    def _pass(self, model: nn.Module, batch: Pack, sizes: TokenCounts) -> Tensor:
        with self.compute_loss_context_manager():
            loss = self._weighted(self.terms(model, batch, sizes))
        # Gradients are averaged over processes; the terms are already shares of one sum.
        loss = loss * self.accelerator.num_processes
        self.accelerator.backward(loss)
        value: Tensor = loss.detach()
        return value

    def _weighted(self, terms: dict[str, Tensor]) -> Tensor:
        self.progress.add(terms)
        if self.method.adapt:
            self._step_retain += terms["retain"].detach()
        loss = self.config.forget_weight * terms["forget"]
        return loss + self.retain_weight * terms["retain"] if "retain" in terms else loss

    @property
    def retain_weight(self) -> float:
        """In force now."""
        return self.progress.values.get("weight", self.config.retain_weight)

    def terms(self, model: nn.Module, batch: Pack, sizes: TokenCounts) -> dict[str, Tensor]:
        """This pass's shares of the step's loss terms, before weighting."""
        spans = self._spans(model, batch)
        found = dict(zip(spans, self.passes.values(model, batch, list(spans.values())), strict=True))
        sides = {side: self._rows(batch, side, found.get(side)) for side in ("forget", "alternative")}
        terms = {"forget": self.method.loss(Batch(sides["forget"], sides["alternative"], sizes, self.params))}
        if self.config.needs_retain:
            parts = [
                weight * self.method.retain_mean(self._rows(batch, "retain", found[name]), sizes)
                for name, weight in self._retain_parts().items()
            ]
            terms["retain"] = torch.stack(parts).sum()
        return terms

    def _retain_parts(self) -> dict[str, float]:
        """The parts of the retain term, and their weights."""
        return retain_parts(self.config.retain_term, self.config.kl_weight)

    def _spans(self, model: nn.Module, batch: Pack) -> dict[str, Span]:
        """What to compute for which tokens."""
        method, params = self.method, self.params
        value: TokenValue = partial(method.per_token_loss, params) if method.per_token_loss else nll_value
        live = self._live(model, batch)
        spans = {"forget": Span(batch.tokens_of("forget"), value, live.get("forget"))}
        if method.alternative:
            spans["alternative"] = Span(batch.tokens_of("alternative"), nll_value)
        if self.config.needs_retain:
            for name in self._retain_parts():
                tokens = batch.tokens_of("retain")
                if part_needs_reference(name):
                    spans[name] = Span(tokens, partial(retain_value, name), live.get("retain"))
                else:
                    spans[name] = Span(tokens, nll_value)
        return spans

    def _live(self, model: nn.Module, batch: Pack) -> dict[Side, Callable[[slice], Tensor]]:
        """What the model before unlearning says, of the sides of which it is needed."""
        if self.reference is None:
            return {}
        wanted: list[Side] = ["forget"] if self.method.needs_reference_forward else []
        if self.config.retain_needs_reference:
            wanted.append("retain")
        unwrapped = self.accelerator.unwrap_model(model)
        return {
            side: self.reference.at(model, unwrapped, self._filled(batch.only(side)), self._autocast())
            for side in wanted
        }

    def _filled(self, part: Pack) -> Pack:
        """A pass without rows still has to meet those of the other processes."""
        return (part if part.lengths else self.sides.pack([])).to(self.args.device)

    def _autocast(self) -> torch.autocast:
        """The arithmetic that the model in training has been wrapped in."""
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=use_bfloat16(self.config.precision))

    def _rows(self, batch: Pack, side: Side, values: Tensor | None) -> Rows:
        """One side's values, with the NLL before unlearning where it is known."""
        tokens, rows = batch.tokens_of(side), batch.rows_of(side)
        if values is None:
            values = batch.reference.new_zeros(0)
        reference = batch.reference[tokens] if side in self.method.reference_nll else batch.reference[:0]
        return Rows(values, batch.rows[tokens] - rows.start, rows.stop - rows.start, reference)

    def _adapt(self) -> None:
        """Let the method change its retain weight by the step's retain loss, which is the same on every process."""
        if self.method.adapt is None:
            return
        loss = self.accelerator.reduce(self._step_retain, "sum").item()
        self._step_retain = torch.zeros((), device=self.args.device)
        epoch = (self.state.global_step + 1) / self.steps_per_epoch  # passed after this step
        self.progress.values = self.method.adapt(self.progress.values, loss, epoch, self.params)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add each term's mean over the optimiser steps since the last entry, over all processes.

        The loss is counted by ourselves as well: Trainer's own mean would forget what came before a resumed run.
        """
        if "loss" in logs:
            held = self.progress
            sums = {name: self.accelerator.reduce(value, "sum").item() for name, value in held.sums.items()}
            logs |= {name if name == "loss" else f"{name}_loss": value / held.steps for name, value in sums.items()}
            logs |= {f"retain_{name}": value for name, value in held.values.items() if name == "weight"}
            held.sums, held.steps = {}, 0
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Trainer's checkpoint, written aside and moved to its place when it is whole (see `checkpoints`)."""
        output = Path(self.config.output)
        held = self.progress.sums
        self.progress.sums = {name: self.accelerator.reduce(value, "mean") for name, value in held.items()}
        with writing(output):
            if self.is_world_process_zero():
                fresh_partial(output)
            self.accelerator.wait_for_everyone()
            self._partial = output / PARTIAL
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._partial = None
            written = output / PARTIAL / f"{PREFIX}{self.state.global_step}"
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, InCheckpoint):
                    callback.write_into(written, self.state)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                publish_checkpoint(output / PARTIAL, output, self.config.save_total_limit)
        self.accelerator.wait_for_everyone()

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._partial or super()._get_output_dir(trial))


def _only(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch is one step already."""
    return items[0]
