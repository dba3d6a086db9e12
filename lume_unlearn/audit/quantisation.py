"""Quantise a model in memory: by bitsandbytes, or by rounding the weights of its linear layers to a few bits."""

import tempfile
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D
from transformers.utils.import_utils import is_bitsandbytes_available

from lume_unlearn.errors import ConfigError
from lume_unlearn.training.relearning import plain_copy


def quantised_copy(model: Any, bits: Literal[8, 4]) -> tuple[Any, str]:
    """Return a copy of a model (an adapter merged) with weights of 8 or 4 bits, and how it was quantised.

    On a GPU with bitsandbytes installed, transformers quantises the copy while loading it from a temporary folder; else
    `rounded_copy` simulates quantisation.
    """
    if not (is_bitsandbytes_available() and model.device.type == "cuda"):
        return rounded_copy(model, bits), "rounded"
    options = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)  # type: ignore[no-untyped-call]
    copied = plain_copy(model)
    with tempfile.TemporaryDirectory() as folder:
        copied.save_pretrained(folder)
        return type(copied).from_pretrained(folder, quantization_config=options), "bitsandbytes"


def weight_layers(model: Any) -> list[nn.Linear | Conv1D]:
    """Return the layers to quantise: `nn.Linear` and GPT-2's `Conv1D`, without the output layer.

    Raises:
        ConfigError: they hold less than half of the weights outside the embeddings and the output layer.
    """
    output_layer = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not output_layer]
    excluded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding) or m is output_layer}
    total = sum(weight.numel() for weight in model.parameters() if id(weight) not in excluded)
    quantised = sum(layer.weight.numel() for layer in layers)
    if quantised < total / 2:
        raise ConfigError(
            f"probes quantised: only {quantised / total:.0%} of the weights of {type(model).__name__} are in layers "
            "that can be quantised (nn.Linear, Conv1D), so the scores would not be those of a quantised model; give "
            "--probes without quantised"
        )
    return layers


def rounded_copy(model: Any, bits: int) -> Any:
    """Return a copy of the model, an adapter merged, with the weights of its `weight_layers` rounded."""
    model = plain_copy(model)
    for layer in weight_layers(model):
        if isinstance(layer, Conv1D):  # holds its weight as (inputs, outputs)
            layer.weight.data = round_to_nearest(layer.weight.data.T, bits).T.contiguous()
        else:
            layer.weight.data = round_to_nearest(layer.weight.data, bits)
    return model


def round_to_nearest(weight: torch.Tensor, bits: int, group: int = 128) -> torch.Tensor:
    """Round a weight of shape (outputs, inputs) to ``2^bits - 1`` symmetric levels.

    Each group of ``group`` inputs of one output has its own scale ``s = max|w| / (2^(bits-1) - 1)``, and ``w`` becomes
    ``s * round(w / s)``. Shape and dtype stay.
    """
    outputs, inputs = weight.shape
    levels = 2 ** (bits - 1) - 1
    padded = nn.functional.pad(weight, (0, -inputs % group)).reshape(outputs, -1, group)
    scale = (padded.abs().amax(dim=-1, keepdim=True) / levels).clamp(min=torch.finfo(weight.dtype).tiny)
    rounded: torch.Tensor = (padded / scale).round() * scale
    return rounded.reshape(outputs, -1)[:, :inputs]
