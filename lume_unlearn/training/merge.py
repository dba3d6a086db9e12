"""The command `merge`: merge one LoRA adapter, or several with TIES, into their model and save the result."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from lume_unlearn.errors import ConfigError, require_unused
from lume_unlearn.files import fresh_partial, only_run, publish_result, writing
from lume_unlearn.model import load
from lume_unlearn.model.merge import ties_merged


def merge(adapter: str, output: str, model: str | None = None, dtype: str = "float32") -> None:
    """Merge a LoRA adapter into its model, in float32, and save the model with its tokenizer.

    ``model`` is by default the one that the adapter names; ``dtype``, of the saved weights, is "float32" (scores as the
    adapter does) or "bfloat16" (half the size).

    Raises:
        ConfigError: adapter or model cannot be loaded or do not fit, or the output is in use or cannot be written.
    """
    require_unused(Path(output))
    base = model or _base_model([adapter], "--adapter")
    with only_run(Path(output)):
        _save(load.merged_model(base, adapter).to(getattr(torch, dtype)), adapter, base, Path(output))


@torch.no_grad()
def merge_ties(
    adapters: Sequence[str],
    output: str,
    density: float = 0.8,
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    model: str | None = None,
    dtype: str = "float32",
) -> None:
    """Merge two or more LoRA adapters of one model with TIES (see `ties_merged`) and save the result.

    Raises:
        ConfigError: see `merge`; or the adapters do not fit each other.
    """
    weights = weights or [1.0] * len(adapters)
    if len(adapters) < 2 or len(weights) != len(adapters):
        raise ConfigError(
            f"--ties: {len(adapters)} adapters, {len(weights)} weights; name two or more, and a weight for each"
        )
    for adapter in adapters:
        config = load.adapter_config(adapter, "--ties")
        for field in ("use_dora", "lora_bias", "modules_to_save"):
            if getattr(config, field, None):
                raise ConfigError(f"--ties {adapter}: has {field}, which TIES cannot merge; train without it")
    require_unused(Path(output))
    base = model or _base_model(adapters, "--ties")
    with only_run(Path(output)):
        result = ties_merged(base, adapters, density, weights, rank)
        if rank is None or dtype == "bfloat16":
            result = result.to(getattr(torch, dtype))
        _save(result, adapters[0], base, Path(output))


def _base_model(adapters: Sequence[str], option: str) -> str:
    """Return the model that all adapters name."""
    bases: list[Any] = [load.adapter_config(adapter, option).base_model_name_or_path for adapter in adapters]
    if None in bases or len({Path(base).resolve() for base in bases}) > 1:  # two runs may spell one folder differently
        raise ConfigError(f"{option}: the adapters name different models or none: {bases}; name theirs with --model")
    return str(bases[0])


def _save(result: Any, adapter: str, base: str, output: Path) -> None:
    has_tokenizer = (Path(adapter) / "tokenizer_config.json").exists()
    tokenizer = load.load_tokenizer(adapter if has_tokenizer else base)
    with writing(output):
        partial = fresh_partial(output)
        # Without the adapters that were merged.
        chosen = {"selected_adapters": ["default"]} if isinstance(result, PeftModel) else {}
        result.save_pretrained(partial, **chosen)
        tokenizer.save_pretrained(partial)
        publish_result(partial, output)
