"""The trained weights of a model: read, copy and set them."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the trained weights by name, or this process's shards of them."""
    trained = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    return {name: weight.to_local() if isinstance(weight, DTensor) else weight for name, weight in trained.items()}


def convert_weights(weights: Iterable[nn.Parameter], dtype: torch.dtype) -> None:
    """Convert weights in float32, bfloat16 or float16, in place.

    Buffers stay as they are, as in ``from_pretrained(dtype=...)``. ``model.to(dtype)`` converts them, too: in bfloat16,
    the frequencies of rotary positions are off by up to 0.4 %, and a later ``model.float()`` does not repair that.
    """
    for weight in weights:
        if weight.dtype in (torch.float32, torch.bfloat16, torch.float16):
            weight.data = weight.data.to(dtype)


def copied_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the `trained_weights` on the CPU."""
    return {
        name: weight.to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, weight in trained_weights(model).items()
    }


def set_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Set the `trained_weights` to the given values."""
    own = trained_weights(model)
    for name, weight in weights.items():
        own[name].copy_(weight)
