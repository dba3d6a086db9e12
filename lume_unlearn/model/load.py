"""Load a model and its tokenizer, with or without adapters."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from accelerate import PartialState
from peft import LoraConfig, PeftConfig, PeftModel, PeftType, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lume_unlearn.config import ConfigError, RunConfig
from lume_unlearn.model.distributed import sharded
from lume_unlearn.model.forward import Passes, decoder_layers, use_packing
from lume_unlearn.model.tuning import TuningError, depth_fault, freeze


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether an error of torch says that memory ran out, on any device."""
    text = str(error).lower()
    phrases = ("out of memory", "can't allocate memory", "not enough memory")  # GPUs; the CPU's allocator; Windows
    return isinstance(error, torch.OutOfMemoryError) or any(phrase in text for phrase in phrases)


def use_bfloat16(config: RunConfig) -> bool:
    """Whether forward passes run in bfloat16: as asked for, else where a GPU has it."""
    if config.precision == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return config.precision == "bfloat16"


def load_tokenizer(name: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model folder or hub name.

    Raises:
        ConfigError: it cannot be loaded.
    """
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:  # a broken folder ends in anything, from KeyError to what tokenizers raises
        raise ConfigError(_not_loaded(name, "tokenizer", error)) from error


def load_model(name: str, dtype: torch.dtype, trust_remote_code: bool = False) -> Any:
    """A causal language model out of safetensors files, with weights of this dtype.

    Raises:
        ConfigError: there is no such model, its weights are not safetensors (pickles are never loaded), or they are
            not all the weights that its configuration asks for.
    """
    try:
        with _no_pickles():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
            )
    except Exception as error:  # a broken folder ends in anything, from KeyError to ZeroDivisionError
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_out_of_memory(error)):
            raise
        raise ConfigError(_not_loaded(name, "weights", error)) from error
    model, info = loaded
    # What is missing or does not fit was filled with random numbers. A tied weight does not count as missing.
    faults = [f"{key} is missing" for key in sorted(info["missing_keys"])]
    faults += [f"{key} has shape {[*has]}, not {[*wanted]}" for key, has, wanted in sorted(info["mismatched_keys"])]
    if faults:
        named = ", ".join(faults[:3]) + (f" and {len(faults) - 3} more" if len(faults) > 3 else "")
        raise ConfigError(_not_loaded(name, "weights", f"they do not fit its config.json: {named}"))
    return model


@contextmanager
def _no_pickles() -> Iterator[None]:
    """Refuse to unpickle, which transformers and peft do where an index of safetensors names other files."""

    def refuse(file: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise ConfigError(f"{file} is a pickle, which is never loaded; save it as safetensors")

    load, torch.load = torch.load, refuse  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.load = load


def _not_loaded(name: str, part: str, error: object) -> str:
    where = "" if Path(name).is_dir() else " (there is no such folder here, so the hub was asked)"
    said = str(error) if str(error) and not isinstance(error, KeyError) else repr(error)
    return f"--model {name}{where}: its {part} cannot be loaded: {said}"


def load_for_training(config: RunConfig) -> Any:
    """The model as it is trained: float32 weights unless asked otherwise, with LoRA an adapter on a frozen model.

    Trained weights are float32: a step of 1e-5 is lost in the rounding of most bfloat16 weights, unless it rounds
    stochastically (``--weights bfloat16``). With LoRA only the adapter is trained, so the frozen model is loaded in
    bfloat16 where passes run in bfloat16 anyway.

    Raises:
        ConfigError: the model, the adapter's targets or the choice of weights do not fit.
    """
    half = config.weights == "bfloat16" or (config.tuning == "lora" and use_bfloat16(config))
    model = load_model(config.model, torch.bfloat16 if half else torch.float32, config.trust_remote_code)
    if torch.cuda.is_available() and not sharded():
        model.to(PartialState().device)  # tried out where it will run, in the arithmetic that it will run in
    try:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=use_bfloat16(config)):
            use_packing(model, config.attention)
    except ValueError as error:
        raise ConfigError(f"--attention {config.attention}: {error}") from error
    if config.tuning != "lora":
        try:
            freeze(model, config.tuning)
        except TuningError as error:
            raise ConfigError(str(error)) from error
        return model
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=_lora_targets(model, config.lora_targets),
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, lora)
    except ValueError as error:
        raise ConfigError(f"--lora_targets {config.lora_targets}: {error}") from error


def keep_inputs_narrow(model: Any) -> None:
    """Let adapters take bfloat16 as it comes; for models all of whose passes run under autocast.

    PEFT widens what goes into an adapter to float32, of which autocast makes bfloat16 again at the next product.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False


def passes(config: RunConfig, model: Any) -> Passes:
    """How the model is passed for this method; what lies above the layer that it looks at is frozen.

    Raises:
        ConfigError: the model has not so many layers, or no output layer of its own.
    """
    if not config.spec.hidden_states:
        return Passes(model)
    layer = int(config.params["layer"])
    require_depth(config, len(decoder_layers(model)))
    found = Passes(model, layer)
    if not found.chunks:
        raise ConfigError(f"--method {config.method}: the model has no output layer that could be left out")
    embeddings = {id(weight) for weight in model.get_input_embeddings().parameters()}  # may be the output layer's too
    above = {id(weight) for module in _above(model, found, layer) for weight in module.parameters()} - embeddings
    for weight in model.parameters():
        weight.requires_grad_(weight.requires_grad and id(weight) not in above)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ConfigError(f"--tuning {config.tuning}: trains nothing up to --layer {layer}, which the method looks at")
    return found


def _above(model: Any, found: Passes, layer: int) -> list[nn.Module]:
    """The modules behind a decoder layer: the layers above, what stands behind the layers, and the output layer."""
    holder = next(module for module in model.modules() if any(child is found.layers for child in module.children()))
    children = list(holder.children())
    behind = children[1 + next(i for i, child in enumerate(children) if child is found.layers) :]
    return [*found.layers[layer + 1 :], *behind, *([] if found.head is None else [found.head])]


def require_depth(config: RunConfig, depth: int) -> None:
    """Refuse options that name decoder layers which a model of this depth does not have.

    Raises:
        ConfigError: names the option.
    """
    layer = config.params.get("layer", 0)
    if layer >= depth:
        raise ConfigError(f"--layer {layer:g}: the model has {depth} decoder layers, counted from 0")
    if fault := depth_fault(config.tuning, depth):
        raise ConfigError(fault)


def declared(name: str, trust_remote_code: bool = False) -> Any:
    """A model's configuration, without its weights.

    Raises:
        ConfigError: there is no such model.
    """
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:  # as with the tokenizer
        raise ConfigError(_not_loaded(name, "configuration", error)) from error


def optimizer_class(config: RunConfig) -> tuple[Any, dict[str, Any]] | None:
    """(class, arguments) of the optimiser where it is not Trainer's AdamW.

    Raises:
        ConfigError: torchao is not installed.
    """
    rounds = config.weights == "bfloat16"
    if not rounds and config.optimizer == "adamw":
        return None
    require_torchao("--weights bfloat16" if rounds else "--optimizer adamw8bit")
    from torchao.optim import AdamW8bit, _AdamW

    chosen = AdamW8bit if config.optimizer == "adamw8bit" else _AdamW
    return chosen, {"lr": config.learning_rate, "bf16_stochastic_round": rounds}


def require_torchao(option: str) -> None:
    """Refuse an option where torchao is not installed.

    Raises:
        ConfigError: it is not.
    """
    try:
        import torchao  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{option}: needs torchao (pip install 'lume-unlearning[lowmem]')") from error


def _lora_targets(model: Any, targets: str) -> str | list[str]:
    """The option as PEFT takes it; PEFT itself passes over a name that is not there as long as another one is."""
    if targets == "all-linear":
        return targets
    names = [name.strip() for name in targets.split(",")]
    modules = [f".{name}" for name, _ in model.named_modules()]
    if missing := [name for name in names if not any(module.endswith(f".{name}") for module in modules)]:
        raise ConfigError(f"--lora_targets {targets}: the model has no module {', '.join(missing)}")
    return names


def context_length(model: Any) -> int | None:
    """Longest sequence that the model's position embeddings take, if its configuration says so."""
    return getattr(model.config, "max_position_embeddings", None)


def adapter_config(adapter: str, option: str = "--adapter") -> PeftConfig:
    """Read an adapter's configuration; a folder without one is refused without asking the hub for it.

    Raises:
        ConfigError: the folder holds no adapter, or its configuration cannot be read.
    """
    if not (Path(adapter) / "adapter_config.json").is_file():
        raise ConfigError(f"{option} {adapter}: not an adapter's folder, there is no adapter_config.json in it")
    try:
        config: PeftConfig = PeftConfig.from_pretrained(adapter)
    except Exception as error:  # whatever the file holds ends up as arguments
        raise ConfigError(f"{option} {adapter}: its adapter_config.json cannot be read: {error!r}") from error
    return config


def adapter_names(count: int) -> list[str]:
    """The names that `adapted_model` gives its adapters."""
    return [f"adapter{i}" for i in range(count)]


def adapted_model(
    model: str,
    adapters: Sequence[str],
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    option: str = "--adapter",
) -> PeftModel:
    """Load a model with one or more LoRA adapters on it, named by `adapter_names`; the first one is active.

    Raises:
        ConfigError: a folder holds no LoRA adapter, its weights are not safetensors, or it belongs to another model;
            the message names ``option``.
    """
    for adapter in adapters:
        if adapter_config(adapter, option).peft_type != PeftType.LORA:
            raise ConfigError(f"{option} {adapter}: is no LoRA adapter")
        if not (Path(adapter) / SAFETENSORS_WEIGHTS_NAME).is_file():
            pickles = "".join(
                f"; {path.name} is a pickle, which is never loaded" for path in Path(adapter).glob("*.bin")
            )
            raise ConfigError(f"{option} {adapter}: there is no {SAFETENSORS_WEIGHTS_NAME} in it{pickles}")
    loaded: Any = load_model(model, dtype, trust_remote_code)
    for name, adapter in zip(adapter_names(len(adapters)), adapters, strict=True):
        try:
            with _no_pickles(), warnings.catch_warnings():
                warnings.filterwarnings("error", message="Found missing adapter keys")  # they would be random
                if not isinstance(loaded, PeftModel):
                    loaded = PeftModel.from_pretrained(loaded, adapter, adapter_name=name)
                elif missing := loaded.load_adapter(adapter, name).missing_keys:
                    raise ValueError(f"Found missing adapter keys: {missing}")
        except Exception as error:  # a broken adapter ends in anything, from KeyError to SafetensorError
            raise ConfigError(f"{option} {adapter}: does not fit the model {model}: {error}") from error
    return cast(PeftModel, loaded)


def merged_model(model: str, adapter: str, trust_remote_code: bool = False, option: str = "--adapter") -> Any:
    """Load a model in float32 and fold an adapter into it.

    Raises:
        ConfigError: see `adapted_model`.
    """
    return adapted_model(model, [adapter], torch.float32, trust_remote_code, option).merge_and_unload()
