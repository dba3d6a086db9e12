"""Load models, tokenizers and LoRA adapters, and choose which weights are trained."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from transformers import AutoModelForCausalLM, AutoTokenizer

from lume_tasks.errors import first_few
from lume_unlearn.checks import names
from lume_unlearn.errors import ConfigError
from lume_unlearn.model.forward import Passes, decoder_layers

TUNINGS = "lora|full|last:[1-9][0-9]*|modules:.+"


def bfloat16_here() -> bool:
    """Return whether there is a GPU that computes in bfloat16, which is then the default of forward passes."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def load_tokenizer(name: str, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a model folder or hub name; raise `ConfigError` if it cannot be loaded."""
    return _load(AutoTokenizer, "tokenizer", name, trust_remote_code=trust_remote_code)


def load_model(name: str, dtype: torch.dtype, trust_remote_code: bool = False) -> Any:
    """Load a causal language model from safetensors files, with weights of this dtype.

    Raises:
        ConfigError: it cannot be loaded, or weights that its configuration names are missing.
    """
    if (Path(name) / "adapter_config.json").is_file() and not (Path(name) / "config.json").is_file():
        raise ConfigError(f"--model {name}: is an adapter; merge it into its model with `lume-unlearn merge`")
    options = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": trust_remote_code}
    model, info = _load(AutoModelForCausalLM, "weights", name, output_loading_info=True, **options)
    if info["missing_keys"]:  # transformers fills them with random numbers
        missing = ", ".join(first_few(sorted(info["missing_keys"]), 3))
        raise ConfigError(f"--model {name}: its weights do not fit its config.json, missing are: {missing}")
    return model


def _load(kind: Any, part: str, name: str, **options: Any) -> Any:
    if not isinstance(options["trust_remote_code"], bool):  # the word "false" is true in Python
        raise ConfigError(f"--trust_remote_code {options['trust_remote_code']!r}: must be True or False")
    try:
        return kind.from_pretrained(name, **options)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # broken files raise anything from KeyError to errors of the tokenizers library
        where = "" if Path(name).is_dir() else " (no such folder here, so the hub was asked)"
        raise ConfigError(
            f"--model {name}{where}: its {part} cannot be loaded: {type(error).__name__}: {error}"
        ) from error


def lora_config(
    lora_rank: int = 8, lora_alpha: int = 32, lora_dropout: float = 0.05, lora_targets: str = "all-linear"
) -> LoraConfig:
    """Return the configuration of an adapter.

    Args:
        lora_rank: of the adapter.
        lora_alpha: its output is multiplied by alpha / rank.
        lora_dropout: before the adapter.
        lora_targets: modules that get an adapter: all-linear, or names separated by commas.
    """
    named: Any = names(lora_targets)
    modules = "all-linear" if named == ["all-linear"] else named
    options: Any = {"r": lora_rank, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout}
    return LoraConfig(target_modules=modules, task_type="CAUSAL_LM", **options)


def trainable(model: Any, tuning: str = "lora", lora: LoraConfig | None = None) -> Any:
    """Return the model with an adapter on it ("lora"), or with all weights frozen that are not trained.

    Args:
        model: causal language model; changed in place.
        tuning: "lora", "full" (all weights), "last:K" (the last K decoder layers), or "modules:REGEX" (the weights
            whose names match).
        lora: configuration of the adapter; by default that of `lora_config`.

    Raises:
        ConfigError: the tuning is unknown, or the model does not have what it names.
    """
    if not re.fullmatch(TUNINGS, tuning):
        raise ConfigError(f"--tuning {tuning!r}: choose lora, full, last:K (K layers) or modules:REGEX")
    if tuning != "lora":
        freeze(model, tuning)
        return model
    lora = lora or lora_config()
    modules = [f".{name}" for name, _ in model.named_modules()]
    targets = [lora.target_modules] if isinstance(lora.target_modules, str) else lora.target_modules or []
    # PEFT ignores a name that is not there as long as another one is.
    missing = [name for name in targets if not any(module.endswith(f".{name}") for module in modules)]
    if missing and targets != ["all-linear"]:
        raise ConfigError(f"--lora_targets: the model has no module {', '.join(sorted(missing))}")
    try:
        return get_peft_model(model, lora)
    except ValueError as error:
        raise ConfigError(f"--lora_targets: {error}") from error


def freeze(model: Any, tuning: str) -> None:
    """Freeze all weights except those of the last K decoder layers ("last:K") or those that "modules:REGEX" finds.

    "full" freezes nothing. Frozen weights get no gradient and no optimiser state. Tied embeddings are one weight, named
    after the input embeddings.

    Raises:
        ConfigError: the model has fewer layers, or the pattern is no regular expression or found in no weight's name.
    """
    kind, _, rest = tuning.partition(":")
    if kind == "full":
        return
    model.requires_grad_(False)
    if kind == "last":
        layers = decoder_layers(model)
        if int(rest) > len(layers):
            raise ConfigError(f"--tuning {tuning}: the model has {len(layers)} decoder layers")
        for layer in layers[-int(rest) :]:
            layer.requires_grad_(True)
        return
    try:
        found = [weight for name, weight in model.named_parameters() if re.search(rest, name)]
    except re.error as error:
        raise ConfigError(f"--tuning {tuning}: not a regular expression: {error}") from error
    if not found:
        example = [name for name, _ in model.named_parameters()][-1]
        raise ConfigError(f"--tuning {tuning}: found in no weight's name (example of a name: {example})")
    for weight in found:
        weight.requires_grad_(True)


def passes_to_layer(model: Any, layer: int) -> Passes:
    """Return forward passes that end after this decoder layer; freeze all weights after it, which get no gradient.

    Raises:
        ConfigError: the model has no such layer, or no weight up to it is trained.
    """
    passes = Passes(model, layer)
    if layer >= len(passes.layers):
        raise ConfigError(f"--layer {layer}: the model has {len(passes.layers)} decoder layers, counted from 0")
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


def undo_autocast(model: Any) -> Callable[[], None]:
    """Let a model compute in its own data types, as it did before training; return a function that undoes this.

    While training, accelerate runs its forward under autocast, and `keep_adapter_inputs_bfloat16` relies on that.
    """
    layers = [m for m in model.modules() if isinstance(m, LoraLayer) and not m.cast_input_dtype_enabled]
    forward = vars(model).pop("forward") if "_original_forward" in vars(model) and "forward" in vars(model) else None
    for layer in layers:
        layer.cast_input_dtype_enabled = True

    def redo() -> None:
        for layer in layers:
            layer.cast_input_dtype_enabled = False
        if forward is not None:
            model.forward = forward

    return redo


def require_torchao(option: str) -> None:
    """Raise `ConfigError` if torchao is not installed."""
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


def adapted_model(
    model: Any, adapter: str, dtype: torch.dtype, trust_remote_code: bool = False, option: str = "--adapter"
) -> PeftModel:
    """Load a model, or take one that is in memory, with a LoRA adapter on it.

    Raises:
        ConfigError: the folder holds no adapter in safetensors, or it does not fit the model; names ``option``.
    """
    config = adapter_config(adapter, option)
    if not (Path(adapter) / SAFETENSORS_WEIGHTS_NAME).is_file():
        raise ConfigError(f"{option} {adapter}: no {SAFETENSORS_WEIGHTS_NAME} in it; pickles are not loaded")
    loaded = load_model(model, dtype, trust_remote_code) if isinstance(model, str) else model.to(dtype)
    try:
        adapted = PeftModel(loaded, config)
        missing = adapted.load_adapter(adapter, "default").missing_keys
    except Exception as error:  # broken files raise anything from KeyError to SafetensorError
        raise ConfigError(f"{option} {adapter}: does not fit the model {_name(model)}: {error!r}") from error
    if missing:  # PEFT leaves them random
        raise ConfigError(f"{option} {adapter}: does not fit the model {_name(model)}: missing are {missing}")
    return adapted


def _name(model: Any) -> str:
    return model if isinstance(model, str) else model.config._name_or_path or type(model).__name__


def merged_model(model: Any, adapter: str, trust_remote_code: bool = False, option: str = "--adapter") -> Any:
    """Load a model in float32 and merge an adapter into it (see `adapted_model`)."""
    return adapted_model(model, adapter, torch.float32, trust_remote_code, option).merge_and_unload()
