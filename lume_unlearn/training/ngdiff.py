"""NGDiff: both gradients normalised before they are subtracted, and a learning rate that is found while training.

Source: Bu et al. 2024 (arXiv 2410.22086).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lume_unlearn.methods.ngdiff import quadratic_rate
from lume_unlearn.methods.spec import Side
from lume_unlearn.model.forward import evaluating
from lume_unlearn.training.failures import total_norm
from lume_unlearn.training.trainer import UnlearningTrainer


class NormalisedTrainer(UnlearningTrainer):
    """Steps along ``g_R / |g_R| - g_F / |g_F|``, g_R and g_F the gradients of the NLL on retain and on forget rows.

    The norms are over all trained weights, of the whole optimiser step's gradients over all passes and processes. The
    direction raises the forget loss and lowers the retain loss, to first order, whatever their sizes. ``forget_weight``
    and ``retain_weight`` multiply the normalised gradients.

    Deviation: the paper's Algorithm 1 is plain descent while its experiments use Adam; here it is AdamW, as for all
    methods, and the rate is found for AdamW's direction.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As `UnlearningTrainer`."""
        super().__init__(*args, **kwargs)
        self.retain_step: dict[str, Any] = {}
        self.add_callback(FoundRate(self))

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Both gradients of one optimiser step, one after another, put together; returns the step's loss."""
        model.train()
        self.retain_step = inputs
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        retain = self._side(model, inputs, "retain")
        retain_gradients = [weight.grad for weight in weights]
        model.zero_grad()
        forget = self._side(model, inputs, "forget")
        forget_weight = -self.config.forget_weight / _norm([w.grad for w in weights])
        retain_weight = self.retain_weight / _norm(retain_gradients)
        for weight, gradient in zip(weights, retain_gradients, strict=True):
            if weight.grad is not None and gradient is not None:
                weight.grad.mul_(forget_weight).add_(gradient, alpha=retain_weight)
        return self._finished(model, retain - forget, inputs["names"])

    def _side(self, model: nn.Module, inputs: dict[str, Any], side: Side) -> Tensor:
        """The gradient of one side's NLL, left in the weights; returns that NLL."""
        total = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(inputs["packs"]):
            last = number == len(inputs["packs"]) - 1
            with self._exchange(model, last), self.compute_loss_context_manager():
                term = self.terms(model, self._filled(batch.only(side)), inputs["sizes"])[side]
                self.progress.add({side: term})
                loss = term * self.accelerator.num_processes
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    @torch.no_grad()
    def retain_loss(self, model: nn.Module) -> float:
        """The NLL on the last step's retain rows, of all processes, without dropout."""
        total = torch.zeros((), device=self.args.device)
        with evaluating(model):
            for batch in self.retain_step["packs"]:
                part = self._filled(batch.only("retain"))
                total += self.terms(model, part, self.retain_step["sizes"])["retain"]
        return cast(Tensor, self.accelerator.reduce(total, "sum")).item()


def _norm(gradients: list[Tensor | None]) -> float:
    """L2 norm over all tensors; 1 for a gradient of 0, which stays 0, and for one that is not finite."""
    norm = total_norm(gradients)
    return norm if norm > 0 and math.isfinite(norm) else 1.0


class FoundRate(TrainerCallback):
    """Every few steps, the learning rate that a parabola through three retain losses would choose (GeN, "AutoLR").

    With phi(x) the retain loss after a step of length x along the optimiser's direction, phi(-rate), phi(0) and
    phi(rate) fit a parabola; where it opens upwards its minimum is the next rate. phi(0) is computed anew, since the
    step's own loss has dropout in it. It stays within a range around the first rate.
    """

    def __init__(self, trainer: NormalisedTrainer) -> None:
        """``trainer``: whose rate is found."""
        self.trainer = trainer
        self.before: tuple[list[Tensor], float] | None = None

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Note where the step starts from."""
        every = int(self.trainer.params["rate_every"])
        if every and (state.global_step + 1) % every == 0:
            weights = [weight.detach().clone() for weight in model.parameters() if weight.requires_grad]
            self.before = weights, self.trainer.retain_loss(model)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Look to both sides and choose."""
        if self.before is None:
            return
        (start, zero), self.before = self.before, None
        optimizer, scheduler = self.trainer.optimizer, self.trainer.lr_scheduler
        assert optimizer is not None
        assert scheduler is not None
        rate = float(optimizer.param_groups[0]["lr"])
        plus = self.trainer.retain_loss(model)
        with _mirrored(model, start):
            minus = self.trainer.retain_loss(model)
        found = quadratic_rate(rate, minus, zero, plus)
        if found is None:
            return
        first, times = self.trainer.config.learning_rate, self.trainer.params["rate_range"]
        found = min(max(found, first / times), first * times)
        for group in optimizer.param_groups:
            # torchao's optimisers hold the rate as a tensor
            group["lr"] = found if isinstance(group["lr"], float) else torch.full_like(group["lr"], found)
        # The scheduler multiplies these by 1; they are in the checkpoint, and so is the rate.
        scheduler.base_lrs = [found] * len(optimizer.param_groups)


@contextmanager
def _mirrored(model: nn.Module, start: list[Tensor]) -> Iterator[None]:
    """The trained weights as a step of the same length in the other direction would have left them."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    after = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight, from_ in zip(weights, start, strict=True):
            weight.copy_(2 * from_ - weight)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, after, strict=True):
                weight.copy_(value)
