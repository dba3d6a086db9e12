"""Arithmetic on weights: training taken back with a factor (task vectors), and several adapters made one (TIES)."""

import logging
import re
import warnings
from collections.abc import Sequence
from json import JSONDecodeError
from math import sqrt
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftConfig, PeftModel, PeftType
from peft.utils import merge_utils
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad

from lume_unlearn import modeling
from lume_unlearn.config import ConfigError, require_unused

_log = logging.getLogger("lume_unlearn")

WEIGHTS = "adapter_model.safetensors"
FACTOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# Fields of a LoRA configuration that `adapter_factors` honours or that a trained adapter's update does not depend on.
# Any other one that is set may change what the adapter does.
KNOWN_FIELDS = {
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "inference_mode"),
    "init_lora_weights",
}
Factors = dict[str, tuple[Tensor, Tensor]]  # of each module's update: (out, r) and (r, in)


def negated(before: dict[str, Tensor], after: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The weights before training, less what training added: before - scale * (after - before).

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
    before = modeling.load_model(model_path, trained_model.dtype, trust_remote_code)
    trained_model.load_state_dict(negated(before.state_dict(), trained_model.state_dict(), scale))


@torch.no_grad()
def negate_adapter(model: PeftModel, scale: float) -> None:
    """Turn a trained LoRA adapter around, in place: its update of each weight, B A, becomes -scale * B A.

    The same as `negated` on the weights themselves; only B is multiplied, that of embeddings too.
    """
    for name, weight in model.named_parameters():
        if ".lora_B." in name or ".lora_embedding_B." in name:
            weight.mul_(-scale)


def ties(deltas: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """Merge updates of one weight: TIES of Yadav et al. 2023 (arXiv:2306.01708).

    Trim: of each update keep the floor(density * size) entries of largest magnitude. Elect: an entry's sign is that of
    its sum over the trimmed updates, without the weights; a sum of 0 counts as positive. Merge: sum weight * update
    over the updates of the elected sign, divided by how many those are.

    PEFT's function computes it; here in float32, and without its warning at a density of 1.

    Takes k updates of one shape and k weights; density is above 0 and at most 1. The result is float32, of that shape.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The density")
        merged: Tensor = merge_utils.ties([delta.float() for delta in deltas], torch.tensor(weights), density)
    return merged


@torch.no_grad()
def ties_merge(
    model: str,
    adapters: Sequence[str],
    output: Path,
    density: float,
    weights: Sequence[float],
    tuning: Literal["full", "lora"],
    rank: int,
    trust_remote_code: bool = False,
) -> None:
    """Merge LoRA adapters of one model by `ties` and save the result with the tokenizer.

    What is merged is each weight's update, scaling * B A. PEFT's ``combination_type="ties"`` merges the A factors and
    the B factors apart instead. Their product is not the merged update, and depends on how training happened to share
    each update out: a row of A doubled and B's column halved leave the update as it is, but not the merged factors.

    Args:
        model: folder or hub name of the adapters' model.
        adapters: folders of two or more LoRA adapters of the same modules; ranks may differ.
        output: folder to write.
        density: share of each update's entries to keep, above 0 and at most 1.
        weights: a factor for each adapter.
        tuning: what to save: "full", the whole model in float32; "lora", an adapter with the nearest update of `rank`.
        rank: rank of that adapter; no matter in full.
        trust_remote_code: run code that a hub model brings along.

    Raises:
        ConfigError: options that cannot work, adapters that do not fit each other or the model, an output in use.
    """
    _check_options(adapters, density, weights, rank)
    require_unused(output)
    factors = [adapter_factors(adapter) for adapter in adapters]
    _check_alike(adapters, factors)
    base = modeling.load_model(model, torch.float32 if tuning == "full" else torch.bfloat16, trust_remote_code)
    _check_fit(model, base, factors[0], alone=tuning == "full")
    tokenizer = modeling.load_tokenizer(model, trust_remote_code)
    # One module at a time: the updates of all modules together would take as much memory as the model, per adapter.
    merged = (
        (module, ties([adapter[module][0] @ adapter[module][1] for adapter in factors], weights, density))
        for module in factors[0]
    )
    if tuning == "full":
        for module, delta in merged:
            base.get_parameter(f"{module}.weight").add_(delta)
        base.save_pretrained(output)
    else:
        _save_adapter(model, {module: low_rank(delta, rank) for module, delta in merged}, output, rank)
    tokenizer.save_pretrained(output)


def _check_options(adapters: Sequence[str], density: float, weights: Sequence[float], rank: int) -> None:
    faults = []
    if len(adapters) < 2:
        faults.append(f"--adapters: {len(adapters)} given; merging takes two or more")
    if not 0 < density <= 1:
        faults.append(f"--density {density}: must be above 0 and at most 1")
    if len(weights) != len(adapters):
        faults.append(f"--weights: {len(weights)} given for {len(adapters)} adapters; give one for each")
    if rank < 1:
        faults.append(f"--rank {rank}: must be at least 1")
    if faults:
        raise ConfigError("\n".join(faults))


def _check_alike(adapters: Sequence[str], factors: Sequence[Factors]) -> None:
    models = [_model_of(adapter) for adapter in adapters]
    first, *others = [_shapes(adapter) for adapter in factors]
    for i, shapes in enumerate(others, 1):
        pair = f"--adapters {adapters[0]}, {adapters[i]}"
        if models[i] != models[0]:
            raise ConfigError(f"{pair}: they belong to different models, {models[0]} and {models[i]}")
        if odd := sorted({module for module, _ in first.items() ^ shapes.items()}):
            raise ConfigError(f"{pair}: only one of them has {_few(odd)}, or in another shape; train both alike")


def _model_of(adapter: str) -> str | None:
    """The model that an adapter names; a folder by its full path, since two runs may have named it differently."""
    name = modeling._adapter_config(adapter).base_model_name_or_path
    return str(Path(name).resolve()) if name and Path(name).is_dir() else name


def _check_fit(model: str, base: Any, factors: Factors, alone: bool) -> None:
    """The model has weights for all updates; ``alone``: none also serves another module, without the update."""
    parameters = dict(base.named_parameters(remove_duplicate=False))
    for module, shape in _shapes(factors).items():
        weight = parameters.get(f"{module}.weight")
        if getattr(weight, "shape", None) != shape:
            raise ConfigError(f"--model {model}: has no {module} of shape {shape}, as the adapters have")
        if alone and sum(other is weight for other in parameters.values()) > 1:
            raise ConfigError(f"--tuning full: {module} shares its weight with another module; use --tuning lora")


def _shapes(factors: Factors) -> dict[str, tuple[int, int]]:
    return {module: (up.shape[0], down.shape[1]) for module, (up, down) in factors.items()}


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def adapter_factors(adapter: str) -> Factors:
    """The update of each module's weight in a LoRA adapter's folder, as two float32 factors on the CPU.

    Returns:
        By the module's name in its model: scaling * B (out, r) and A (r, in), whose product is the update. The scaling
        is alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA.

    Raises:
        ConfigError: the folder is no LoRA adapter, or one that has more to it than such products.
    """
    config = _lora_config(adapter)
    path = Path(adapter) / WEIGHTS
    if not path.is_file():
        raise ConfigError(f"--adapters {adapter}: there is no {WEIGHTS} in it (pickles are never loaded)")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"--adapters {adapter}: {WEIGHTS} cannot be read: {error}") from error
    matches = {key: FACTOR.fullmatch(key) for key in tensors}
    if odd := sorted(key for key, match in matches.items() if match is None or tensors[key].dim() != 2):
        advice = "only plain LoRA on linear layers can be merged, not on embeddings or the output layer"
        raise ConfigError(f"--adapters {adapter}: {_few(odd)}: not supported; {advice}")
    sides = {(match["module"], match["side"]): tensors[key].float() for key, match in matches.items() if match}
    factors = {}
    for module in sorted({module for module, _ in sides}):
        up, down = sides.get((module, "B")), sides.get((module, "A"))
        if up is None or down is None or up.shape[1] != down.shape[0]:
            raise ConfigError(f"--adapters {adapter}: {module} has no A and B of one rank; save the adapter again")
        factors[module] = (_scaling(config, module, down.shape[0]) * up, down)
    return factors


def _scaling(config: LoraConfig, module: str, rank: int) -> float:
    alphas = config.alpha_pattern or {}
    alpha = alphas.get(get_pattern_key(list(alphas), module), config.lora_alpha)
    return float(alpha / sqrt(rank) if config.use_rslora else alpha / rank)


def _lora_config(adapter: str) -> LoraConfig:
    try:
        config: PeftConfig = modeling._adapter_config(adapter)
    except (KeyError, TypeError, JSONDecodeError) as error:
        raise ConfigError(f"--adapters {adapter}: its adapter_config.json cannot be read: {error}") from error
    if not isinstance(config, LoraConfig) or config.peft_type != PeftType.LORA:
        raise ConfigError(f"--adapters {adapter}: is {config.peft_type}; only LoRA can be merged")
    plain = vars(LoraConfig())
    odd = [name for name, value in vars(config).items() if name not in KNOWN_FIELDS and value != plain.get(name)]
    if config.init_lora_weights not in (True, False, "gaussian", "orthogonal"):  # others change the model's weights
        odd.append(f"init_lora_weights {config.init_lora_weights}")
    if odd:
        raise ConfigError(f"--adapters {adapter}: set in adapter_config.json but not supported: {', '.join(odd)}")
    return config


def low_rank(delta: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The product of rank r nearest to a matrix (out, in), by its singular value decomposition U S V'.

    Returns:
        U sqrt(S) (out, r) and sqrt(S) V' (r, in), in float32, with zeros past the matrix's own rank; and the share of
        its Frobenius norm that is lost.
    """
    if delta.shape[0] > delta.shape[1]:
        down, up, lost = low_rank(delta.T, rank)
        return up.T.contiguous(), down.T.contiguous(), lost
    # The eigenvectors of M M' are M's left singular vectors: several times faster than torch.linalg.svd where M is
    # wide, and in float64 exact to float32's precision.
    matrix = delta.double()
    squares, left = torch.linalg.eigh(matrix @ matrix.T)
    squares = squares.clamp(min=0)
    lost = (squares[:-rank].sum() / squares.sum()).sqrt().item() if squares.any() else 0.0
    root, left = squares[-rank:] ** 0.25, left[:, -rank:]
    inverse = torch.where(root > 0, 1 / root, 0)
    missing = rank - len(root)
    up, down = pad(left * root, (0, missing)), pad(inverse[:, None] * (left.T @ matrix), (0, 0, 0, missing))
    return up.float().contiguous(), down.float().contiguous(), lost


def _save_adapter(model: str, factors: dict[str, tuple[Tensor, Tensor, float]], output: Path, rank: int) -> None:
    """Save as PEFT does; alpha = rank makes the scaling 1."""
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(factors), task_type="CAUSAL_LM")
    config.base_model_name_or_path, config.inference_mode = model, True
    config.save_pretrained(str(output))
    tensors = {
        f"base_model.model.{module}.lora_{side}.weight": half
        for module, (up, down, _) in factors.items()
        for side, half in (("A", down), ("B", up))
    }
    save_file(tensors, output / WEIGHTS, metadata={"format": "pt"})
    lost, module = max((lost, module) for module, (_, _, lost) in factors.items())
    if lost > 0.01:
        _log.warning(
            f"rank {rank}: the adapter loses up to {lost:.1%} of a merged update's norm (most at {module}); a higher "
            "rank, or saving the whole model, keeps more"
        )
