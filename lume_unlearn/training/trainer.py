"""transformers' Trainer with an unlearning loss; the training loop, checkpoints and logging stay Trainer's."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from lume_unlearn.config import RunConfig
from lume_unlearn.data import schedule
from lume_unlearn.data.dataset import Sides
from lume_unlearn.data.packs import Pack
from lume_unlearn.data.schedule import Limits, Steps
from lume_unlearn.files import PARTIAL, PREFIX, fresh_partial, writing
from lume_unlearn.methods.retain import part_needs_reference, retain_parts, retain_value
from lume_unlearn.methods.spec import Batch, Pair, Rows, Side, TokenCounts
from lume_unlearn.model.forward import Passes, Span
from lume_unlearn.model.load import use_bfloat16
from lume_unlearn.model.masters import drop_rounded, float32_weights, step_masters
from lume_unlearn.model.output_layer import TokenValue, nll_value
from lume_unlearn.model.reference import Reference
from lume_unlearn.model.teacher import Teacher
from lume_unlearn.training.checkpoints import publish_checkpoint
from lume_unlearn.training.failures import require_finite
from lume_unlearn.training.optimizer import FreshOptimizer, phase_factor, warmed_up


class Progress(TrainerCallback, ExportableState):
    """The method's own state, and the loss terms since the last log entry.

    Trainer's state file keeps both, as decimal numbers that read back as the same bits.
    """

    def __init__(self, values: dict[str, float], device: torch.device) -> None:
        """``values``: the method's state at the start (see `methods.spec.Adapt`); ``device``: of the loss terms."""
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
        saved = cast(dict[str, Any], state.stateful_callbacks or {}).get(type(self).__name__)
        if saved is not None and state.global_step:
            kept = saved["attributes"]
            self.values, self.steps = dict(kept["values"]), kept["steps"]
            self.sums = {name: torch.tensor(value, device=self.device) for name, value in kept["sums"].items()}


class UnlearningTrainer(Trainer):
    """Minimises ``forget_weight * L_forget + retain_weight * L_retain``.

    Both terms are divided by the tokens or rows of the whole optimiser step, over all micro-batches and processes, so
    neither the size of a micro-batch nor the number of processes changes the loss. Micro-batches are cut by tokens, and
    steps may have different numbers of them; Trainer sees each optimiser step as one batch.
    """

    def __init__(
        self,
        config: RunConfig,
        model: Any,
        args: TrainingArguments,
        passes: Passes,
        reference: Reference | None,
        callbacks: Sequence[TrainerCallback],
        train_dataset: Sides,
        teacher: Teacher | None = None,
        **kwargs: Any,
    ) -> None:
        """``reference`` is the reference model, if it runs in every step; ``**kwargs`` are passed on to Trainer."""
        self.config, self.method, self.sides = config, config.spec, train_dataset
        self.passes, self.reference, self.teacher = passes, reference, teacher
        self.params: dict[str, Any] = {**config.params, "seed": config.seed}
        self.phases: list[list[list[Pair]]] = []
        """Optimiser steps of each phase; none for methods that train on pairs, epoch by epoch."""
        if self.method.phases:
            counts = len(train_dataset.forget), len(train_dataset.retain)
            self.phases = self.method.phases(*counts, config.batch_size, int(config.epochs), self.params)
        self.retain_parts = retain_parts(config.retain_term, config.kl_weight) if config.needs_retain else {}
        self.progress = Progress({"weight": config.retain_weight} if self.method.adapt else {}, args.device)
        own: list[TrainerCallback] = [self.progress]
        own += [FreshOptimizer([len(phase) for phase in self.phases])] if self.phases else []
        super().__init__(model=model, args=args, callbacks=[*own, *callbacks], train_dataset=train_dataset, **kwargs)
        self.trained_tokens = 0
        """Tokens of all micro-batches on this process, without padding."""
        self._partial: Path | None = None
        self._step_retain = torch.zeros((), device=args.device)

    def get_train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return this process's micro-batches of each step.

        accelerate's own sharding would repeat rows where their number is no multiple of the processes.
        """
        config, sides = self.config, self.sides
        limits = Limits(config.micro_batch_size, config.max_tokens, padded=not self.passes.packs)

        def steps() -> list[list[Pair]]:
            if self.phases:
                return [step for phase in self.phases for step in phase]
            epoch = int(self.state.epoch or 0)
            return schedule.paired(len(sides.forget), len(sides.retain), config.batch_size, config.seed, epoch)

        args = self.args
        batches = Steps(steps, self.steps_per_epoch, sides.lengths, limits, args.process_index, args.world_size)
        return DataLoader(sides, batch_sampler=batches, collate_fn=lambda steps: steps[0])

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch over the forget rows, or of all phases."""
        if self.phases:
            return sum(len(phase) for phase in self.phases)
        return -(-len(self.sides.forget) // self.config.batch_size)

    def create_optimizer(self, model: Any = None) -> Any:
        """Return Trainer's optimiser, of the float32 masters with ``--weights masters``."""
        new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if new and self.config.weights == "masters":
            step_masters(optimizer)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Return Trainer's schedule with a warm-up that starts above 0, or one that falls to 0 in each phase."""
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
        """Run forward and backward passes of one optimiser step's micro-batches; return the step's loss."""
        model.train()
        total = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(inputs["packs"]):
            last = number == len(inputs["packs"]) - 1
            with self._exchange(model, last):
                with self.compute_loss_context_manager():
                    terms = self.terms(model, batch.to(self.args.device), inputs["sizes"])
                    self.progress.add(terms)
                    loss = self.config.forget_weight * terms["forget"]
                    if "retain" in terms:
                        self._step_retain += terms["retain"].detach()
                        loss = loss + self.retain_weight * terms["retain"]
                loss = loss * self.accelerator.num_processes  # gradients are averaged over them, terms are shares
                self.accelerator.backward(loss)
            total += loss.detach()
        return self._finished(model, total, inputs)

    def _finished(self, model: nn.Module, total: Tensor, inputs: dict[str, Any]) -> Tensor:
        """Check and count the step's loss (this process's share times the processes), and let the method adapt.

        Raises:
            ConfigError: the loss or a gradient is not finite; the weights are still those from before the step.
        """
        step = self.state.global_step + 1
        require_finite(model, total, step, inputs["names"], self.config.learning_rate)
        self.trained_tokens += inputs["input_ids"].numel()
        self.progress.steps += 1
        self.progress.add({"loss": total / self.accelerator.num_processes})
        if self.method.adapt:
            loss = self.accelerator.reduce(self._step_retain, "sum").item()
            self._step_retain = torch.zeros((), device=self.args.device)
            epochs = step / self.steps_per_epoch  # completed after this step
            self.progress.values = self.method.adapt(self.progress.values, loss, epochs, self.params)
        return total

    def _exchange(self, model: nn.Module, last: bool) -> Any:
        """Return a context in which DDP exchanges gradients after the step's last micro-batch only.

        FSDP and DeepSpeed, whose processes hold parts of the gradients, exchange them after each micro-batch.
        """
        self.accelerator.gradient_state._set_sync_gradients(last)  # DeepSpeed takes the step when this is set
        return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()

    @property
    def retain_weight(self) -> float:
        """The retain weight of the current step, which the method may have changed."""
        return self.progress.values.get("weight", self.config.retain_weight)

    def terms(self, model: nn.Module, batch: Pack, counts: TokenCounts) -> dict[str, Tensor]:
        """Compute this micro-batch's shares of the step's loss terms, not yet weighted."""
        spans = self._spans(model, batch)
        values = dict(zip(spans, self.passes.values(model, batch, list(spans.values())), strict=True))
        forget = self._rows(batch, "forget", values["forget"])
        alternative = self._rows(batch, "alternative", values.get("alternative"))
        if "forget_nll" in values:
            forget = replace(forget, nll=values["forget_nll"])
        params = self.params | self.progress.values
        terms = {"forget": self.method.loss(Batch(forget, alternative, counts, params))}
        if self.retain_parts:
            parts = [
                weight * self.method.retain_mean(self._rows(batch, "retain", values[part]), counts)
                for part, weight in self.retain_parts.items()
            ]
            terms["retain"] = torch.stack(parts).sum()
        return terms

    def _spans(self, model: nn.Module, batch: Pack) -> dict[str, Span]:
        """Return what to compute for which labelled tokens: by side, or for retain rows by part of the retain term."""
        method, params = self.method, self.params
        value: TokenValue = partial(method.per_token_loss, params) if method.per_token_loss else nll_value
        reference = self._reference_outputs(model, batch)
        forget = batch.tokens_of("forget")
        if self.teacher is not None and method.per_token_loss:
            reference["forget"] = self.teacher.at(batch.seen, batch.targets[forget])
        spans = {"forget": Span(forget, value, self._with_selection(batch, reference.get("forget")))}
        if method.nll(params):
            spans["forget_nll"] = Span(forget, nll_value)
        if method.alternative:
            spans["alternative"] = Span(batch.tokens_of("alternative"), nll_value)
        for part in self.retain_parts:
            tokens = batch.tokens_of("retain")
            if part_needs_reference(part):
                spans[part] = Span(tokens, partial(retain_value, part), reference.get("retain"))
            else:
                spans[part] = Span(tokens, nll_value)
        return spans

    def _with_selection(self, batch: Pack, logits: Callable[[slice], Tensor] | None) -> Callable[[slice], Any] | None:
        """Pair the reference logits of forget tokens with the tokens that the method selects, if it does."""
        if self.method.select is None or logits is None:
            return logits
        rows = self._rows(batch, "forget", None)
        selected = self.method.select(self.params, rows.reference, rows.rows)
        return lambda part: (logits(part), selected[part])

    def _reference_outputs(self, model: nn.Module, batch: Pack) -> dict[Side, Callable[[slice], Tensor]]:
        """Compute reference logits or hidden states for each side that needs them."""
        if self.reference is None:
            return {}
        sides: list[Side] = ["forget"] if self.method.needs_reference_forward else []
        sides += ["retain"] if self.config.retain_needs_reference else []
        unwrapped = self.accelerator.unwrap_model(model)
        autocast = torch.autocast(self.args.device.type, torch.bfloat16, enabled=use_bfloat16(self.config.precision))
        return {side: self.reference.at(model, unwrapped, self._side(batch, side), autocast) for side in sides}

    def _side(self, batch: Pack, side: Side) -> Pack:
        """Return one side's rows, or a single unlabelled token: every process has to make the same forward passes."""
        rows = batch.only(side)
        return (rows if rows.lengths else self.sides.pack([])).to(self.args.device)

    def _rows(self, batch: Pack, side: Side, values: Tensor | None) -> Rows:
        """Return one side's values, with the reference NLL if the method needs it."""
        tokens, rows = batch.tokens_of(side), batch.rows_of(side)
        if values is None:
            values = batch.reference.new_zeros(0)
        known = side in self.method.reference_nll or (self.method.teacher and side == "forget")
        reference = batch.reference[tokens] if known else batch.reference[:0]
        return Rows(values, batch.rows[tokens] - rows.start, rows.stop - rows.start, reference)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add each term's mean over the optimiser steps since the last entry, over all processes.

        This replaces Trainer's own mean loss, which forgets the steps before a run was resumed.
        """
        if "loss" in logs:
            progress = self.progress
            sums = self.accelerator.reduce(torch.stack(list(progress.sums.values())), "sum").tolist()
            for name, value in zip(progress.sums, sums, strict=True):
                logs[name if name == "loss" else f"{name}_loss"] = value / progress.steps
            if "weight" in progress.values:
                logs["retain_weight"] = progress.values["weight"]
            progress.sums, progress.steps = {}, 0
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write Trainer's checkpoint into ``.partial`` and move it to its place when it is complete."""
        output = Path(self.config.output)
        sums = self.progress.sums
        self.progress.sums = {name: self.accelerator.reduce(value, "mean") for name, value in sums.items()}
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
                if hasattr(callback, "write_into"):  # the record and the monitor
                    callback.write_into(written, self.state)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                publish_checkpoint(output / PARTIAL, output, self.config.save_total_limit)
        self.accelerator.wait_for_everyone()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; the model's weights are then those that the optimiser changed."""
        result = super().train(*args, **kwargs)
        drop_rounded(self.model)
        return result

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Save the weights that the optimiser changes."""
        with float32_weights(self.model):
            super().save_model(*args, **kwargs)

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        with float32_weights(model or self.model):
            super()._load_from_checkpoint(checkpoint, model)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._partial or super()._get_output_dir(trial))
