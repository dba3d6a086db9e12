"""Rows of very different lengths in one forward pass without padding, kept apart exactly.

LUME has stories of 230 tokens beside answers of 15: padded to the longest, two thirds of the work are padding. Here the
rows of a batch stand one after another in a single sequence. Positions start again with each row, and attention never
crosses from one row into another, so every row sees what it would see alone. transformers' attention interface carries
this to every model that supports it; for others `lume_unlearn.model.forward` pads.
"""

import inspect
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lume_unlearn.config import TRANSFORMERS_ATTENTION
from lume_unlearn.data.packs import Pack

varlen_attn: Any = None
with suppress(ImportError):  # torch >= 2.10, for CUDA; its first version knew neither scale nor window
    from torch.nn.attention import varlen

    if "window_size" in inspect.signature(varlen.varlen_attn).parameters:
        varlen_attn = varlen.varlen_attn

IMPLEMENTATION = "lume_packed"


def packs(config: Any) -> bool:
    """Whether a model of this configuration takes packs: `forward.use_packing` has switched it over."""
    return config._attn_implementation in (IMPLEMENTATION, *TRANSFORMERS_ATTENTION)


class OnHost:
    """Numbers that a compiled layer hands on without a look: by a tuple's it would be compiled again for each pack."""

    def __init__(self, lengths: tuple[int, ...]) -> None:
        """``lengths``: of the rows."""
        self.lengths = lengths


def keeping_apart(config: Any, batch: Pack) -> dict[str, Any]:
    """What the model's attention has to be told of the rows of a pack, beside their positions."""
    if config._attn_implementation == IMPLEMENTATION:
        return {"pack_bounds": batch.bounds, "pack_lengths": OnHost(batch.lengths)}
    if config._attn_implementation.startswith("flash"):
        longest = max(batch.lengths)
        bounds = {"cu_seq_lens_q": batch.bounds, "cu_seq_lens_k": batch.bounds}
        return bounds | {"max_length_q": longest, "max_length_k": longest}
    return {}


def can_pack(model: Any) -> bool:
    """Whether the model's attention goes through transformers' interface, as plain softmax on rotary positions.

    Models with state beside attention (recurrent or hybrid ones) or with learned absolute positions are padded instead.
    This looks at the model's declarations only; `forward.use_packing` tries it out.
    """
    config = model.config.get_text_config()
    special = ("attn_logit_softcapping", "layers_block_type", "attention_chunk_size", "linear_num_value_heads")
    return (
        bool(getattr(model, "_supports_attention_backend", False))
        and "logits_to_keep" in inspect.signature(model.forward).parameters
        and hasattr(config, "rope_parameters")
        and not any(getattr(config, name, None) for name in special)
    )


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each row of a pack; without ``pack_bounds`` it is transformers' own SDPA.

    Args:
        module: the attention layer.
        query: (1, heads, T, head size).
        key: (1, key heads, T, head size).
        value: as ``key``.
        attention_mask: None for a pack.
        scaling: of the scores.
        dropout: of the attention weights.
        **kwargs: ``pack_bounds`` (B + 1,) and ``pack_lengths`` from the pack, ``sliding_window`` from the model.

    Returns:
        (1, T, heads, head size), and no weights.
    """
    bounds, on_host = kwargs.pop("pack_bounds", None), kwargs.pop("pack_lengths", None)
    if bounds is None or on_host is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if torch.is_autocast_enabled(query.device.type):
        # SDPA does this itself; rotary positions leave queries and keys in float32.
        query, key, value = (x.to(torch.get_autocast_dtype(query.device.type)) for x in (query, key, value))
    window = kwargs.get("sliding_window")
    if not dropout and _varlen_takes(query, value):
        q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
        groups = q.shape[1] // k.shape[1]
        k, v = (states.repeat_interleave(groups, dim=1) if groups > 1 else states for states in (k, v))
        longest = max(on_host.lengths)
        span = (window - 1 if window else -1, 0)
        return varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scaling, window_size=span)[None], None
    return _row_by_row(query, key, value, on_host.lengths, scaling, dropout, window), None


def _varlen_takes(query: Tensor, value: Tensor) -> bool:
    """Whether torch's variable-length attention, which is FlashAttention 2, can do this."""
    return (
        varlen_attn is not None
        and query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and query.shape[-1] == value.shape[-1] <= 256
        and query.shape[-1] % 8 == 0
    )


def _row_by_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> Tensor:
    """The same with one call a row: for CPUs, and for float32 on GPUs."""
    parts = []
    for q, k, v in zip(*(torch.split(states, list(lengths), dim=2) for states in (query, key, value)), strict=True):
        mask = _window_mask(q.shape[2], window, q.device) if window and q.shape[2] > window else None
        parts.append(
            scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
                dropout_p=dropout,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2)


def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """(length, length), true where a token sees another: itself and the ``window - 1`` before it."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None]
    return (distance >= 0) & (distance < window)


def packed_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """No mask for a pack (the attention keeps rows apart); SDPA's where a mask of padding is given."""
    return sdpa_mask(*args, **kwargs) if kwargs.get("attention_mask") is not None else None


# Compiled layers call it as it is: a kernel of its own, or a loop over rows.
AttentionInterface.register(IMPLEMENTATION, torch.compiler.disable(packed_attention))  # type: ignore[no-untyped-call]
AttentionMaskInterface.register(IMPLEMENTATION, packed_mask)
