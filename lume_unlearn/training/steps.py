"""One optimiser step: its rows, its micro-batches, their gradients, the learning rate, and the loss history."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from lume_unlearn.data import schedule
from lume_unlearn.data.examples import Examples
from lume_unlearn.data.schedule import Steps
from lume_unlearn.methods.base import Method, Pair, Side
from lume_unlearn.model.forward import Passes
from lume_unlearn.model.masters import step_masters
from lume_unlearn.training.arguments import UnlearningArguments
from lume_unlearn.training.callbacks.progress import Progress
from lume_unlearn.training.callbacks.throughput import Throughput
from lume_unlearn.training.failures import require_finite
from lume_unlearn.training.loss import LossTerms
from lume_unlearn.training.saving import SavingTrainer


class StepTrainer(SavingTrainer):
    """Makes the optimiser steps of an unlearning training; `UnlearningTrainer` sets up what they need."""

    args: UnlearningArguments
    method: Method
    examples: Examples
    passes: Passes
    terms: LossTerms
    phases: list[list[list[Pair]]]
    rows_per_step: int
    robust: Any
    progress: Progress
    throughput: Throughput
    _step_retain: Tensor

    @property
    def max_tokens(self) -> int:
        """Maximum tokens of one micro-batch."""
        assert self.args.max_tokens is not None
        return self.args.max_tokens

    def get_train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return this process's micro-batches of each step.

        accelerate's own sharding would repeat rows if their number is not a multiple of the number of processes.
        """
        args, examples = self.args, self.examples

        def steps() -> list[list[Pair]]:
            if self.phases:
                return [step for phase in self.phases for step in phase]
            epoch = int(self.state.epoch or 0)
            return schedule.paired(len(examples.forget), len(examples.retain), self.rows_per_step, args.seed, epoch)

        share = {"process": args.process_index, "processes": args.world_size}
        batches = Steps(steps, self.steps_per_epoch, examples.lengths, self.max_tokens, not self.passes.packs, **share)
        return DataLoader(examples, batch_sampler=batches, collate_fn=lambda steps: steps[0])

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch over the forget rows, or of all phases."""
        if self.phases:
            return sum(len(phase) for phase in self.phases)
        return -(-len(self.examples.forget) // self.rows_per_step)

    def create_optimizer(self, model: Any = None) -> Any:
        """Return Trainer's optimiser; with ``weights="masters"`` it steps the float32 masters."""
        new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if new and self.args.weights == "masters":
            step_masters(optimizer)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Return Trainer's schedule with a first rate above 0, or for phases a schedule that falls to 0 in each."""
        if self.lr_scheduler is not None:
            return self.lr_scheduler
        optimizer = optimizer or self.optimizer
        if self.phases:
            factor = phase_factor([len(phase) for phase in self.phases])
        else:
            own: Any = super().create_scheduler(num_training_steps, optimizer)
            if not isinstance(own, LambdaLR):
                return own
            factor = warmed_up(own.lr_lambdas[0], self.args.get_warmup_steps(num_training_steps))
        self.lr_scheduler = LambdaLR(optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run forward and backward passes of one optimiser step's micro-batches; return the step's loss.

        Raises:
            Diverged: the loss or a gradient is not finite; the weights are those before the step (not under DeepSpeed).
        """
        model.train()
        if self.phases and self.state.global_step in {0, *accumulate(map(len, self.phases))}:
            optimizer: Any = self.optimizer
            getattr(optimizer, "optimizer", optimizer).state.clear()  # each phase has a fresh optimiser
        total = self.robust.add_gradients(model, inputs) if self.robust else self.add_gradients(model, inputs)
        step = self.state.global_step + 1
        require_finite(model, total, step, inputs["ids"], float(self.args.learning_rate or 0))
        self.throughput.tokens += inputs["input_ids"].numel()
        self.progress.steps += 1
        self.progress.add({"loss": total / self.accelerator.num_processes})
        if self.method.adapt:
            loss = self.accelerator.reduce(self._step_retain, "sum").item()
            self._step_retain = torch.zeros((), device=self.args.device)
            epochs = step / self.steps_per_epoch  # completed after this step
            self.progress.values = self.method.adapt(self.progress.values, loss, epochs)
        return total

    def add_gradients(
        self, model: nn.Module, inputs: dict[str, Any], sides: Sequence[Side] = ("forget", "retain"), log: bool = True
    ) -> Tensor:
        """Add the gradients of one optimiser step's weighted terms to the weights' gradients.

        Args:
            model: the model, as accelerate wrapped it.
            inputs: an item of `Examples`.
            sides: the terms to compute.
            log: add the terms to the loss history.

        Returns:
            The weighted sum of the terms: this process's share, times the number of processes.
        """
        total = torch.zeros((), device=self.args.device)
        packs = inputs["packs"]
        weights = {"forget": float(self.args.forget_weight or 0), "retain": float(self.args.retain_weight or 0)}
        weights["retain"] = self.progress.values.get("weight", weights["retain"])  # the method may have changed it
        for number, batch in enumerate(packs):
            with self._exchange(model, number == len(packs) - 1):
                with self.compute_loss_context_manager():
                    pack, state = batch.to(self.args.device), self.progress.values
                    terms = self.terms(model, pack, inputs["counts"], state, sides)
                    if log:
                        self.progress.add(terms)
                    if "retain" in terms:
                        self._step_retain += terms["retain"].detach()
                    loss = torch.stack([weights[side] * term for side, term in terms.items()]).sum()
                loss = loss * self.accelerator.num_processes  # gradients are averaged over processes, terms are shares
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _exchange(self, model: nn.Module, last: bool) -> Any:
        """Return a context in which DDP exchanges gradients after the step's last micro-batch only.

        FSDP and DeepSpeed, whose processes hold parts of the gradients, exchange them after each micro-batch.
        """
        self.accelerator.gradient_state._set_sync_gradients(last)  # DeepSpeed takes the step when this is set
        return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add to a log entry each term's mean over the optimiser steps since the last entry, over all processes.

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


def phase_factor(lengths: Sequence[int]) -> Callable[[int], float]:
    """Return a function from the optimiser step to a learning rate factor that falls from 1 to 0 in each phase.

    ``lengths`` are the optimiser steps of each phase.
    """
    factors = [1 - step / length for length in lengths for step in range(length)]
    return lambda step: factors[step] if step < len(factors) else 0.0


def warmed_up(factor: Callable[[int], float], warmup: int) -> Callable[[int], float]:
    """Put a linear warm-up, (step + 1) / (warmup + 1), before a learning rate factor.

    Steps count from 0. Trainer's own warm-up has factor 0 in the first step, which then changes no weight.
    """
    return lambda step: (step + 1) / (warmup + 1) if step < warmup else factor(step)
