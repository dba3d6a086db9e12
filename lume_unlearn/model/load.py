"""Load models, tokenizers and LoRA adapters, and choose which weights are trained."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, PeftType, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lume_unlearn.errors import ConfigError
from lume_unlearn.model.forward import Passes, decoder_layers, use_packing


def use_bfloat16(precision: str) -> bool:
    """Return whether forward passes run in bfloat16; "auto" means: where the GPU supports it."""
    if precision == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bfloat16"


def load_tokenizer(name: str, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a model folder or hub name.

    Raises:
        ConfigError: it cannot be loaded.
    """
    return _load(AutoTokenizer, "tokenizer", name, trust_remote_code=trust_remote_code)


def load_model_config(name: str, trust_remote_code: bool = False) -> Any:
    """Load the configuration of a model, without its weights.

    Raises:
        ConfigError: it cannot be loaded.
    """
    return _load(AutoConfig, "configuration", name, trust_remote_code=trust_remote_code)


def load_model(name: str, dtype: torch.dtype, trust_remote_code: bool = False) -> Any:
    """Load a causal language model from safetensors files, with weights of this dtype.

    Raises:
        ConfigError: it cannot be loaded, or weights are missing or of another shape than its configuration says.
    """
    options = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": trust_remote_code}
    # Mismatched sizes are refused below, with the names of the weights.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = _load(AutoModelForCausalLM, "weights", name, **options)
    # transformers fills these weights with random numbers.
    faults = [f"{key} is missing" for key in sorted(info["missing_keys"])]
    faults += [f"{key} has shape {[*has]}, not {[*wanted]}" for key, has, wanted in sorted(info["mismatched_keys"])]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        fault = f"they do not fit its config.json: {', '.join(faults[:3])}{more}"
        raise ConfigError(_not_loaded(name, "weights", fault))
    return model


def _load(kind: Any, part: str, name: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(name, **options)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # broken files raise anything from KeyError to errors of the tokenizers library
        raise ConfigError(_not_loaded(name, part, error)) from error


def _not_loaded(name: str, part: str, error: object) -> str:
    where = "" if Path(name).is_dir() else " (no such folder here, so the hub was asked)"
    reason = str(error) if str(error) and not isinstance(error, KeyError) else repr(error)
    return f"--model {name}{where}: its {part} cannot be loaded: {reason}"


def load_for_training(
    name: str,
    tuning: str,
    lora: LoraConfig,
    *,
    attention: str = "auto",
    bfloat16: bool = False,
    bfloat16_weights: bool = False,
    device: torch.device | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Load the model to train, use packed attention where it works, and freeze what ``tuning`` leaves out.

    Trained weights are float32: bfloat16 would round a step of 1e-5 away, unless it rounds stochastically
    (``bfloat16_weights``). The frozen model below an adapter has the dtype of the forward passes.

    Args:
        name: folder or hub name.
        tuning: "lora", "full", "last:K" or "modules:REGEX".
        lora: adapter to add for "lora". Its ``target_modules`` are "all-linear" or names of modules.
        attention: see `use_packing`.
        bfloat16: forward passes run in bfloat16.
        bfloat16_weights: the trained weights are bfloat16.
        device: where the model runs; None leaves it on the CPU, for FSDP or DeepSpeed to shard.
        trust_remote_code: run code that a hub model contains.

    Raises:
        ConfigError: the model cannot be loaded, or does not have what ``tuning``, ``lora`` or ``attention`` names.
    """
    half = bfloat16_weights or (tuning == "lora" and bfloat16)
    model = load_model(name, torch.bfloat16 if half else torch.float32, trust_remote_code)
    if device is not None:
        model.to(device)
    try:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16):
            use_packing(model, attention)
    except ValueError as error:
        raise ConfigError(f"--attention {attention}: {error}") from error
    if tuning == "lora":
        return _add_adapter(model, lora)
    freeze(model, tuning)
    return model


def _add_adapter(model: Any, lora: LoraConfig) -> PeftModel:
    if not isinstance(lora.target_modules, str):
        # PEFT ignores a name that is not there as long as another one is.
        modules = [f".{name}" for name, _ in model.named_modules()]
        names = sorted(lora.target_modules or ())
        missing = [name for name in names if not any(module.endswith(f".{name}") for module in modules)]
        if missing:
            raise ConfigError(f"--lora_targets: the model has no module {', '.join(missing)}")
    try:
        return cast(PeftModel, get_peft_model(model, lora))
    except ValueError as error:
        raise ConfigError(f"--lora_targets: {error}") from error


def freeze(model: Any, tuning: str) -> None:
    """Freeze all weights except those of the last K decoder layers ("last:K") or those that "modules:REGEX" finds.

    "full" freezes nothing. Frozen weights get no gradient and no optimiser state. Tied embeddings are one weight, named
    after the input embeddings.

    Raises:
        ConfigError: the pattern is found in no weight's name.
    """
    kind, _, rest = tuning.partition(":")
    if kind == "full":
        return
    model.requires_grad_(False)
    if kind == "last":
        for layer in decoder_layers(model)[-int(rest) :]:
            layer.requires_grad_(True)
        return
    found = [weight for name, weight in model.named_parameters() if re.search(rest, name)]
    if not found:
        example = [name for name, _ in model.named_parameters()][-1]
        raise ConfigError(f"--tuning {tuning}: found in no weight's name (example of a name: {example})")
    for weight in found:
        weight.requires_grad_(True)


def require_depth(depth: int, tuning: str, layer: float = 0) -> None:
    """Refuse options that name decoder layers which a model of this depth does not have.

    Raises:
        ConfigError: names the option.
    """
    if layer >= depth:
        raise ConfigError(f"--layer {layer:g}: the model has {depth} decoder layers, counted from 0")
    kind, _, count = tuning.partition(":")
    if kind == "last" and int(count) > depth:
        raise ConfigError(f"--tuning {tuning}: the model has {depth} decoder layers")


def passes_to_layer(model: Any, layer: int) -> Passes:
    """Return forward passes that end after this decoder layer; freeze all weights after it, which get no gradient.

    Raises:
        ConfigError: the model has no output layer to leave out, or no weight up to the layer is trained.
    """
    passes = Passes(model, layer)
    if not passes.chunks:
        raise ConfigError(f"--layer {layer}: this model has no output layer, so its hidden states cannot be read")
    weights = list(model.parameters())  # in the order of computation, tied ones at their first use
    last = list(passes.layers[layer].parameters())[-1]
    after = next(i for i, weight in enumerate(weights) if weight is last) + 1
    for weight in weights[after:]:
        weight.requires_grad_(False)
    if not any(weight.requires_grad for weight in weights):
        raise ConfigError(f"--tuning: trains no weight up to --layer {layer}; choose another layer, or full or lora")
    return passes


def keep_adapter_inputs_bfloat16(model: Any) -> None:
    """Stop PEFT from widening an adapter's input to float32, which autocast would round to bfloat16 again.

    Only for models whose forward passes all run under autocast.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False


def require_torchao(option: str) -> None:
    """Refuse an option where torchao is not installed.

    Raises:
        ConfigError: it is not.
    """
    try:
        import torchao  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{option}: needs torchao (pip install 'lume-unlearning[lowmem]')") from error


def context_length(model: Any) -> int | None:
    """Return the longest sequence that the model's position embeddings take, if its configuration names it."""
    return getattr(model.config, "max_position_embeddings", None)


def adapter_config(adapter: str, option: str = "--adapter") -> PeftConfig:
    """Read an adapter's configuration from its folder; the hub is not asked.

    Raises:
        ConfigError: the folder holds no adapter, or its configuration cannot be read.
    """
    if not (Path(adapter) / "adapter_config.json").is_file():
        raise ConfigError(f"{option} {adapter}: not an adapter's folder, there is no adapter_config.json in it")
    try:
        config: PeftConfig = PeftConfig.from_pretrained(adapter)
    except Exception as error:  # the file's content becomes arguments, which fail in any way
        raise ConfigError(f"{option} {adapter}: its adapter_config.json cannot be read: {error!r}") from error
    return config


def adapter_names(count: int) -> list[str]:
    """Return the names that `adapted_model` gives its adapters."""
    return [f"adapter{i}" for i in range(count)]


def adapted_model(
    model: str, adapters: Sequence[str], dtype: torch.dtype, trust_remote_code: bool = False, option: str = "--adapter"
) -> PeftModel:
    """Load a model with LoRA adapters on it, named by `adapter_names`; the first one is active.

    Raises:
        ConfigError: a folder holds no LoRA adapter in safetensors, or it does not fit the model; names ``option``.
    """
    for adapter in adapters:
        if adapter_config(adapter, option).peft_type != PeftType.LORA:
            raise ConfigError(f"{option} {adapter}: is no LoRA adapter")
        if not (Path(adapter) / SAFETENSORS_WEIGHTS_NAME).is_file():
            raise ConfigError(f"{option} {adapter}: no {SAFETENSORS_WEIGHTS_NAME} in it; pickles are not loaded")
    loaded: Any = load_model(model, dtype, trust_remote_code)
    for name, adapter in zip(adapter_names(len(adapters)), adapters, strict=True):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="Found missing adapter keys")  # PEFT fills them at random
                if not isinstance(loaded, PeftModel):
                    loaded = PeftModel.from_pretrained(loaded, adapter, adapter_name=name)
                elif missing := loaded.load_adapter(adapter, name).missing_keys:
                    raise ValueError(f"Found missing adapter keys: {missing}")
        except Exception as error:  # broken files raise anything from KeyError to SafetensorError
            raise ConfigError(f"{option} {adapter}: does not fit the model {model}: {error}") from error
    return cast(PeftModel, loaded)


def merged_model(model: str, adapter: str, trust_remote_code: bool = False, option: str = "--adapter") -> Any:
    """Load a model in float32 and merge an adapter into it.

    Raises:
        ConfigError: see `adapted_model`.
    """
    return adapted_model(model, [adapter], torch.float32, trust_remote_code, option).merge_and_unload()
