"""Say which model a result is of, without a path of this machine."""

import hashlib
from pathlib import Path
from typing import Any

import torch


def fingerprint(model: Any, name: str | None = None) -> dict[str, str]:
    """Identify a loaded model: the SHA-256 of its weights, and where on the hub it came from.

    Args:
        model: a model of transformers or PEFT, on any device. The weights are hashed as they were loaded, adapter
            included, so the same files in another data type give another hash.
        name: how the model was named: a folder or a hub name. Default: as its configuration says.

    Returns:
        ``sha256`` (hexadecimal) and ``dtype``; for a model of the hub also ``repository`` and, if known, ``revision``
        (the commit). Names of local folders are left out.
    """
    config = getattr(model, "config", None)
    name = name or getattr(config, "_name_or_path", "") or ""
    found = {"sha256": weights_sha256(model), "dtype": str(next(model.parameters()).dtype).removeprefix("torch.")}
    if name and not Path(name).expanduser().exists() and not Path(name).is_absolute():
        found["repository"] = name
        if revision := getattr(config, "_commit_hash", None):
            found["revision"] = revision
    return found


def weights_sha256(model: Any) -> str:
    """Compute the SHA-256 (hexadecimal) of a model's weights with their names, data types and shapes."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
