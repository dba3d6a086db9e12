"""Weight arithmetic: merge one LoRA adapter, or several with TIES (the command `merge`), and negate training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import merge_utils
from torch import Tensor

from lume_unlearn.errors import ConfigError, require_unused
from lume_unlearn.files import fresh_partial, only_run, publish_result, writing
from lume_unlearn.methods.task_vector import negated
from lume_unlearn.model import load


@torch.no_grad()
def merge(
    adapters: Sequence[str],
    output: str,
    density: float = 0.8,
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    model: str | None = None,
    dtype: str = "float32",
) -> None:
    """Merge one LoRA adapter into its model, or several with TIES (see `ties_merged`), and save the result.

    ``model`` is by default the one that the adapters name; ``dtype``, of the saved weights, is "float32" (scores as the
    adapter does) or "bfloat16" (half the size).

    Raises:
        ConfigError: adapters or model cannot be loaded or do not fit, or the output is in use or cannot be written.
    """
    option = "--adapter" if len(adapters) == 1 else "--ties"
    for adapter in adapters if len(adapters) > 1 else ():
        config = load.adapter_config(adapter, option)
        for field in ("use_dora", "lora_bias", "modules_to_save"):
            if getattr(config, field, None):
                raise ConfigError(f"--ties {adapter}: has {field}, which TIES cannot merge; train without it")
    require_unused(Path(output))
    base = model or _base_model(adapters, option)
    with only_run(Path(output)):
        if len(adapters) == 1:
            result = load.merged_model(base, adapters[0])
        else:
            result = ties_merged(base, adapters, density, weights or [1.0] * len(adapters), rank)
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


@torch.no_grad()
def subtract_training(model_path: str, trained_model: Any, scale: float, trust_remote_code: bool = False) -> None:
    """Replace the weights of a fully trained model, in place, by `negated` ones.

    Raises:
        ConfigError: the reference model, at ``model_path``, cannot be loaded.
        ValueError: it is another model.
    """
    # In the dtype that training started from: else its rounding would count as training, times the scale.
    before = load.load_model(model_path, trained_model.dtype, trust_remote_code)
    trained_model.load_state_dict(negated(before.state_dict(), trained_model.state_dict(), scale))


@torch.no_grad()
def negate_adapter(model: PeftModel, scale: float) -> None:
    """Change the update B A of each weight by a trained LoRA adapter to -scale * B A, in place."""
    for name, weight in model.named_parameters():
        if ".lora_B." in name or ".lora_embedding_B." in name:
            weight.mul_(-scale)


@torch.no_grad()
def ties_merged(model: str, adapters: Sequence[str], density: float, weights: Sequence[float], rank: int | None) -> Any:
    """Load a model and merge LoRA adapters into it with TIES (see `ties_update`).

    Args:
        model: folder or hub name.
        adapters: folders of LoRA adapters of the same modules; ranks may differ.
        density: share of the entries of each update to keep.
        weights: factor for each adapter.
        rank: None returns the merged model, in float32. A number returns the model with one adapter of this rank,
            "default", which holds the nearest matrix of this rank to each merged update.

    Raises:
        ConfigError: the adapters do not fit each other or the model.
    """
    # For an adapter only the shapes of the model matter, so bfloat16 is enough.
    dtype = torch.float32 if rank is None else torch.bfloat16
    loaded: Any = load.adapted_model(model, adapters, dtype, option="--ties")
    layers = {name: layer for name, layer in loaded.named_modules() if isinstance(layer, LoraLayer)}
    for name, layer in layers.items():
        if len(layer.scaling) < len(adapters):
            raise ConfigError(f"--ties: only some of the adapters have {name}; train them with the same --lora_targets")
    if rank is None:
        for layer in layers.values():
            layer.get_base_layer().weight.add_(ties_update(layer, weights, density))  # type: ignore[operator]
        return loaded.unload()
    names = load.adapter_names(len(adapters))
    # PEFT copies this setting of the first adapter, which would multiply the merged update by sqrt(rank).
    loaded.peft_config[names[0]].use_rslora = False
    options = {"svd_rank": rank, "svd_full_matrices": False, "density": density}
    loaded.add_weighted_adapter(names, list(weights), "default", "ties_svd", **options)
    loaded.peft_config["default"].base_model_name_or_path = model
    return loaded


def ties_update(layer: Any, weights: Sequence[float], density: float) -> Tensor:
    """Merge the adapters' updates ``scaling * B A`` of one weight: TIES, Yadav et al. 2023 (arXiv 2306.01708).

    Trim: keep the floor(density * size) entries of largest magnitude of each update. Elect: the sign of an entry is the
    sign of its sum over the trimmed updates, without the weights; a sum of 0 counts as positive. Merge: sum
    weight * update over the updates of the elected sign and divide by their number.

    PEFT's ``combination_type="ties"`` merges the A matrices and the B matrices separately instead; the product of the
    merged matrices is not the merged update.

    Returns:
        The merged update in float32, in the shape of the layer's weight.
    """
    updates = [layer.get_delta_weight(name).float() for name in load.adapter_names(len(weights))]
    merged: Tensor = merge_utils.ties(updates, torch.tensor(list(weights)), density)
    return merged
