"""Weight arithmetic: fold a LoRA adapter into its model (the command `merge`), and negate training."""

import os
from collections.abc import Mapping
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from lume_unlearn.errors import ConfigError, require_unused
from lume_unlearn.files import only_run, save_whole
from lume_unlearn.methods.task_vector import negated
from lume_unlearn.model import load
from lume_unlearn.model.places import TOKENIZER, Place, find_model, with_adapter
from lume_unlearn.model.weights import convert_weights


@torch.no_grad()
def merge(
    model: Any = None,
    adapter: str | PathLike[str] | None = None,
    output: str | PathLike[str] | None = None,
    dtype: str | torch.dtype = "float32",
) -> Any:
    """Fold a LoRA adapter into its model, and save the result if ``output`` is given.

    Args:
        model: a model in memory, which is changed in place; a folder or a hub name; by default the one that the
            adapter names. A PEFT model in memory has its adapter already.
        adapter: folder of the adapter; None with a PEFT model.
        output: new folder for the merged model, and for the tokenizer of adapter or model if that is in a folder or on
            the hub.
        dtype: data type of the result: "float32" (scores as the adapter does) or "bfloat16" (half the size).

    Returns:
        The merged model, without PEFT's modules; on the CPU unless the model was in memory.

    Raises:
        ConfigError: adapter or model cannot be loaded or do not fit, or the output is in use or cannot be written.
    """
    model, adapter = (os.fspath(one) if isinstance(one, os.PathLike) else one for one in (model, adapter))
    if adapter is None and not isinstance(model, PeftModel):
        raise ConfigError("--adapter: name the adapter's folder, or pass a PEFT model")
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(kind, torch.dtype):
        raise ConfigError(f"--dtype {dtype}: choose float32 or bfloat16")
    if output is not None:
        require_unused(Path(output))
    with only_run(Path(output)) if output is not None else nullcontext():
        merged = _merged(model, adapter)
        convert_weights(merged.parameters(), kind)
        if output is not None:
            save_whole(merged, _tokenizer(model, adapter), Path(output))
    return merged


def _merged(model: Any, adapter: str | None) -> Any:
    """Return the model in float32 with the adapter merged into it; see `merge`."""
    if adapter is None:
        return model.float().merge_and_unload()
    load.adapter_config(adapter)  # `load_model` would take a model's folder as well
    if model is None:
        return load.load_model(adapter, torch.float32, option="--adapter")
    return load.merged_model(model, adapter)


def _tokenizer(model: Any, adapter: str | None) -> Any:
    """Load the tokenizer of the adapter's folder, or else of the model; None for a model that has no folder."""
    if model is None:
        return load.load_tokenizer(str(adapter), option="--adapter")
    if isinstance(model, str):
        return load.load_tokenizer(with_adapter(find_model(model), adapter))
    place = with_adapter(Place(model.config._name_or_path, model.config._name_or_path), adapter)
    return load.load_tokenizer(place) if (Path(place.tokenizer or ".") / TOKENIZER).is_file() else None


@torch.no_grad()
def negate(model: Any, start: Mapping[str, Tensor], scale: float) -> None:
    """Change trained weights to ``start - scale * (trained - start)``, in place.

    Args:
        model: after training. If it has an adapter, the adapter's update B A of each weight becomes -scale * B A; other
            adapters, which are not active and so not trained, are not changed.
        start: state dictionary of a fully trained model before training.
        scale: see `methods.task_vector`.
    """
    if not isinstance(model, PeftModel):
        model.load_state_dict(negated(dict(start), model.state_dict(), scale))
        return
    for name, weight in model.named_parameters():
        if weight.requires_grad and (".lora_B." in name or ".lora_embedding_B." in name):
            weight.mul_(-scale)
