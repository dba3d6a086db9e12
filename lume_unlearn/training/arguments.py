"""The arguments of a training: transformers' TrainingArguments, and those that unlearning adds."""
# mypy: disable-error-code="assignment"
# Options that a method fills in may be None here, which Trainer's own types do not allow.

import copy
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from typing import Any, Literal

import psutil
import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import get_available_reporting_integrations
from transformers.training_args import OptimizerNames

from lume_unlearn.checks import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    check_types,
    raise_faults,
)
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.base import Method, RetainTerm
from lume_unlearn.model.load import bfloat16_here
from lume_unlearn.training.distributed import processes, sharded

DEFAULTS: Mapping[str, Any] = {
    "forget_weight": 1.0,
    "retain_weight": 1.0,
    "kl_weight": 1.0,
    "num_train_epochs": 10.0,
    "per_device_train_batch_size": 32,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.1,
    "max_grad_norm": 1.0,
}
"""Defaults for methods that set none of their own."""
RATES = {"full": (1e-5, 2e-4), "lora": (1e-4, 1e-3)}
"""Default learning rate of models with at least `PARAMETERS` parameters, and the highest one of smaller models."""
PARAMETERS = 1e9
MOST_TOKENS = {"cuda": 8192, "cpu": 2048}
"""Default tokens of a micro-batch. More are no faster on a CPU: LoRA on a model of 135 M parameters took 13.3 GB with
8192 tokens, 6.3 GB with 2048."""
LEAST_TOKENS = 512
BYTES_PER_TOKEN = 4 * 2**20
"""Free memory assumed for each token: almost four times what that model takes, since others are larger."""
UNSUPPORTED: Mapping[str, str] = {
    "auto_find_batch_size": "micro-batches are cut by tokens; lower --max_tokens instead",
    "data_seed": "the order of the rows follows --seed",
    "dataloader_drop_last": "every forget row is used in every epoch",
    "dataloader_in_order": "packs are made in the training process",
    "dataloader_multiprocessing_context": "packs are made in the training process",
    "dataloader_num_workers": "packs are made in the training process, which takes no time worth sharing",
    "dataloader_persistent_workers": "packs are made in the training process",
    "enable_jit_checkpoint": "a signal ends a run with a checkpoint anyway",
    "fp16": "losses on forget rows grow without bound and overflow; use --bf16",
    "label_smoothing_factor": "the loss is the method's",
    "load_best_model_at_end": "--eval_strategy keeps the best weights in best/",
    "neftune_noise_alpha": "its noise depends on the length of a row, which a pack does not have",
    "parallelism_config": "packed rows are not split over devices",
    "push_to_hub": "`lume-unlearn card --push_to_hub` uploads the finished folder",
    "save_only_model": "a checkpoint without the optimiser's state cannot be resumed",
    "save_on_each_node": "one process writes each checkpoint, whole or not at all",
    "torch_compile_backend": "--torch_compile compiles each decoder layer with torch's own backend",
    "torch_compile_mode": "--torch_compile compiles each decoder layer in torch's default mode",
    "torch_empty_cache_steps": "lower --max_tokens instead",
    "train_sampling_strategy": "each forget row is paired with a retain row, in random order",
    "use_liger_kernel": "losses are computed from the model's own hidden states, in chunks",
}
"""Options of Trainer that cannot work with packed rows and paired steps, and why."""
UNSUPPORTED_VALUES: Mapping[str, tuple[str, str]] = {
    "optim": (
        "layerwise|lomo|schedule_free",
        "it changes weights in the backward pass, or has train and eval modes of its own",
    ),
    "lr_scheduler_type": ("plateau|greedy", "it follows a loss on evaluation rows, which is not computed"),
}
"""Option to a pattern of values that cannot work, and why."""


def option(text: str, default: Any = None) -> Any:
    """Declare a field with a help text."""
    return field(default=default, metadata={"help": text})


@dataclass
class UnlearningArguments(TrainingArguments):
    """transformers' TrainingArguments, and the options that unlearning adds (the fields of this class).

    Every option of Trainer has Trainer's name; those in `UNSUPPORTED` are refused. An optimiser step has
    ``per_device_train_batch_size`` x ``gradient_accumulation_steps`` x processes forget rows, each with its retain
    rows. ``max_tokens`` alone decides how a step is cut into micro-batches, which changes the result by rounding alone,
    and by LoRA's dropout.

    Some defaults differ from Trainer's. If the method sets none: ``num_train_epochs`` 10,
    ``per_device_train_batch_size`` 32, ``learning_rate`` by the size of the model (`default_rate`), ``warmup_steps`` a
    tenth of the steps, ``lr_scheduler_type`` linear, ``max_grad_norm`` 1. For all methods: ``bf16`` on if the GPU has
    it, ``logging_steps`` 1, ``save_total_limit`` 2, ``report_to`` "none". Checkpoints are saved only if ``save_steps``
    or ``save_strategy`` is given.

    Raises:
        ConfigError: the message names every option that is outside its range or not supported.
    """

    num_train_epochs: PositiveFloat | None = option(
        "Epochs: how often each forget row is used. Default: the method's, else 10."
    )
    per_device_train_batch_size: PositiveInt | None = option(
        "Forget rows of one optimiser step, for each process and accumulation step. Default: the method's, else 32."
    )
    gradient_accumulation_steps: PositiveInt = option("Multiplies the forget rows of one optimiser step.", 1)
    learning_rate: PositiveFloat | None = option(
        "Peak learning rate. Default: the method's, else by the size of the model: 1e-5 (1e-4 with LoRA) from 1 B "
        "parameters on, more below."
    )
    warmup_steps: float | None = option(
        "Warm-up steps of the learning rate, or, below 1, their share of all steps. Default: the method's, else 0.1."
    )
    lr_scheduler_type: str | None = option(
        "Schedule of the learning rate after the warm-up. Default: the method's, else linear."
    )
    max_grad_norm: NonNegativeFloat | None = option(
        "Gradient norm above which gradients are scaled down; 0: never. Default: the method's, else 1."
    )
    bf16: bool | None = option("Forward passes in bfloat16. Default: where the GPU has it.")
    save_strategy: str | None = option("When to save checkpoints: no, steps or epoch.")
    save_steps: float | None = option("Optimiser steps between checkpoints. Default: none are saved.")
    save_total_limit: int | None = option("Checkpoints to keep.", 2)
    logging_steps: float = option("Optimiser steps between two entries of the loss history.", 1)
    logging_first_step: bool = True
    logging_nan_inf_filter: bool = False
    remove_unused_columns: bool | None = False
    report_to: Any = option("Where to send the logs: none, tensorboard, wandb, ...", "none")

    retain_term: RetainTerm | None = option(
        "Loss on retain rows: nll, kl, js, nll+kl, states or none. Default: the method's."
    )
    forget_weight: NonNegativeFloat | None = option("Weight of the loss on forget rows. Default: the method's, else 1.")
    retain_weight: NonNegativeFloat | None = option("Weight of the loss on retain rows. Default: the method's, else 1.")
    kl_weight: NonNegativeFloat | None = option(
        "Weight of the KL divergence within the retain term nll+kl. Default: the method's, else 1."
    )
    loss_on: Literal["answer", "text"] = option("Labelled tokens: the answer and EOS, or the whole text.", "answer")
    chat: bool = option("Train questions of your own tasks through the tokenizer's chat template, if it has one.", True)
    max_length: PositiveInt | None = option(
        "Truncate rows to this many tokens. Default: a row that does not fit is refused."
    )
    max_tokens: PositiveInt | None = option(
        "Most tokens in one micro-batch; changes memory and speed, not the loss (but for rounding and LoRA's dropout). "
        "Default: by device and free memory."
    )
    weights: Literal["float32", "bfloat16", "masters"] = option(
        "Data type of the trained weights: float32; bfloat16 with stochastic rounding (needs torchao); or masters: "
        "bfloat16 in forward and backward passes, float32 in the optimiser and in the result.",
        "float32",
    )
    reference_copy: Literal["same", "bfloat16", "int8", "cpu"] = option(
        "Copy of the reference model, if a method runs it: same, bfloat16, int8 (needs torchao) or cpu.", "same"
    )
    attention: Literal["auto", "flash_attention_2", "flash_attention_3", "flex_attention"] = option(
        "Attention of packed rows: auto, or an implementation of transformers that is installed. The flash ones need "
        "--tuning lora or --weights bfloat16; auto has FlashAttention 2, too.",
        "auto",
    )
    monitor_steps: NonNegativeInt = option(
        "Optimiser steps between two measurements of the NLL of a few rows; 0: only at the start and the end.", 10
    )
    collapse_bound: PositiveFloat = option(
        "Rise in the NLL of the monitored retain rows, in nats a token, above which the model has collapsed. At the "
        "last step, it has also collapsed if this NLL is more than 0.2 above and 10 times the reference NLL.",
        1.0,
    )
    on_collapse: Literal["warn", "stop", "rollback"] = option(
        "What to do at a collapse: warn; stop with an error; rollback to the last good weights and end.", "warn"
    )
    robust: Literal["none", "sam", "path", "select"] = option(
        "Make forgetting outlast further training. sam: take the forget gradient where the forget loss is highest near "
        "the weights; path: take it at weights after a simulated relearning of other rows; select: damp the "
        "directions that the forget gradients of all rows share.",
        "none",
    )
    sam_rho: PositiveFloat = option("SAM radius.", 0.01)
    path_every: PositiveInt = option("Optimiser steps between two simulated relearnings.", 12)
    path_steps: PositiveInt = option("Steps of each relearning, on 8 forget rows each.", 20)
    path_rate: PositiveFloat = option("Learning rate of the relearning (AdamW).", 1e-4)
    select_share: PositiveFloat = option("Share of the components of each weight's gradient that select damps.", 0.25)
    evaluate_tasks: str | None = option(
        "With --eval_strategy: tasks to score, separated by commas. Default: all that have rows in the data, but MMLU."
    )

    def __post_init__(self) -> None:
        """Check the options; those that are filled in later (`filled_in`) stay None."""
        later = {name: getattr(self, name) for name in ("bf16", *_FILLED_IN) if getattr(self, name) is None}
        for name in later:
            setattr(self, name, _DEFAULTS[name])
        if self.save_strategy is None:
            self.save_strategy = "no" if self.save_steps is None else "steps"
        self.save_steps = _DEFAULTS["save_steps"] if self.save_steps is None else self.save_steps
        check_types(self)
        raise_faults(_unsupported(self))  # first: Trainer may ask for another option beside one of these
        self.use_cpu = self.use_cpu or not torch.cuda.is_available()
        compile_layers, self.torch_compile = self.torch_compile, False  # Trainer would compile the whole model
        if hasattr(self, "activation_checkpointing") and self.gradient_checkpointing is not None:
            self.activation_checkpointing = self.gradient_checkpointing  # its new name: the old one warns
            self.gradient_checkpointing = None
        try:
            super().__post_init__()  # type: ignore[no-untyped-call]
        except (ValueError, OSError, ImportError) as error:
            raise ConfigError(_refused(self, error)) from error
        self.torch_compile = compile_layers
        reporters = get_available_reporting_integrations()  # type: ignore[no-untyped-call]
        unknown = ", ".join(name for name in self.report_to if name not in reporters)
        if unknown:
            known = ", ".join(("none", "all", *reporters))
            raise ConfigError(f"--report_to {unknown}: not known or not installed; choose from {known}")
        for name in later:
            setattr(self, name, None)

    @property
    def rows_per_step(self) -> int:
        """Forget rows of one optimiser step, over all processes."""
        assert self.per_device_train_batch_size is not None
        return int(self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size)


def _unsupported(args: TrainingArguments) -> list[str]:
    """Return a fault for each option that is not supported or, like a negative seed, only fails later."""
    changed = [name for name in UNSUPPORTED if getattr(args, name, None) not in (_DEFAULTS.get(name), None)]
    faults = [f"--{name}: not supported, {UNSUPPORTED[name]}" for name in changed]
    for name, (pattern, why) in UNSUPPORTED_VALUES.items():
        value = getattr(args, name)
        text = str(getattr(value, "value", value))  # a name, or a member of Trainer's enumeration
        faults += [f"--{name} {text}: not supported, {why}"] * bool(re.search(pattern, text))
    return faults + [f"--seed {args.seed}: must be 0 or more"] * (args.seed < 0)


def _refused(args: TrainingArguments, error: Exception) -> str:
    """Return a message about an option that Trainer refuses, without Trainer's list of 50 values."""
    message = " ".join(str(error).split())
    found = re.match(r"(\S+) is not a valid \w+, please select one of \[(.*)\]", message)
    if not found:
        return f"Trainer refuses an option: {message}"
    names = [f"--{f.name}" for f in fields(args) if str(getattr(args, f.name, None)) == found[1]]
    near = ", ".join(get_close_matches(found[1], re.findall(r"'([^']+)'", found[2]), 3))
    advice = f"did you mean {near}?" if near else "the documentation of TrainingArguments lists the values"
    return f"{(names or ['Trainer:'])[0]} {found[1]}: no such value; {advice}"


_FILLED_IN = (*(name for name in DEFAULTS if name in TrainingArguments.__dataclass_fields__), "learning_rate")
_DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(TrainingArguments) if f.default is not MISSING}


def filled_in(args: UnlearningArguments, method: Method, model: Any) -> UnlearningArguments:
    """Return a copy of the arguments in which open options are set, by the method, the model and the machine.

    Args:
        args: as the user gave them.
        method: its defaults apply to options that the user left open.
        model: its number of parameters decides the learning rate if the method sets none.
    """
    filled = copy.copy(args)
    for name, value in {**DEFAULTS, "retain_term": method.retain_term, **method.defaults}.items():
        if name != "learning_rate" and getattr(args, name) is None:
            setattr(filled, name, value)
    if args.learning_rate is None:
        filled.learning_rate = learning_rate_of(method, model, "lora" if is_adapted(model) else "full")
    if args.max_tokens is None:
        filled.max_tokens = default_max_tokens()
    if args.bf16 is None:
        filled.bf16 = default_bf16(args)
    # Sharded models run their own forward in bfloat16: see `distributed.in_bfloat16`.
    filled.mixed_precision = "bf16" if filled.bf16 and not sharded() else "no"
    filled.lr_scheduler_type = str(getattr(filled.lr_scheduler_type, "value", filled.lr_scheduler_type))
    if filled.lr_scheduler_type == "constant":
        filled.lr_scheduler_type = "constant_with_warmup"
    filled.optim = OptimizerNames(filled.optim)
    filled._n_gpu = min(filled.n_gpu, 1)  # a process uses one GPU: DataParallel would cut micro-batches apart
    return filled


def default_bf16(args: UnlearningArguments) -> bool:
    """Return the default of ``bf16``: whether the device that trains supports it."""
    return bfloat16_here() and not args.use_cpu


def is_adapted(model: Any) -> bool:
    """Return whether a model has an adapter, which is then what is trained."""
    return hasattr(model, "peft_config")


def learning_rate_of(method: Method, model: Any, tuning: str) -> float:
    """Return the default learning rate of a method, or if it has none, one by the size of the model (`default_rate`).

    ``tuning`` says what is trained. The weights of an adapter do not count for the size.
    """
    kind: Literal["lora", "full"] = "lora" if tuning == "lora" else "full"
    own = method.defaults.get("learning_rate", {}).get(kind)
    parameters = sum(weight.numel() for name, weight in model.named_parameters() if ".lora_" not in name)
    return default_rate(parameters, kind) if own is None else own


def loaded_dtype(args: UnlearningArguments, tuning: str) -> torch.dtype:
    """Return the data type in which to load a model for training.

    It is bfloat16 if an adapter is trained with forward passes in bfloat16, or if ``weights`` is "bfloat16", which
    rounds stochastically; else float32, since rounding to bfloat16 would undo a step of 1e-5.
    """
    below_adapter = tuning == "lora" and bool(default_bf16(args) if args.bf16 is None else args.bf16)
    return torch.bfloat16 if args.weights == "bfloat16" or below_adapter else torch.float32


def default_rate(parameters: int, kind: Literal["lora", "full"]) -> float:
    """Return the default learning rate of methods that set none, by the size of the model.

    Below `PARAMETERS` it is inversely proportional to the number of parameters, up to the highest of `RATES`. Worked
    example, full tuning: 135 M parameters give 1e-5 * 1e9 / 135e6 = 7.4e-5, 13 M parameters the highest, 2e-4.
    """
    lowest, highest = RATES[kind]
    return min(max(lowest, lowest * PARAMETERS / parameters), highest)


def default_max_tokens() -> int:
    """Return the default of ``max_tokens``: `MOST_TOKENS`, halved until they fit into the free memory.

    It is not halved below `LEAST_TOKENS`, nor with several processes, which must agree on the number.
    """
    gpu = torch.cuda.is_available()
    tokens = MOST_TOKENS["cuda" if gpu else "cpu"]
    if processes() == 1:
        free = torch.cuda.mem_get_info()[0] if gpu else psutil.virtual_memory().available
        while tokens > LEAST_TOKENS and tokens * BYTES_PER_TOKEN > free:
            tokens //= 2
    return tokens
