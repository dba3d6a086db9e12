"""Compute values of tokens in place of a model's output layer, for one chunk of logits at a time.

At 50,000 vocabulary entries the float32 logits of 8,000 tokens take 1.6 GB, their gradient as much again, and a loss
that compares two distributions holds several of them. Here the logits exist for one chunk of tokens only and are
computed again in the backward pass.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 2**28
"""Largest size of the float32 logits that exist at once."""

TokenValue = Callable[[Tensor, Tensor, Any], Tensor]
"""Function of (n, V) logits, (n,) targets and a reference to (n,) values. Each value depends on its own token alone.

The reference is (n, V) reference logits, a pair of these and an (n,) selection, or None."""


def in_chunks(
    value: TokenValue,
    output: Callable[[Tensor], Tensor],
    vocabulary: int,
    states: Tensor,
    targets: Tensor,
    reference: Callable[[slice], Any] | None,
) -> Tensor:
    """Compute ``value`` for each token, one chunk after another: (n,).

    ``output`` maps (m, d) hidden states to (m, V) logits, ``states`` is (n, d) and ``targets`` (n,), and ``reference``
    maps a slice of the tokens to the third argument of ``value``.
    """

    def chunk_value(states: Tensor, targets: Tensor, chunk: slice) -> Tensor:
        return value(output(states), targets, reference(chunk) if reference else None)

    size = max(1, CHUNK_BYTES // (4 * vocabulary))
    if len(targets) <= size:
        return chunk_value(states, targets, slice(0, len(targets)))
    chunks = [slice(start, min(start + size, len(targets))) for start in range(0, len(targets), size)]
    options: Any = {"use_reentrant": False, "preserve_rng_state": False}  # the values draw no random numbers
    return torch.cat([checkpoint(chunk_value, states[chunk], targets[chunk], chunk, **options) for chunk in chunks])
