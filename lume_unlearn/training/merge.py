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

    Args:
        adapter: folder that `lume-unlearn run --tuning lora` wrote.
        output: folder for the merged model.
        model: the adapter's model; None for the one that it names.
        dtype: of the saved weights: "float32" (same scores as the adapter) or "bfloat16" (half the size).

    Raises:
        ConfigError: adapter and model do not load or do not fit, or the output is in use or cannot be written.
    """
    require_unused(Path(output))
    base = model or _base_model([adapter], "--adapter")
    with only_run(Path(output)):
        merged = load.merged_model(base, adapter).to(getattr(torch, dtype))
        _save(merged, adapter, base, Path(output))


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
    """Merge LoRA adapters with TIES and save the result with its tokenizer (options as of `ties_merged` and `merge`).

    Raises:
        ConfigError: an option is out of range, the adapters do not fit each other or the model, or the output is in use
            or cannot be written.
    """
    weights = weights or [1.0] * len(adapters)
    _check_options(adapters, density, weights, rank)
    require_unused(Path(output))
    base = model or _base_model(adapters, "--ties")
    with only_run(Path(output)):
        result = ties_merged(base, adapters, density, weights, rank)
        if rank is None or dtype == "bfloat16":
            result = result.to(getattr(torch, dtype))
        _save(result, adapters[0], base, Path(output))


def _check_options(adapters: Sequence[str], density: float, weights: Sequence[float], rank: int | None) -> None:
    faults = []
    if len(adapters) < 2:
        faults.append(f"--ties {','.join(adapters)}: name two or more adapters, with commas between them")
    if not 0 < density <= 1:
        faults.append(f"--density {density}: must be above 0 and at most 1")
    if len(weights) != len(adapters):
        faults.append(f"--weights: {len(weights)} given for {len(adapters)} adapters; give one for each")
    if rank is not None and rank < 1:
        faults.append(f"--rank {rank}: must be at least 1")
    for adapter in adapters:
        config = load.adapter_config(adapter, "--ties")
        for field in ("use_dora", "lora_bias", "modules_to_save"):
            if getattr(config, field, None):
                faults.append(f"--ties {adapter}: has {field}, which TIES cannot merge; train without it")
    if faults:
        raise ConfigError("\n".join(faults))


def _base_model(adapters: Sequence[str], option: str) -> str:
    """Return the model that all adapters name.

    Raises:
        ConfigError: they name none or different ones, or a folder holds no adapter.
    """
    bases: list[Any] = [load.adapter_config(adapter, option).base_model_name_or_path for adapter in adapters]
    for adapter, base in zip(adapters, bases, strict=True):
        if base is None:
            raise ConfigError(f"{option} {adapter}: it does not say which model it belongs to; name it with --model")
    if len({Path(base).resolve() for base in bases}) > 1:  # two runs may spell one folder differently
        names = ", ".join(bases)
        raise ConfigError(f"{option}: the adapters name different models ({names}); name theirs with --model")
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
