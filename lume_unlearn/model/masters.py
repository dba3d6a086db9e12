"""bfloat16 weights for the forward and backward pass, and float32 master weights that the optimiser changes.

An Adam step of 1e-5 is smaller than the rounding error of most bfloat16 weights, so it has to change float32 ones. With
autocast, the model has only float32 weights, and hidden states are float32 between the layers. Here the model computes
with bfloat16 weights, rounded once after each optimiser step, and hidden states are bfloat16.

Each trained weight is a bfloat16 parameter whose gradients torch adds up in float32 (its ``grad_dtype``). Clipping and
the check for finite gradients see these sums.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lume_unlearn.errors import ConfigError

AVAILABLE = hasattr(Tensor, "grad_dtype")
"""Whether this torch can add up gradients in a data type that differs from that of the weight."""


def require_grad_dtype() -> None:
    """Raise `ConfigError` if torch is too old."""
    if not AVAILABLE:
        raise ConfigError(
            f"--weights masters: torch {torch.__version__} has no Tensor.grad_dtype, which adds up gradients in "
            "float32; install a newer torch, or drop --weights"
        )


def keep_masters(model: Any) -> None:
    """Round the model's float32 weights to bfloat16, in place, and keep the float32 ones as their ``master``.

    Masters of frozen weights, which only saving needs, are kept in main memory. Copies of the model have no masters.
    """
    for weight in model.parameters():
        if weight.dtype == torch.float32:
            weight.master = weight.data if weight.requires_grad else weight.data.cpu()
            weight.data = weight.data.bfloat16()
            if weight.requires_grad:
                weight.grad_dtype = torch.float32


def step_masters(optimizer: Optimizer) -> None:
    """Make an optimiser step the masters of its bfloat16 weights, and round the weights after each step.

    The masters are the optimiser's parameters, so its state is float32, too.
    """
    weights: list[Any] = [weight for group in optimizer.param_groups for weight in group["params"]]
    masters: list[Tensor] = [weight.master for weight in weights]
    for group in optimizer.param_groups:
        group["params"] = [weight.master for weight in group["params"]]

    def lend_gradients(*args: Any) -> None:
        for weight, master in zip(weights, masters, strict=True):
            master.grad = weight.grad

    @torch.no_grad()
    def round_weights(*args: Any) -> None:
        torch._foreach_copy_(weights, masters)
        for master in masters:
            master.grad = None

    optimizer.register_step_pre_hook(lend_gradients)
    optimizer.register_step_post_hook(round_weights)


@contextmanager
def float32_weights(model: Any) -> Iterator[None]:
    """Use the float32 masters as the model's weights within the block, to save or change them, if there are masters.

    The bfloat16 weights are rounded again from the masters after the block. No forward pass may run within it.
    """
    weights = [weight for weight in model.parameters() if hasattr(weight, "master")]
    rounded = [weight.data for weight in weights]
    for weight in weights:
        weight.data = weight.master
    try:
        yield
    finally:
        for weight, data in zip(weights, rounded, strict=True):
            weight.data = data.copy_(weight.master)


def drop_rounded(model: Any) -> None:
    """Make the masters the model's weights, after training; without masters do nothing."""
    for weight in model.parameters():
        if hasattr(weight, "master"):
            weight.data = weight.master.to(weight.device)
            del weight.master
