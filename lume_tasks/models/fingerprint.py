"""What tells one model's answers from another's in a ``--use_cache`` file."""

import hashlib
import json
from typing import Any

import torch


def fingerprint(model: Any, settings: list[Any]) -> str:
    """SHA-256 over names, types and values of all weights, the model's configuration, its adapters' and settings.

    Args:
        model: of transformers, on whatever device; its weights are read once.
        settings: what else changes an answer, as JSON writes it.
    """
    adapters = {name: config.to_dict() for name, config in getattr(model, "peft_config", {}).items()}
    digest = hashlib.sha256()
    digest.update(json.dumps([model.config.to_dict(), adapters, settings], sort_keys=True, default=_plain).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)
