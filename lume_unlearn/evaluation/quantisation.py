"""Weights rounded to a few bits: which layers of a model hold them, and how they are rounded."""

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lume_unlearn.config import ConfigError


def weight_layers(model: Any) -> list[nn.Linear | Conv1D]:
    """The linear layers that quantisation changes: `nn.Linear` and GPT-2's `Conv1D`, without the output layer.

    Raises:
        ConfigError: they hold less than half of the weights outside the embeddings, so that the model would be called
            quantised and not be it.
    """
    output_layer = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not output_layer]
    outside = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding) or m is output_layer}
    whole = sum(weight.numel() for weight in model.parameters() if id(weight) not in outside)
    held = sum(layer.weight.numel() for layer in layers)
    if held < whole / 2:
        raise ConfigError(
            f"--audits quantised: only {held / whole:.0%} of the weights of {type(model).__name__} are in layers that "
            "can be quantised (nn.Linear, Conv1D), so the result would not be a quantised model's; name the other "
            "audits in --audits"
        )
    return layers


def round_to_nearest(weight: torch.Tensor, bits: int, group: int = 128) -> torch.Tensor:
    """Weights rounded to ``2^bits - 1`` symmetric levels, each group of so many inputs of an output with its own scale.

    The scale puts the group's largest absolute value on the outermost level: ``s = max|w| / (2^(bits-1) - 1)``,
    ``w -> s * round(w / s)``, at most half a step away. Shape and dtype stay.
    """
    outputs, inputs = weight.shape
    levels = 2 ** (bits - 1) - 1
    padded = nn.functional.pad(weight, (0, -inputs % group)).reshape(outputs, -1, group)
    scale = (padded.abs().amax(dim=-1, keepdim=True) / levels).clamp(min=torch.finfo(weight.dtype).tiny)
    rounded: torch.Tensor = (padded / scale).round() * scale
    return rounded.reshape(outputs, -1)[:, :inputs]
