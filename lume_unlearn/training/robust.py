"""Option ``robust``: change the forget gradient, so that forgetting outlasts further training and spares the rest."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState

from lume_unlearn.data.schedule import Step
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.common import token_mean
from lume_unlearn.training.arguments import UnlearningArguments
from lume_unlearn.training.failures import total_norm
from lume_unlearn.training.relearning import BATCH_SIZE

if TYPE_CHECKING:
    from lume_unlearn.training.trainer import UnlearningTrainer

Gradients: TypeAlias = list[Tensor | None]
"""One gradient for each trained weight; None if the loss does not depend on it."""

FURTHEST = 1.3
"""Largest factor u of the weight change by a simulated relearning (see `Robust`)."""
FILE = "wrapper.safetensors"
RANK = 1e-5
"""Singular values below this share of the largest one are rounding errors."""
ITERATIONS = 4
"""Power iterations of a singular value decomposition."""


def steepest(gradient: Gradients, rho: float) -> Gradients:
    """Return the step of length ``rho`` along a gradient, ``rho g / |g|`` over all weights; 0 for a gradient of 0.

    Worked example: g = (3, 4) and rho 0.1 give (0.06, 0.08).
    """
    norm = total_norm(gradient) or 1.0
    return [None if g is None else g * (rho / norm) for g in gradient]


@torch.no_grad()
def selected(gradient: Gradients, share: float, length: float) -> Gradients:
    """Damp each matrix of a gradient (see `damped`), then scale the whole gradient to ``length``."""
    return steepest([None if g is None else damped(g, share) for g in gradient], length)


def damped(gradient: Tensor, share: float) -> Tensor:
    """Reduce the largest singular values of a (rows, columns) matrix G; other tensors are not changed.

    These are the first k singular values, s_1 >= ... >= s_k, with k = share * min(rows, columns). Each s_i is divided
    twice by t_i = s_i / s_k, so it becomes s_i / t_i^2: once for the inputs of the layer, G - (G V - G V / t) V', and
    once for its outputs, with U. If the rank is below k, as for the gradient of a few tokens, k is share * rank, so
    that more than rounding errors is left.

    Worked example: singular values 4, 2, 1 and k = 2: t = (2, 1), so they become 1, 2, 1.

    Source: RepSelect (Sondej, Yang and Mahdi 2026, arXiv 2606.17168) and its code: the directions that most rows share
    are those of general skills, and of relearning. Deviations: this is done in every step instead of once, and no LoRA
    is trained on the forget rows first.
    """
    components = round(share * min(gradient.shape)) if gradient.ndim == 2 else 0
    if components < 2 or not gradient.any():
        return gradient
    result = gradient.float()
    with torch.random.fork_rng([gradient.device] if gradient.is_cuda else []):
        torch.manual_seed(0)  # the same in all processes; the training's random state does not change
        left, values, right = torch.svd_lowrank(result, q=components, niter=ITERATIONS)
    rank = int((values > RANK * values[0]).sum())
    if rank < components:
        components = max(1, round(share * rank))
        left, values, right = left[:, :components], values[:components], right[:, :components]
    shrink = 1 - values[-1] / values
    result = result - (result @ right * shrink) @ right.T
    return (result - left @ (shrink[:, None] * (left.T @ result))).to(gradient)


class Robust(TrainerCallback):
    """Computes the gradient of a step. The forget gradient is changed; that of the retain term is not.

    sam takes the forget gradient at ``theta + rho g / |g|``, where g is the forget gradient at theta: smoothness
    against relearning, Fan et al. 2025 (arXiv 2502.05374).

    path takes it at ``theta + u delta``: delta is the weight change of a few AdamW steps on forget rows of a random
    half of the documents, computed again every few steps, and u is uniform in (0, 1.3). This is the first-order form of
    the idea of TAR, Tamirisa et al. 2024 (arXiv 2408.00761). The gradient of the rows of that half is taken at theta:
    even a model that never saw a row knows it after such steps, so with less it would be forgotten too well. The logged
    forget loss is the sum of both.

    select damps the directions that the forget gradients of all rows share (see `damped`). Without a retain term it
    scales the gradient to the length of the trained weights, so that the learning rate of SGD is the share of this
    length that a step moves.
    """

    def __init__(self, trainer: "UnlearningTrainer", args: UnlearningArguments) -> None:
        """Set up for ``trainer``, whose gradients are computed and whose arguments are ``args``.

        Raises:
            ConfigError: path, and there is a single forget row.
        """
        if args.robust == "path" and len(trainer.forget) < 2:
            raise ConfigError("--robust path: needs two forget rows, one to relearn and one to forget; use sam")
        self.trainer = trainer
        self.delta: Gradients | None = None
        """Weight change of the last simulated relearning. Checkpoints keep it."""

    def add_gradients(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Add the gradients of one optimiser step to the weights' gradients; return the step's loss."""
        trainer = self.trainer
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        if trainer.args.robust == "select":
            return self._select(model, inputs, weights)
        sam, moving = trainer.args.robust == "sam", inputs
        total = torch.zeros((), device=trainer.args.device)
        if sam:
            trainer.add_gradients(model, inputs, ("forget",))  # logs the forget loss at theta
            offset = steepest(_taken(weights), trainer.args.sam_rho)
        else:
            offset, learned, moving = self._path(model, inputs["step"], weights)
            total += trainer.add_gradients(model, learned, ("forget",))
        if trainer.terms.retain_parts:
            total += trainer.add_gradients(model, inputs, ("retain",))
        with _moved(weights, offset):
            return total + trainer.add_gradients(model, moving, ("forget",), log=not sam)

    def _select(self, model: nn.Module, inputs: dict[str, Any], weights: Sequence[nn.Parameter]) -> Tensor:
        trainer = self.trainer
        total, alone = trainer.add_gradients(model, inputs, ("forget",)), not trainer.terms.retain_parts
        gradient = _taken(weights)
        length = float(total_norm([weight.detach() for weight in weights] if alone else gradient))
        for weight, found in zip(weights, selected(gradient, trainer.args.select_share, length), strict=True):
            weight.grad = found
        return total if alone else total + trainer.add_gradients(model, inputs, ("retain",))

    def _path(
        self, model: nn.Module, step: Step, weights: Sequence[nn.Parameter]
    ) -> tuple[Gradients, dict[str, Any], dict[str, Any]]:
        """Return ``u delta`` (see the class) for a random u, and two items of `Examples`.

        The first has the pairs of this step whose forget rows were relearned, the second the others.
        """
        args, now = self.trainer.args, self.trainer.state.global_step
        seed, since = args.seed * 1_000_003 + now, now % args.path_every
        generator = torch.Generator().manual_seed(seed - since)  # of the step of the last simulated relearning
        learned = self._half(generator)
        if self.delta is None or not since:
            self.delta = self._relearned(model, weights, learned, generator)
        share = FURTHEST * float(torch.rand((), generator=torch.Generator().manual_seed(seed)))

        def part(inside: bool) -> dict[str, Any]:
            chosen = [[p for p in batch if learned.issuperset(p.forget) == inside] for batch in step.micro_batches]
            return self.trainer.examples[replace(step, micro_batches=chosen)]

        return [None if d is None else share * d for d in self.delta], part(True), part(False)

    def _half(self, generator: torch.Generator) -> set[int]:
        """Return the indices of the forget rows of a random half of the documents; of one document, half its rows."""
        group = {row.id: row.stem for row in self.trainer.forget}
        if len(set(group.values())) == 1:
            group = {row.id: row.id for row in self.trainer.forget}
        names = sorted(set(group.values()))
        order = torch.randperm(len(names), generator=generator).tolist()
        chosen = {names[i] for i in order[: -(-len(names) // 2)]}
        return {index for index, one in enumerate(self.trainer.examples.ids["forget"]) if group[one] in chosen}

    def _relearned(
        self, model: nn.Module, weights: Sequence[nn.Parameter], learned: set[int], generator: torch.Generator
    ) -> Gradients:
        """Return the change of the weights in a few steps like those of `relearning`; reset the weights afterwards."""
        trainer, args = self.trainer, self.trainer.args
        start = [weight.detach().clone() for weight in weights]
        optimizer = torch.optim.AdamW(weights, lr=args.path_rate, betas=(0.9, 0.95), weight_decay=0.0)
        indices = torch.tensor(sorted(learned))
        for _ in range(args.path_steps):
            chosen = indices[torch.randperm(len(indices), generator=generator)[:BATCH_SIZE]].tolist()
            rows = [trainer.examples.forget[index] for index in chosen]
            count = sum(row.scored for row in rows)
            for batch in trainer.passes.batches(rows, trainer.max_tokens, args.device):
                with trainer.compute_loss_context_manager():
                    loss = token_mean(trainer.passes.of_all(model, batch), count)
                trainer.accelerator.backward(loss)
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        delta: Gradients = [weight.detach() - before for weight, before in zip(weights, start, strict=True)]
        _set(weights, start)
        return delta

    def write_into(self, checkpoint: Path, state: TrainerState) -> None:
        """Write ``delta`` in the first process; it is the same in all."""
        tensors = {str(i): d.contiguous() for i, d in enumerate(self.delta or []) if d is not None}
        if tensors and state.is_world_process_zero:
            save_file(tensors, checkpoint / FILE)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Read ``delta`` from the checkpoint of a resumed run."""
        resumed = self.trainer.resumed_from
        if resumed is not None and (resumed / FILE).is_file():
            tensors = load_file(resumed / FILE, device=str(args.device))
            count = sum(weight.requires_grad for weight in model.parameters())
            self.delta = [tensors.get(str(i)) for i in range(count)]


def _taken(weights: Sequence[nn.Parameter]) -> Gradients:
    """Return the weights' gradients, and set those of the weights to None."""
    gradients: Gradients = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    return gradients


@torch.no_grad()
def _set(weights: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)


@contextmanager
def _moved(weights: Sequence[nn.Parameter], offset: Gradients) -> Iterator[None]:
    """Add an offset to the weights within the block; afterwards restore them bit for bit."""
    pairs = [(weight, change) for weight, change in zip(weights, offset, strict=True) if change is not None]
    before = [weight.detach().clone() for weight, _ in pairs]
    with torch.no_grad():
        for weight, change in pairs:
            weight.add_(change)
    try:
        yield
    finally:
        _set([weight for weight, _ in pairs], before)
