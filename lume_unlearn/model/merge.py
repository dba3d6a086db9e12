"""Weight arithmetic: negate training (task vectors), fold in a LoRA adapter, merge several (TIES)."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import merge_utils
from torch import Tensor

from lume_unlearn.config import ConfigError, require_unused
from lume_unlearn.files import fresh_partial, only_run, publish_result, writing
from lume_unlearn.model import load

_log = logging.getLogger("lume_unlearn")


def negated(before: dict[str, Tensor], after: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return the weights before training minus what training added: before - scale * (after - before).

    Task-vector negation of Ilharco et al. 2022 (arXiv:2212.04089), in float32. Each result has the dtype and the device
    of its tensor before; tensors that are not of floating-point numbers are those before.

    Raises:
        ValueError: names or shapes differ.
    """
    if differing := sorted(before.keys() ^ after.keys()):
        raise ValueError(f"before or after only: {', '.join(differing)}")
    for name, tensor in before.items():
        if tensor.shape != after[name].shape:
            raise ValueError(f"{name}: shape {tuple(tensor.shape)} before, {tuple(after[name].shape)} after")
    result = dict(before)
    for name, tensor in before.items():
        if tensor.is_floating_point():
            start = tensor.float()
            result[name] = (start - scale * (after[name].to(start) - start)).to(tensor.dtype)
    return result


@torch.no_grad()
def subtract_training(model_path: str, trained_model: Any, scale: float, trust_remote_code: bool = False) -> None:
    """Write `negated` weights into a fully trained model, in place; ``model_path`` is the model before training.

    Raises:
        ConfigError: the model before training cannot be loaded.
        ValueError: it is another model.
    """
    # In the dtype that training started from: else its rounding would count as training, times the scale.
    before = load.load_model(model_path, trained_model.dtype, trust_remote_code)
    trained_model.load_state_dict(negated(before.state_dict(), trained_model.state_dict(), scale))


@torch.no_grad()
def negate_adapter(model: PeftModel, scale: float) -> None:
    """Turn a trained LoRA adapter around, in place: its update of each weight, B A, becomes -scale * B A.

    The same as `negated` on the weights themselves; only B is multiplied, that of embeddings too.
    """
    for name, weight in model.named_parameters():
        if ".lora_B." in name or ".lora_embedding_B." in name:
            weight.mul_(-scale)


def merge(adapter: str, output: str, model: str | None = None, dtype: str = "float32") -> None:
    """Fold a LoRA adapter into its model, in float32, and save the whole model with its tokenizer.

    Args:
        adapter: folder that `lume-unlearn run --tuning lora` wrote.
        output: folder for the merged model.
        model: the adapter's model; by default the one that the adapter names.
        dtype: of the saved weights: "float32" (scores as the adapter does) or "bfloat16" (half the size).

    Raises:
        ConfigError: the folder holds no adapter, its model cannot be loaded or is another one, or the output is in use
            or cannot be written.
    """
    require_unused(Path(output))
    base = model or _base_of(adapter, "--adapter")
    with only_run(Path(output)):
        merged = load.merged_model(base, adapter)
        _save(merged.to(getattr(torch, dtype)), _tokenizer(adapter, base), Path(output))


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
    """Merge LoRA adapters of one model with TIES (see `ties_update`) and save the result with its tokenizer.

    Args:
        adapters: folders of two or more LoRA adapters of the same modules; ranks may differ.
        output: folder to write.
        density: share of each update's entries to keep, above 0 and at most 1.
        weights: factor for each adapter; by default 1.
        rank: None saves the whole merged model. A number saves an adapter of this rank: of each merged update the
            nearest matrix of this rank (PEFT's ``combination_type="ties_svd"``).
        model: the adapters' model; by default the one that they name.
        dtype: of the saved weights: "float32" or "bfloat16".

    Raises:
        ConfigError: an option is out of range, the adapters do not fit each other or the model, or the output is in use
            or cannot be written.
    """
    weights = weights or [1.0] * len(adapters)
    _check_options(adapters, density, weights, rank)
    require_unused(Path(output))
    base = model or _common_base(adapters)
    with only_run(Path(output)):
        # For an adapter the model only supplies shapes, so half the memory is enough.
        loaded_dtype = torch.float32 if rank is None else torch.bfloat16
        loaded: Any = load.adapted_model(base, adapters, loaded_dtype, option="--ties")
        layers: dict[str, Any] = {name: layer for name, layer in loaded.named_modules() if isinstance(layer, LoraLayer)}
        _check_layers(layers, len(adapters), rank)
        if rank is None:
            for layer in layers.values():
                layer.get_base_layer().weight.add_(ties_update(layer, weights, density))
            result = loaded.unload().to(getattr(torch, dtype))
        else:
            _add_merged_adapter(loaded, weights, density, rank)
            _warn_of_loss(layers, weights, density, rank)
            loaded.peft_config["default"].base_model_name_or_path = base
            result = loaded.to(torch.bfloat16) if dtype == "bfloat16" else loaded
        _save(result, _tokenizer(adapters[0], base), Path(output))


def ties_update(layer: Any, weights: Sequence[float], density: float) -> Tensor:
    """Merge the updates of one weight, ``scaling * B A`` of each adapter: TIES, Yadav et al. 2023 (arXiv:2306.01708).

    Trim: keep the floor(density * size) entries of largest magnitude of each update. Elect: the sign of an entry is the
    sign of its sum over the trimmed updates, without the weights; a sum of 0 counts as positive. Merge: sum
    weight * update over the updates of the elected sign and divide by their number.

    PEFT's ``combination_type="ties"`` merges the A matrices and the B matrices separately instead; the product of the
    merged matrices is not the merged update.

    Args:
        layer: LoRA layer with one adapter for each weight.
        weights: factor for each adapter, in the order of loading.
        density: share of the entries to keep, above 0 and at most 1.

    Returns:
        The merged update in float32, in the shape of the layer's weight.
    """
    updates = [layer.get_delta_weight(name).float() for name in load.adapter_names(len(weights))]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The density")
        merged: Tensor = merge_utils.ties(updates, torch.tensor(list(weights)), density)
    return merged


def _add_merged_adapter(loaded: Any, weights: Sequence[float], density: float, rank: int) -> None:
    """Add the merged adapter to the model as "default"."""
    names = load.adapter_names(len(weights))
    # PEFT copies this setting to the merged adapter, and it would multiply the update by sqrt(rank).
    loaded.peft_config[names[0]].use_rslora = False
    options = {"svd_rank": rank, "svd_full_matrices": False, "density": density}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The density")
        loaded.add_weighted_adapter(names, list(weights), "default", "ties_svd", **options)


def _warn_of_loss(layers: dict[str, Any], weights: Sequence[float], density: float, rank: int) -> None:
    """Warn when the rank is too low to hold the merged updates."""
    lost = 0.0
    for layer in layers.values():
        update = ties_update(layer, weights, density)
        difference = layer.get_delta_weight("default").float() - update
        lost = max(lost, (difference.norm() / update.norm().clamp(min=1e-30)).item())
    if lost > 0.01:
        advice = "raise --rank, or leave it out to save the whole model"
        _log.warning("--rank %d: the adapter loses up to %.1f%% of a merged update; %s", rank, 100 * lost, advice)


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
                faults.append(f"--ties {adapter}: it has {field}, which is not an update B A and would be lost")
    if faults:
        raise ConfigError("\n".join(faults))


def _check_layers(layers: dict[str, Any], count: int, rank: int | None) -> None:
    for name, layer in layers.items():
        if len(layer.scaling) < count:
            raise ConfigError(f"--ties: only some of the adapters have {name}; train them with the same --lora_targets")
        if rank is not None and rank > min(layer.in_features, layer.out_features):
            raise ConfigError(f"--rank {rank}: larger than a dimension of {name}; lower it, or leave it out")


def _base_of(adapter: str, option: str) -> str:
    """The model that an adapter names.

    Raises:
        ConfigError: it names none, or the folder holds no adapter.
    """
    base: str | None = load.adapter_config(adapter, option).base_model_name_or_path
    if base is None:
        raise ConfigError(f"{option} {adapter}: it does not say which model it belongs to; name it with --model")
    return base


def _common_base(adapters: Sequence[str]) -> str:
    """The model that all adapters name; two runs may have named the same folder differently."""
    bases = [_base_of(adapter, "--ties") for adapter in adapters]
    if len({Path(base).resolve() for base in bases}) > 1:
        raise ConfigError(f"--ties: the adapters name different models ({', '.join(bases)}); name theirs with --model")
    return bases[0]


def _tokenizer(adapter: str, base: str) -> Any:
    has_tokenizer = (Path(adapter) / "tokenizer_config.json").exists()
    return load.load_tokenizer(adapter if has_tokenizer else base)


def _save(result: Any, tokenizer: Any, output: Path) -> None:
    with writing(output):
        partial = fresh_partial(output)
        # Only the merged adapter, not those that it was made of.
        chosen = {"selected_adapters": ["default"]} if isinstance(result, PeftModel) else {}
        result.save_pretrained(partial, **chosen)
        tokenizer.save_pretrained(partial)
        publish_result(partial, output)
