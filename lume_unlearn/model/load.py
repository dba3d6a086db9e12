"""Load models, tokenizers and LoRA adapters, and choose which weights are trained."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.hub import cached_file

from lume_tasks.errors import first_few
from lume_unlearn.checks import names
from lume_unlearn.errors import ConfigError
from lume_unlearn.model.forward import Passes, decoder_layers
from lume_unlearn.model.places import ADAPTER, MODEL, Place, find_adapter, find_model, with_adapter
from lume_unlearn.model.weights import convert_weights

TUNINGS = "lora|full|last:[1-9][0-9]*|modules:.+"


def bfloat16_here() -> bool:
    """Return whether there is a GPU that supports bfloat16, which is then the default of forward passes."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def require_model(name: str, option: str = "--model") -> Place:
    """Check that a model exists, without loading it, and return where it is; fetch the configuration of a hub model.

    Raises:
        ConfigError: there is no such model (see `find_model`); the message names ``option``.
    """
    place = find_model(name, option)
    if not Path(place.base).is_dir():
        with _loading("configuration", place, option):
            try:
                cached_file(place.base, MODEL)
            except OSError:
                cached_file(place.base, ADAPTER)  # a hub's adapter, which transformers loads with its base
    return place


def load_tokenizer(model: str | Place, trust_remote_code: bool = False, option: str = "--model") -> Any:
    """Load the tokenizer of a model: that of the adapter's folder if it has one, else the base model's.

    Args:
        model: folder or hub name (see `load_model`), or the result of `find_model`.
        trust_remote_code: run code that a hub model brings along.
        option: which option names the model, for messages.

    Raises:
        ConfigError: it cannot be loaded.
    """
    place = find_model(model, option) if isinstance(model, str) else model
    _require_bool(trust_remote_code)
    with _loading("tokenizer", place, option):
        return AutoTokenizer.from_pretrained(place.tokenizer, trust_remote_code=trust_remote_code)


def load_model(name: str, dtype: torch.dtype, trust_remote_code: bool = False, option: str = "--model") -> Any:
    """Load a causal language model from safetensors files.

    Args:
        name: folder or hub name. For the folder of a LoRA adapter, the adapter is merged into its base model, in
            float32; the base may be the folder of an adapter, too.
        dtype: data type of the weights.
        trust_remote_code: run code that a hub model brings along.
        option: which option names the model, for messages.

    Raises:
        ConfigError: it cannot be loaded, or weights that its configuration names are missing.
    """
    place = find_model(name, option)
    _require_bool(trust_remote_code)
    options: dict[str, Any] = {"dtype": torch.float32 if place.adapters else dtype, "use_safetensors": True}
    options |= {"trust_remote_code": trust_remote_code, "output_loading_info": True}
    with _loading("weights", place, option):
        found: Any = AutoModelForCausalLM.from_pretrained(place.base, **options)
    model, info = found
    if info["missing_keys"]:  # transformers fills them with random numbers
        missing = ", ".join(first_few(sorted(info["missing_keys"]), 3))
        subject = place.subject(option)
        raise ConfigError(f"{subject}: its weights do not match its config.json; missing: {missing}{place.advice}")
    for adapter in place.adapters:
        model = merged_model(model, adapter, option=option)
    if place.adapters:
        # An adapter that is trained on this model records this name as its base; the plain base model would be wrong.
        model.name_or_path = model.config._name_or_path = place.name
        convert_weights(model.parameters(), dtype)
        model.requires_grad_(True)  # PEFT has frozen the weights
    return model


def _require_bool(trust_remote_code: bool) -> None:
    if not isinstance(trust_remote_code, bool):  # the string "false" counts as true in Python
        raise ConfigError(f"--trust_remote_code {trust_remote_code!r}: must be True or False")


@contextmanager
def _loading(part: str, place: Place, option: str) -> Iterator[None]:
    """Turn errors while a part of a model is loaded into `ConfigError`, except out-of-memory errors."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # broken files raise anything from KeyError to errors of the tokenizers library
        here = Path(place.base).is_dir()
        where = "" if here else " (no such folder here, so the hub was asked)"
        reason = str(error) if here else " ".join(str(error).split())
        if not here and "connect" in reason:  # the message of transformers is about its offline mode
            reason = "the hub cannot be reached, and the model is not in the cache"
        raise ConfigError(
            f"{place.subject(option)}{where}: its {part} cannot be loaded: {type(error).__name__}: {reason}"
            f"{place.advice}"
        ) from error


def lora_config(
    lora_rank: int = 8, lora_alpha: int = 32, lora_dropout: float = 0.05, lora_targets: str = "all-linear"
) -> LoraConfig:
    """Return the configuration of an adapter.

    Args:
        lora_rank: rank of the adapter.
        lora_alpha: the adapter's output is multiplied by alpha / rank.
        lora_dropout: dropout before the adapter.
        lora_targets: modules that get an adapter: all-linear, or names separated by commas.
    """
    named: Any = names(lora_targets)
    modules = "all-linear" if named == ["all-linear"] else named
    options: Any = {"r": lora_rank, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout}
    return LoraConfig(target_modules=modules, task_type="CAUSAL_LM", **options)


def trainable(model: Any, tuning: str = "lora", lora: LoraConfig | None = None) -> Any:
    """Add an adapter to a model ("lora"), or freeze all weights that are not trained; return the model.

    Args:
        model: causal language model; changed in place.
        tuning: "lora", "full" (all weights), "last:K" (the last K decoder layers), or "modules:REGEX" (the weights
            whose names match).
        lora: configuration of the adapter; by default that of `lora_config`.

    Raises:
        ConfigError: the tuning is unknown, the model does not have what it names, or see `require_peft`.
    """
    require_peft(model)
    if require_tuning(tuning) != "lora":
        found = chosen_weights(model, tuning)
        model.requires_grad_(False)  # frozen weights get no gradient and no optimiser state
        for weight in found:  # PEFT freezes those below an adapter, also once it is merged
            weight.requires_grad_(weight.is_floating_point())
        return model
    lora = lora or lora_config()
    modules = [f".{name}" for name, _ in model.named_modules()]
    targets = [lora.target_modules] if isinstance(lora.target_modules, str) else lora.target_modules or []
    # PEFT ignores a missing module as long as another one exists.
    missing = [name for name in targets if not any(module.endswith(f".{name}") for module in modules)]
    if missing and targets != ["all-linear"]:
        raise ConfigError(f"--lora_targets: the model has no module {', '.join(sorted(missing))}")
    tied = [name for name in targets if any(module.endswith(f".{name}") for module in _tied_modules(model))]
    if tied:
        raise ConfigError(
            f"--lora_targets {','.join(sorted(tied))}: the input embeddings and the output layer of this model are one "
            "weight, and merging the adapter would change both; leave it out"
        )
    try:
        return get_peft_model(model, lora)
    except ValueError as error:
        raise ConfigError(f"--lora_targets: {error}") from error


def require_tuning(tuning: str) -> str:
    """Return a tuning that `trainable` knows; raise `ConfigError` for another."""
    if not re.fullmatch(TUNINGS, str(tuning)):
        raise ConfigError(f"--tuning {tuning!r}: choose lora, full, last:K (K layers) or modules:REGEX")
    return tuning


def require_peft(model: Any) -> None:
    """Raise `ConfigError` for a model with an adapter that is no PEFT model: its adapter was loaded by transformers."""
    if hasattr(model, "peft_config") and not isinstance(model, PeftModel):
        raise ConfigError(
            "model: its adapter was loaded by transformers, without the functions of PEFT that switch it off and merge "
            "it; load it with PeftModel.from_pretrained(base, folder, is_trainable=True), or merge it with "
            "lume_unlearn.merge(adapter=folder)"
        )


def _tied_modules(model: Any) -> list[str]:
    """Return the names, after a dot, of the input embeddings and the output layer if they share their weight."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    if ends[1] is None or ends[0].weight is not ends[1].weight:
        return []
    return [f".{name}" for name, module in model.named_modules() if module in ends]


def chosen_weights(model: Any, tuning: str) -> list[nn.Parameter]:
    """Return all weights ("full"), those of the last K decoder layers ("last:K"), or those that "modules:REGEX" finds.

    Tied embeddings are one weight, named after the input embeddings.

    Raises:
        ConfigError: the model has fewer layers, or the pattern is not a regular expression or matches no weight's name.
    """
    kind, _, rest = tuning.partition(":")
    if kind == "full":
        return list(model.parameters())
    if kind == "last":
        layers = decoder_layers(model)
        if int(rest) > len(layers):
            raise ConfigError(f"--tuning {tuning}: the model has {len(layers)} decoder layers")
        return [weight for layer in layers[-int(rest) :] for weight in layer.parameters()]
    try:
        found = [weight for name, weight in model.named_parameters() if re.search(rest, name)]
    except re.error as error:
        raise ConfigError(f"--tuning {tuning}: not a regular expression: {error}") from error
    if not found:
        example = [name for name, _ in model.named_parameters()][-1]
        raise ConfigError(f"--tuning {tuning}: matches no weight's name; one of these is {example}")
    return found


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
    """Remove autocast from a model, as it was before training; return a function that adds it again.

    In training, accelerate runs the model's forward under autocast, and `keep_adapter_inputs_bfloat16` relies on that.
    """
    layers = [m for m in model.modules() if isinstance(m, LoraLayer) and not m.cast_input_dtype_enabled]
    # Remove both that accelerate sets: with the second alone, its `unwrap_model` would undo autocast once more.
    names = ("forward", "_original_forward") if "_original_forward" in vars(model) else ()
    wrapped = {name: vars(model).pop(name) for name in names if name in vars(model)}
    for layer in layers:
        layer.cast_input_dtype_enabled = True

    def redo() -> None:
        for layer in layers:
            layer.cast_input_dtype_enabled = False
        vars(model).update(wrapped)

    return redo


@contextmanager
def without_autocast(model: Any) -> Iterator[None]:
    """Remove autocast within the block (see `undo_autocast`), so that weights have the scores of after training."""
    with ExitStack() as stack:
        stack.callback(undo_autocast(model))
        yield


def require_torchao(option: str) -> None:
    """Raise `ConfigError` if torchao is not installed."""
    try:
        import torchao  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{option}: needs torchao (pip install 'lume-unlearning[lowmem]')") from error


def context_length(model: Any) -> int | None:
    """Return the longest sequence that the model's position embeddings take; None if its configuration names none."""
    return getattr(model.config, "max_position_embeddings", None)


def adapter_config(adapter: str, option: str = "--adapter") -> PeftConfig:
    """Read an adapter's configuration from its folder; the hub is not asked.

    Raises:
        ConfigError: the folder holds no adapter, or its configuration cannot be read.
    """
    folder = find_adapter(adapter, option)
    try:
        config: PeftConfig = PeftConfig.from_pretrained(folder)
    except Exception as error:  # the file's content becomes arguments, which can fail in any way
        raise ConfigError(f"{option} {adapter}: its adapter_config.json cannot be read: {error!r}") from error
    return config


def merged_model(model: Any, adapter: str, trust_remote_code: bool = False, option: str = "--adapter") -> Any:
    """Return a model in float32 with a LoRA adapter merged into it.

    Args:
        model: a folder or a hub name, or a model in memory, which is changed in place.
        adapter: folder of the adapter.
        trust_remote_code: run code that a hub model brings along.
        option: which option names the adapter, for messages.

    Raises:
        ConfigError: the folder holds no adapter in safetensors, it does not fit the model, or the model has it already.
    """
    config, folder = adapter_config(adapter, option), find_adapter(adapter, option)
    if isinstance(model, str):
        with_adapter(find_model(model), adapter, option)
        model = load_model(model, torch.float32, trust_remote_code)
    name = model.config._name_or_path or type(model).__name__
    try:
        adapted = PeftModel(model.float(), config)
        missing = adapted.load_adapter(folder, "default").missing_keys
    except Exception as error:  # broken files raise anything from KeyError to SafetensorError
        raise ConfigError(f"{option} {adapter}: does not fit the model {name}: {error!r}") from error
    if missing:  # PEFT leaves them random
        raise ConfigError(f"{option} {adapter}: does not fit the model {name}; missing: {missing}")
    return adapted.merge_and_unload()
