"""Values of tokens computed in place of a model's output layer, a chunk of logits at a time.

A vocabulary is large: at 50,000 entries the float32 logits of 8,000 tokens are 1.6 GB, as much again for their
gradient, and a loss that compares two distributions holds several of them. Here logits exist for one chunk of tokens,
are used up at once, and are computed a second time in the backward pass.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lume_unlearn.methods.common import token_nll

CHUNK_BYTES = 2**28
"""Most float32 logits that exist at once, in bytes."""

# torch >= 2.13; only its chunked form (options) never builds the logits
_LinearCrossEntropyOptions: Any = getattr(nn, "LinearCrossEntropyOptions", None)

TokenValue = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""((n, V) logits, (n,) targets, (n, V) reference logits where needed) to (n,) values; each from its own row alone."""


def nll_value(logits: Tensor, targets: Tensor, reference: Tensor | None) -> Tensor:
    """`token_nll` as a value: what most methods are made of."""
    return token_nll(logits, targets)


def output_layer(model: Any) -> nn.Module | None:
    """The layer that gives logits, below PEFT's wrapper; None where a model has none."""
    layer: nn.Module | None = model.get_output_embeddings()
    return layer


@contextmanager
def replaced_by(layer: nn.Module | None, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The layer computes ``function`` within the block; its hooks run as always."""
    assert layer is not None
    own = layer.__dict__.get("forward")
    layer.forward = function
    try:
        yield
    finally:
        del layer.forward
        if own is not None:
            layer.forward = own


def in_chunks(
    value: TokenValue,
    output: Callable[[Tensor], Tensor],
    vocabulary: int,
    states: Tensor,
    targets: Tensor,
    reference: Callable[[slice], Tensor] | None,
) -> Tensor:
    """``value`` of each token's logits: (n,).

    Args:
        value: what to compute.
        output: (m, d) hidden states to (m, V) logits.
        vocabulary: V.
        states: (n, d) hidden states that predict the tokens.
        targets: (n,) the tokens.
        reference: (part) to the reference's logits of that part of the tokens.
    """

    def part_value(states: Tensor, targets: Tensor, part: slice) -> Tensor:
        return value(output(states), targets, reference(part) if reference else None)

    size = max(1, CHUNK_BYTES // (4 * vocabulary))
    if len(targets) <= size:
        return part_value(states, targets, slice(0, len(targets)))
    if value is nll_value and (linear := _plain_linear(output)) is not None and _full_precision(states):
        options = _LinearCrossEntropyOptions()
        return functional.linear_cross_entropy(
            states, linear.weight, targets, linear_bias=linear.bias, reduction="none", options=options
        )
    parts = [slice(start, min(start + size, len(targets))) for start in range(0, len(targets), size)]
    # The values draw no random numbers, so that none has to be put back for the second time.
    again: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    return torch.cat([checkpoint(part_value, states[part], targets[part], part, **again) for part in parts])


def _plain_linear(output: Callable[[Tensor], Tensor]) -> nn.Linear | None:
    """The linear layer whose own forward this is, where torch has its cross entropy."""
    layer = getattr(output, "__self__", None)
    own = type(layer) is nn.Linear and getattr(output, "__func__", None) is nn.Linear.forward
    return layer if own and _LinearCrossEntropyOptions is not None else None


def _full_precision(states: Tensor) -> bool:
    """Whether torch's linear cross entropy is exact enough: of bfloat16 it gives bfloat16, off by 1 in 300."""
    return states.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(states.device.type)
