"""Attention over packed rows: rows of different lengths in one sequence, without padding.

LUME has stories of 230 tokens and answers of 15; padded to the longest, two thirds of the tokens are padding. Here the
rows of a micro-batch follow each other in one sequence. Positions start again at each row, and attention stays within a
row, so every row gets the same result as alone. This goes through transformers' attention interface; for models that do
not use it `lume_unlearn.model.forward` pads.
"""

import inspect
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lume_unlearn.data.packs import Pack

varlen_attn: Any = None
with suppress(ImportError):  # from torch 2.10, for CUDA; its first version took neither scale nor window
    from torch.nn.attention import varlen

    if "window_size" in inspect.signature(varlen.varlen_attn).parameters:
        varlen_attn = varlen.varlen_attn

IMPLEMENTATION = "lume_packed"
TRANSFORMERS_ATTENTION = ("flash_attention_2", "flash_attention_3", "flex_attention")
"""Implementations of transformers that keep packed rows apart by themselves."""


def packs(config: Any) -> bool:
    """Return whether a model of this configuration takes packed rows, after `forward.use_packing`."""
    return config._attn_implementation in (IMPLEMENTATION, *TRANSFORMERS_ATTENTION)


@dataclass
class RowLengths:
    """Lengths of the rows, for compiled layers: torch.compile would compile again for each new tuple of numbers."""

    lengths: tuple[int, ...]


def pack_arguments(config: Any, batch: Pack) -> dict[str, Any]:
    """Return the arguments that tell the model's attention where rows start, besides the positions."""
    if config._attn_implementation == IMPLEMENTATION:
        return {"pack_bounds": batch.bounds, "pack_lengths": RowLengths(batch.lengths)}
    if config._attn_implementation.startswith("flash"):
        longest = max(batch.lengths)
        bounds = {"cu_seq_lens_q": batch.bounds, "cu_seq_lens_k": batch.bounds}
        return bounds | {"max_length_q": longest, "max_length_k": longest}
    return {}


def can_pack(model: Any) -> bool:
    """Return whether the model declares plain softmax attention on rotary positions through transformers' interface.

    Models with state outside attention or with learned positions are padded. `forward.use_packing` also runs a trial.
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
    """Compute causal attention within each row of a pack; without ``pack_bounds`` this is transformers' SDPA.

    ``query`` is (1, heads, T, head size), ``key`` and ``value`` are (1, key heads, T, head size), ``**kwargs`` hold
    the `pack_arguments` and the model's ``sliding_window``.

    Returns:
        (1, T, heads, head size), and None for the attention weights.
    """
    bounds, rows = kwargs.pop("pack_bounds", None), kwargs.pop("pack_lengths", None)
    if bounds is None or rows is None:
        kwargs |= {"dropout": dropout, "scaling": scaling}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if torch.is_autocast_enabled(query.device.type):
        # Rotary positions leave queries and keys in float32; SDPA casts them itself.
        query, key, value = (x.to(torch.get_autocast_dtype(query.device.type)) for x in (query, key, value))
    window = kwargs.get("sliding_window")
    if not dropout and _varlen_runs(query, value):
        q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        longest = max(rows.lengths)
        span = (window - 1 if window else -1, 0)
        return varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scaling, window_size=span)[None], None
    # One call for each row: for CPUs, and for float32 on GPUs.
    options: Any = {"scale": scaling, "dropout_p": dropout, "enable_gqa": query.shape[1] != key.shape[1]}
    parts = []
    split = [torch.split(states, list(rows.lengths), dim=2) for states in (query, key, value)]
    for q, k, v in zip(*split, strict=True):
        mask = _window_mask(q.shape[2], window, q.device) if window and q.shape[2] > window else None
        parts.append(scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, **options))
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _varlen_runs(query: Tensor, value: Tensor) -> bool:
    """Return whether torch's variable-length attention, which is FlashAttention 2, supports these tensors."""
    return (
        varlen_attn is not None
        and query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and query.shape[-1] == value.shape[-1] <= 256
        and query.shape[-1] % 8 == 0
    )


def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """Return a (length, length) mask, true where a token sees another: itself and the ``window - 1`` before it."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None]
    return (distance >= 0) & (distance < window)


def packed_mask(**kwargs: Any) -> Tensor | None:
    """Return no mask for a pack, whose rows the attention keeps apart; else SDPA's mask.

    From the positions of several rows, transformers finds that the plain causal mask is not allowed; and a pack has
    neither padding nor cached keys. All other calls, such as those of a scorer, get SDPA's mask.
    """
    alone = kwargs["batch_size"] == 1 and kwargs["q_length"] == kwargs["kv_length"]
    pack = alone and kwargs.get("attention_mask") is None and not kwargs["allow_is_causal_skip"]
    return None if pack else sdpa_mask(**kwargs)


# Compiled layers call this attention uncompiled: it is one kernel already, or a loop over rows.
AttentionInterface.register(IMPLEMENTATION, torch.compiler.disable(packed_attention))  # type: ignore[no-untyped-call]
AttentionMaskInterface.register(IMPLEMENTATION, packed_mask)
