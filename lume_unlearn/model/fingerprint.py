"""Identify the model of a result, without a path of this machine."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError


def fingerprint(model: Any, name: str | None = None, adapter: bool = True) -> dict[str, str]:
    """Identify a loaded model: the SHA-256 of its weights, and where on the hub it came from.

    Args:
        model: a model of transformers or PEFT, on any device. The weights are hashed as they were loaded, adapter
            included, so the same files in another data type give another hash.
        name: folder or hub name of the model; by default that in its configuration.
        adapter: include a LoRA adapter in the hash; else hash the other weights, as if there were no adapter.

    Returns:
        ``sha256`` (hexadecimal) and ``dtype``; for a model of the hub also ``repository`` and ``revision`` (the
        commit). Names of local folders are left out.
    """
    name = name or str(getattr(model.config, "_name_or_path", ""))
    found = {"sha256": weights_sha256(model, adapter)}
    found["dtype"] = str(next(model.parameters()).dtype).removeprefix("torch.")
    revision = None if Path(name).expanduser().exists() else _cached_revision(name)
    return found | ({"repository": name, "revision": revision} if revision else {})


def _cached_revision(name: str) -> str | None:
    """Return the commit of a hub model in the cache, from which it was loaded; None if it is not there."""
    try:
        path = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # no name of the hub
        return None
    return Path(path).parent.name if isinstance(path, str) else None


def weights_sha256(model: Any, adapter: bool = True) -> str:
    """Compute the SHA-256 (hexadecimal) of a model's weights with their names, data types and shapes."""
    digest = hashlib.sha256()
    weights = model.state_dict()
    if not adapter and hasattr(model, "peft_config"):
        own = {name.removeprefix("base_model.model.").replace(".base_layer.", "."): name for name in weights}
        weights = {name: weights[long] for name, long in own.items() if ".lora_" not in name}
    for name, weight in sorted(weights.items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
