"""NGDiff: normalises both gradients before it subtracts them, and searches the learning rate while training.

Source: Bu et al. 2024 (arXiv 2410.22086).
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from lume_unlearn.methods.ngdiff import quadratic_rate
from lume_unlearn.model.forward import evaluating
from lume_unlearn.training.failures import total_norm
from lume_unlearn.training.split import SplitTrainer


class NormalisedTrainer(SplitTrainer):
    """Steps along ``g_R / |g_R| - g_F / |g_F|``, g_R and g_F the gradients of the NLL of retain and of forget rows.

    The norms are over all trained weights and the whole optimiser step. To first order, the direction raises the forget
    loss and lowers the retain loss, whatever the sizes of the gradients. ``forget_weight`` and ``retain_weight``
    multiply the normalised gradients.

    Deviation: the paper's Algorithm 1 is plain descent while its experiments use Adam; here it is AdamW, as for all
    methods, and the learning rate is searched along AdamW's direction.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As `SplitTrainer`."""
        super().__init__(*args, **kwargs)
        self.step_inputs: dict[str, Any] = {}
        self.add_callback(RateSearch(self))

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Compute both gradients of one optimiser step and combine them; return the step's loss."""
        model.train()
        self.step_inputs = inputs
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        retain = self.side_gradient(model, inputs, "retain")
        retain_gradients = [weight.grad for weight in weights]
        model.zero_grad()
        forget = self.side_gradient(model, inputs, "forget")
        forget_weight = -self.config.forget_weight / _norm([weight.grad for weight in weights])
        retain_weight = self.retain_weight / _norm(retain_gradients)
        for weight, gradient in zip(weights, retain_gradients, strict=True):
            if weight.grad is not None and gradient is not None:
                weight.grad.mul_(forget_weight).add_(gradient, alpha=retain_weight)
        return self._finished(model, retain - forget, inputs)

    @torch.no_grad()
    def retain_loss(self, model: nn.Module) -> float:
        """Compute the NLL of the current step's retain rows, over all processes, without dropout."""
        total = torch.zeros((), device=self.args.device)
        with evaluating(model):
            for batch in self.step_inputs["packs"]:
                total += self.terms(model, self.side_pack(batch, "retain"), self.step_inputs["sizes"])["retain"]
        return cast(Tensor, self.accelerator.reduce(total, "sum")).item()


def _norm(gradients: list[Tensor | None]) -> float:
    """Compute the L2 norm over all tensors; 1 if it is 0 or not finite (0 stays 0, and the step is refused later)."""
    norm = float(total_norm(gradients))
    return norm if norm > 0 and math.isfinite(norm) else 1.0


class RateSearch(TrainerCallback):
    """Every few steps, sets the learning rate that a parabola through three retain losses suggests (GeN, "AutoLR").

    phi(x) is the retain loss after a step of length x along the optimiser's direction. phi(-rate), phi(0) and phi(rate)
    fix a parabola; if it opens upwards, its minimum is the next learning rate, within a range around the first one.
    phi(0) is computed again for this, since the step's own loss has dropout in it.
    """

    def __init__(self, trainer: NormalisedTrainer) -> None:
        """``trainer``: the one whose learning rate is searched."""
        self.trainer = trainer
        self.start: tuple[list[Tensor], float] | None = None
        """The weights before the current step and their retain loss, if this step searches."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Keep the weights from before the step."""
        every = int(self.trainer.params["rate_every"])
        if every and (state.global_step + 1) % every == 0:
            weights = [weight.detach().clone() for weight in model.parameters() if weight.requires_grad]
            self.start = weights, self.trainer.retain_loss(model)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Compute the retain loss on both sides of the start, and set the next learning rate."""
        if self.start is None:
            return
        before, zero = self.start
        self.start = None
        optimizer, scheduler = self.trainer.optimizer, self.trainer.lr_scheduler
        assert optimizer is not None
        assert scheduler is not None
        rate = float(optimizer.param_groups[0]["lr"])
        plus = self.trainer.retain_loss(model)
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        after = [weight.detach().clone() for weight in weights]
        _set(weights, [2 * start - end for start, end in zip(before, after, strict=True)])
        minus = self.trainer.retain_loss(model)
        _set(weights, after)
        found = quadratic_rate(rate, minus, zero, plus)
        if found is None:
            return
        first, times = self.trainer.config.learning_rate, self.trainer.params["rate_range"]
        found = min(max(found, first / times), first * times)
        for group in optimizer.param_groups:
            # torchao's optimisers hold the rate as a tensor
            group["lr"] = found if isinstance(group["lr"], float) else torch.full_like(group["lr"], found)
        scheduler.base_lrs = [found] * len(optimizer.param_groups)  # the schedule's factor multiplies these


@torch.no_grad()
def _set(weights: list[nn.Parameter], values: list[Tensor]) -> None:
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)
