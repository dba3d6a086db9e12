"""The trained weights of a model: read, copy and set them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the trained weights by name, or this process's shards of them."""
    trained = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    return {name: weight.to_local() if isinstance(weight, DTensor) else weight for name, weight in trained.items()}


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
