"""Trainers that compute the gradients of the forget loss and of the retain term apart, to change one of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState

from lume_unlearn.data.packs import Pack, pack_rows
from lume_unlearn.data.schedule import Limits, cut
from lume_unlearn.files import PREFIX
from lume_unlearn.methods.common import token_mean
from lume_unlearn.methods.spec import Side
from lume_unlearn.model.forward import Span
from lume_unlearn.model.output_layer import nll_value
from lume_unlearn.training.failures import total_norm
from lume_unlearn.training.relearning import BATCH_SIZE
from lume_unlearn.training.trainer import UnlearningTrainer

Gradients: TypeAlias = list[Tensor | None]
"""One for each trained weight; None where the loss does not depend on it."""

FURTHEST = 1.3
"""Forget gradients are taken up to so many times as far as the simulated relearning went."""
RETAIN_SHARE = 0.8
"""Share of this step's gradient in the mean of retain gradients that is protected."""


def projected(gradient: Gradients, protected: Gradients) -> Gradients:
    """Remove from a gradient what opposes another: ``g - <g, r> / <r, r> r`` where ``<g, r>`` < 0, over all weights.

    A step against the result no longer raises the loss that r is the gradient of, to first order. Worked example:
    g = (1, 1), r = (-1, 0): <g, r> = -1, so g becomes (0, 1); with r = (1, 0) it stays.

    Source: GRU, Wang et al. 2025 (arXiv 2503.09117).
    """
    pairs = [(g, r) for g, r in zip(gradient, protected, strict=True) if g is not None and r is not None]
    product = sum((torch.sum(g * r) for g, r in pairs), torch.zeros(()))
    if not pairs or product >= 0:
        return gradient
    factor = product / sum(torch.sum(r * r) for _, r in pairs)
    return [
        g if g is None or r is None else g - factor.to(g.device) * r for g, r in zip(gradient, protected, strict=True)
    ]


def steepest(gradient: Gradients, rho: float) -> Gradients:
    """Return the step of length ``rho`` along a gradient, ``rho g / |g|`` over all weights; 0 for a gradient of 0.

    Worked example: g = (3, 4), rho 0.1 give (0.06, 0.08).
    """
    norm = total_norm(gradient) or 1.0
    return [None if g is None else g * (rho / norm) for g in gradient]


class SplitTrainer(UnlearningTrainer):
    """Computes the gradient of one side's loss at a time."""

    def side_gradient(self, model: nn.Module, inputs: dict[str, Any], side: Side, log: bool = True) -> Tensor:
        """Add the gradient of one side's unweighted loss term to the weights' gradients; return the term's value.

        ``log`` adds the term to the loss history.
        """
        total = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(inputs["packs"]):
            last = number == len(inputs["packs"]) - 1
            with self._exchange(model, last):
                with self.compute_loss_context_manager():
                    term = self.terms(model, self.side_pack(batch, side), inputs["sizes"])[side]
                    if log:
                        self.progress.add({side: term})
                    if log and side == "retain":
                        self._step_retain += term.detach()
                loss = term * self.accelerator.num_processes
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def side_pack(self, batch: Pack, side: Side) -> Pack:
        """Return the rows of the forget loss (with alternatives) or of the retain term."""
        rows = batch.only("forget", "alternative") if side == "forget" else batch.only(side)
        return (rows if rows.lengths else self.sides.pack([])).to(self.args.device)


class WrappedTrainer(SplitTrainer):
    """``--robust`` and ``--protect``: other gradients for the same losses.

    sam takes the forget gradient at ``theta + rho g / |g|``, g the forget gradient at theta: Fan et al. 2025 (arXiv
    2502.05374), smoothness against relearning. path takes it at ``theta + u delta``: delta is how far a few AdamW steps
    on random forget rows lead, computed anew every few steps, and u is uniform in (0, 1.3). It is the first-order form
    of the idea of TAR, Tamirisa et al. 2024 (arXiv 2408.00761); the forget loss logged is that at the moved weights.
    The retain gradient is that at theta. project removes what opposes the mean retain gradient (see `projected`).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As `UnlearningTrainer`."""
        super().__init__(*args, **kwargs)
        self.kept: dict[str, Gradients] = {}
        """Between steps: "path" is delta, "retain" the mean of the retain gradients."""
        self.add_callback(Kept(self))

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Compute both gradients of one optimiser step and add them; return the step's loss."""
        model.train()
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        retain: Gradients = [None] * len(weights)
        loss = torch.zeros((), device=self.args.device)
        if self.retain_parts:
            loss = self.retain_weight * self.side_gradient(model, inputs, "retain")
            retain = taken(weights)
        offset, log = self._offset(model, weights, inputs)
        with moved(weights, offset):
            forget_loss = self.side_gradient(model, inputs, "forget", log)
        forget = taken(weights)
        if self.config.protect == "project":
            forget = projected(forget, self._mean_retain(retain))
        for weight, own, other in zip(weights, forget, retain, strict=True):
            parts = [
                factor * gradient
                for factor, gradient in ((self.config.forget_weight, own), (self.retain_weight, other))
                if gradient is not None
            ]
            weight.grad = torch.stack(parts).sum(dim=0) if parts else None
        return self._finished(model, loss + self.config.forget_weight * forget_loss, inputs)

    def _offset(
        self, model: nn.Module, weights: Sequence[nn.Parameter], inputs: dict[str, Any]
    ) -> tuple[Gradients, bool]:
        """Return where the forget gradient is taken, and whether its loss is to be logged."""
        if self.config.robust == "sam":
            self.side_gradient(model, inputs, "forget")
            return steepest(taken(weights), self.config.sam_rho), False
        if self.config.robust == "path":
            step = self.state.global_step
            if step % self.config.path_every == 0 or "path" not in self.kept:
                self.kept["path"] = self._relearned(model, weights)
            generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
            share = FURTHEST * float(torch.rand((), generator=generator))
            return [None if d is None else share * d for d in self.kept["path"]], True
        return [None] * len(weights), True

    def _relearned(self, model: nn.Module, weights: Sequence[nn.Parameter]) -> Gradients:
        """Return the change of the weights in a few steps as those of `fine_tune` (`relearning`); change nothing."""
        config = self.config
        start = [weight.detach().clone() for weight in weights]
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.state.global_step)
        optimizer = torch.optim.AdamW(weights, lr=config.path_rate, betas=(0.9, 0.95), weight_decay=0.0)
        limits = Limits(None, config.max_tokens, padded=not self.passes.packs)
        for _ in range(config.path_steps):
            chosen = torch.randperm(len(self.sides.forget), generator=generator)[:BATCH_SIZE].tolist()
            rows = [self.sides.forget[index] for index in chosen]
            batch = pack_rows({"forget": cut(rows, lambda row: [len(row.input_ids)], limits)[0]}).to(self.args.device)
            with self.compute_loss_context_manager():
                (nll,) = self.passes.values(model, batch, [Span(slice(0, len(batch.targets)), nll_value)])
                loss = token_mean(nll)
            self.accelerator.backward(loss)
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        delta: Gradients = [weight.detach() - before for weight, before in zip(weights, start, strict=True)]
        with torch.no_grad():
            for weight, before in zip(weights, start, strict=True):
                weight.copy_(before)
        return delta

    def _mean_retain(self, retain: Gradients) -> Gradients:
        """Return 0.8 times this step's retain gradient and 0.2 times that mean of the step before; keep it."""
        before = self.kept.get("retain")
        if before is not None:
            retain = [
                g if g is None or b is None else RETAIN_SHARE * g + (1 - RETAIN_SHARE) * b
                for g, b in zip(retain, before, strict=True)
            ]
        self.kept["retain"] = retain
        return retain


def taken(weights: Sequence[nn.Parameter]) -> Gradients:
    """Return the weights' gradients and leave none."""
    gradients: Gradients = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    return gradients


@contextmanager
def moved(weights: Sequence[nn.Parameter], offset: Gradients) -> Iterator[None]:
    """Add an offset to the weights within the block; afterwards they have the same bits as before."""
    pairs = [(weight, change) for weight, change in zip(weights, offset, strict=True) if change is not None]
    before = [weight.detach().clone() for weight, _ in pairs]
    with torch.no_grad():
        for weight, change in pairs:
            weight.add_(change)
    try:
        yield
    finally:
        with torch.no_grad():
            for (weight, _), value in zip(pairs, before, strict=True):
                weight.copy_(value)


class Kept(TrainerCallback):
    """Writes what a `WrappedTrainer` keeps between steps into checkpoints, and reads it again."""

    def __init__(self, trainer: WrappedTrainer) -> None:
        """``trainer``: the one whose state it is."""
        self.trainer = trainer

    def write_into(self, checkpoint: Path, state: TrainerState) -> None:
        """Write what is kept, the same in every process."""
        tensors = {
            f"{name} {number}": tensor.contiguous()
            for name, tensors in self.trainer.kept.items()
            for number, tensor in enumerate(tensors)
            if tensor is not None
        }
        if tensors and state.is_world_process_zero:
            save_file(tensors, checkpoint / "wrapper.safetensors")

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Read what the checkpoint kept."""
        file = Path(args.output_dir) / f"{PREFIX}{state.global_step}" / "wrapper.safetensors"
        if state.global_step and file.is_file():
            count = sum(weight.requires_grad for weight in model.parameters())
            for key, tensor in load_file(file, device=str(args.device)).items():
                name, number = key.split()
                self.trainer.kept.setdefault(name, [None] * count)[int(number)] = tensor
