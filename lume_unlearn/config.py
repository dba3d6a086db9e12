"""The options of a run, which the command line, recipes and callers in Python fill in, and their checks."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import inf
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

from lume_unlearn.errors import ConfigError
from lume_unlearn.faults import contradictions, method_faults, parameter_faults
from lume_unlearn.methods.registry import COMMANDS, METHODS
from lume_unlearn.methods.retain import term_needs_reference
from lume_unlearn.methods.spec import Method, RetainTerm

if TYPE_CHECKING:
    PositiveInt: TypeAlias = int
    NonNegativeInt: TypeAlias = int
    PositiveFloat: TypeAlias = float
    NonNegativeFloat: TypeAlias = float
    Share: TypeAlias = float
else:
    from jsonargparse.typing import NonNegativeInt, PositiveInt, restricted_number_type

    PositiveFloat = restricted_number_type("PositiveFiniteFloat", float, [(">", 0), ("<", inf)])
    NonNegativeFloat = restricted_number_type("NonNegativeFiniteFloat", float, [(">=", 0), ("<", inf)])
    Share = restricted_number_type("Share", float, [(">=", 0), ("<", 1)])

Split = Literal["all", "train", "validation", "test"]
RANGES: dict[Any, str] = {
    PositiveInt: "a whole number above 0",
    NonNegativeInt: "a whole number, 0 or more",
    PositiveFloat: "a number above 0",
    NonNegativeFloat: "a number, 0 or more",
    Share: "a number from 0 to below 1",
}
TRANSFORMERS_ATTENTION = ("flash_attention_2", "flash_attention_3", "flex_attention")
"""Implementations of transformers that keep packed rows apart by themselves."""
SCORED = ("lume_task1", "lume_task2", "lume_task3", "lume_rows", "lume_mia", "lume_score")
"""Tasks that `--evaluate_every epoch` scores by default, where the data has rows or documents for them."""
FILLED_IN: Any = None
"""Default of an option that is filled in later: by the method, or (``max_tokens``) from the free memory, or
(``learning_rate``) by the size of the model."""
DEFAULTS: Mapping[str, Any] = {
    "forget_weight": 1.0,
    "retain_weight": 1.0,
    "kl_weight": 1.0,
    "epochs": 10,
    "batch_size": 32,
    "lr_schedule": "linear",
    "warmup": 0.1,
    "max_grad_norm": 1.0,
}
"""Defaults of a method that names none itself."""

_log = logging.getLogger("lume_unlearn")


def kind_of(tuning: str) -> Literal["lora", "full"]:
    """Return "lora", or "full" for all tunings of the weights themselves."""
    return "lora" if tuning == "lora" else "full"


def names(text: str | None) -> list[str]:
    """Return the names in a text that are separated by commas, each once."""
    return list(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))


@dataclass(frozen=True)
class RunConfig:
    """Options of `lume-unlearn run`.

    Attributes:
        model: Model to unlearn: a folder or a hub name.
        output: Folder for the result: the adapter or the model, its tokenizer and unlearning.json.
        method: Unlearning method; `lume-unlearn methods` lists them.
        tuning: What to train: lora (an adapter), full (all weights), last:K (the last K decoder layers), or
            modules:REGEX (the weights whose names match the pattern).
        data: Data directory with forget and retain rows; default LUME_DATA_DIR, else the published LUME.
        split: Rows to use: all, train, validation or test.
        forget: File or folder with forget rows (jsonl or parquet), instead of --data.
        retain: File or folder with retain rows, instead of --data.
        forgotten: Data directories of earlier requests, separated by commas: the monitor measures their forget rows
            and says if they come back. `audit --forgotten` scores them.
        alternatives: File with other answers to the forget rows, for dpo and altpo; `lume-unlearn alternatives` writes
            one.
        substitutes: File with texts to substitute in the contexts of the counterfactual teacher, {"text": ...,
            "substitute": ...} a line; default: names, places, dates and numbers of the forget rows, by those of others.
        unseen: File with texts that the model never saw (as for `audit --unrelated`): the level of `level`,
            `--level_weight` and `--stop_when level` follows the model's NLL of them.
        retain_term: Loss on retain rows: nll, kl, js, nll+kl, states or none. Default: the method's.
        forget_weight: Weight of the loss on forget rows. Default: the method's.
        retain_weight: Weight of the loss on retain rows. Default: the method's.
        kl_weight: Weight of the KL divergence within the retain term nll+kl, which retain_weight then multiplies.
        params: Parameters of the method; on the command line each is an option.
        loss_on: Labelled tokens: the answer (`output` and EOS), or the whole text.
        chat: Ask questions of your own tasks (not Task1 to Task3) through the tokenizer's chat template, if it has one.
        epochs: Epochs (Trainer's num_train_epochs): how often each forget row is used. Default: the method's.
        batch_size: Forget rows of one optimiser step, over all processes, each with its retain rows (Trainer's
            per_device_train_batch_size counts the rows of one micro-batch of one process). Default: the method's.
        micro_batch_size: Most forget rows in one micro-batch of one process; does not change the result.
        max_tokens: Most tokens in one micro-batch of one process; changes memory and speed, not the result. Default:
            8192 on a GPU and 2048 on a CPU, less if a single process has little free memory (4 MiB a token, at least
            512); unlearning.json records the number.
        learning_rate: Peak learning rate. Default: the method's; of most methods 1e-5, and 1e-4 with LoRA, for models
            of 1 B parameters and more, higher for smaller ones (RESULTS.md).
        lr_schedule: Learning rate after the warm-up (Trainer's lr_scheduler_type): linear (to 0), cosine or constant.
        weight_decay: Weight decay of AdamW.
        warmup: Share of the steps in which the learning rate rises (Trainer's warmup_ratio); unlike Trainer's, the
            first step has a rate above 0.
        max_grad_norm: Gradient norm above which gradients are scaled down; 0 turns it off.
        seed: Seed of the pairs, their order, the adapter's initial weights and dropout.
        precision: Arithmetic of the forward pass: float32, bfloat16 (Trainer's bf16), or auto (bfloat16 on new GPUs).
        weights: Data type of the trained weights: float32; bfloat16 with stochastic rounding (needs torchao); or
            masters: bfloat16 in forward and backward passes, float32 in the optimiser and in the result.
        optimizer: adamw, or adamw8bit with its state in 8 bits (needs torchao); Trainer's optim.
        reference_copy: Copy of the reference model, if one is needed: same (as the model), bfloat16, int8 (needs
            torchao), or cpu.
        attention: Attention of packed rows: auto (torch's variable-length kernel on GPUs, row by row elsewhere), or
            one of transformers' own, if installed: flash_attention_2, flash_attention_3, flex_attention.
        compile: Compile the decoder layers (Trainer's torch_compile): takes minutes at the start, then steps are
            faster.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, a third more time.
        max_length: Truncate rows to this many tokens. By default a row longer than the model's context is an error.
        lora_rank: Rank of the adapter.
        lora_alpha: Scale of the adapter: its output is multiplied by alpha / rank.
        lora_dropout: Dropout before the adapter.
        lora_targets: Modules that get an adapter: all-linear, or names separated by commas.
        save_steps: Optimiser steps between checkpoints; 0 for none.
        save_total_limit: Checkpoints to keep; 0 for all.
        resume: Continue from the last complete checkpoint in the output folder, or start if there is none yet
            (Trainer's resume_from_checkpoint).
        watch_steps: Optimiser steps between two measurements of the monitor, which computes the NLL of a few forget
            and retain rows; 0 for only the first and the last.
        collapse_bound: Nats a token by which the NLL of the monitored retain rows may rise before that is a collapse.
        on_collapse: What to do then: warn; stop with an error; or rollback, restore the last good weights and end.
            The former name of rollback is best.
        logging_steps: Optimiser steps between two entries of the loss history.
        robust: Make forgetting outlast further training: sam (the forget gradient where it is steepest near the
            weights), path (where a few steps of relearning lead), or none.
        sam_rho: Length of the step to there, for sam.
        path_every: Optimiser steps between two simulated relearnings, for path.
        path_steps: Steps of each relearning, on 8 forget rows each.
        path_rate: Learning rate of the relearning (AdamW).
        protect: project removes from the forget gradient what would raise the retain loss, or none.
        stop_when: End the run early, measured every watch_steps: masc (when the share of forget tokens that violate
            MASC's margin is at most stop_share), level (when the NLL of forget rows reaches that of --unseen texts), or
            none. Member documents are not measured.
        stop_share: See stop_when.
        evaluate_every: When to score with the harness while training (Trainer's eval_strategy): none or epoch.
        evaluate_tasks: Tasks to score then. Default: those of lume_task1, lume_task2, lume_task3, lume_mia and
            lume_score that the data has rows or documents for.
        evaluate_limit: Documents of each task to score then. Default: all.
        evaluate_batch_size: Prompts of one scoring batch (Trainer's per_device_eval_batch_size).
        best_metric: TASK.METRIC that selects the weights kept in best/ (Trainer's metric_for_best_model). Equal values
            are ordered by the mean of the twelve scores (forget scores as 1 - score), then by the later epoch.
        report_to: Where transformers reports to: none, tensorboard, wandb, ...
        trust_remote_code: Run code that a hub model brings along.
    """

    model: str
    output: str
    method: str
    tuning: str = "lora"
    data: str | None = None
    split: Split = "all"
    forget: str | None = None
    retain: str | None = None
    forgotten: str | None = None
    alternatives: str | None = None
    substitutes: str | None = None
    unseen: str | None = None
    retain_term: RetainTerm = FILLED_IN
    forget_weight: NonNegativeFloat = FILLED_IN
    retain_weight: NonNegativeFloat = FILLED_IN
    kl_weight: NonNegativeFloat = FILLED_IN
    params: dict[str, Any] = FILLED_IN
    loss_on: Literal["answer", "text"] = "answer"
    chat: bool = True
    epochs: PositiveFloat = FILLED_IN
    batch_size: PositiveInt = FILLED_IN
    micro_batch_size: PositiveInt | None = None
    max_tokens: PositiveInt = FILLED_IN
    learning_rate: PositiveFloat = FILLED_IN
    lr_schedule: Literal["linear", "cosine", "constant"] = FILLED_IN
    weight_decay: NonNegativeFloat = 0.01
    warmup: Share = FILLED_IN
    max_grad_norm: NonNegativeFloat = FILLED_IN
    seed: NonNegativeInt = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    weights: Literal["float32", "bfloat16", "masters"] = "float32"
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    reference_copy: Literal["same", "bfloat16", "int8", "cpu"] = "same"
    attention: Literal["auto", "flash_attention_2", "flash_attention_3", "flex_attention"] = "auto"
    compile: bool = False
    gradient_checkpointing: bool = False
    max_length: PositiveInt | None = None
    lora_rank: PositiveInt = 8
    lora_alpha: PositiveInt = 32
    lora_dropout: Share = 0.05
    lora_targets: str = "all-linear"
    save_steps: NonNegativeInt = 0
    save_total_limit: NonNegativeInt = 2
    resume: bool = False
    watch_steps: NonNegativeInt = 10
    collapse_bound: PositiveFloat = 1.0
    on_collapse: Literal["warn", "stop", "rollback", "best"] = "warn"
    logging_steps: PositiveInt = 1
    robust: Literal["none", "sam", "path"] = "none"
    sam_rho: PositiveFloat = 0.01
    path_every: PositiveInt = 5
    path_steps: PositiveInt = 4
    path_rate: PositiveFloat = 1e-4
    protect: Literal["none", "project"] = "none"
    stop_when: Literal["none", "masc", "level"] = "none"
    stop_share: Share = 0.475
    evaluate_every: Literal["none", "epoch"] = "none"
    evaluate_tasks: str | None = None
    evaluate_limit: PositiveInt | None = None
    evaluate_batch_size: PositiveInt = 64
    best_metric: str = "lume_score.task_aggregate"
    report_to: str = "none"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Fill in the method's defaults and check what can be checked before anything is loaded.

        Raises:
            ConfigError: names every option that is wrong.
        """
        if self.method not in (*METHODS, *COMMANDS):
            raise ConfigError(f"--method {self.method!r}: choose one of {', '.join(METHODS)}")
        self._fill_in_defaults()
        check_types(self)
        if self.on_collapse == "best":
            _log.warning("--on_collapse best: this word is now rollback; use that one")
            object.__setattr__(self, "on_collapse", "rollback")
        raise_faults(contradictions(self) + method_faults(self) + parameter_faults(self))

    def _fill_in_defaults(self) -> None:
        method = self.spec
        defaults = {**DEFAULTS, "retain_term": method.retain, **method.defaults}
        defaults["learning_rate"] = method.defaults.get("learning_rate", {}).get(kind_of(self.tuning))
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        params = {name: param.default for name, param in method.params.items()}
        object.__setattr__(self, "params", params | (self.params or {}))

    @property
    def spec(self) -> Method:
        """The method."""
        return (METHODS | COMMANDS)[self.method]

    @property
    def needs_retain(self) -> bool:
        """Whether the loss, the schedule or the learning rate needs retain rows."""
        if self.retain_term == "none":
            return False
        # A weight that adapts may start at 0; phases and a searched learning rate use retain rows at any weight.
        method = self.spec
        return bool(self.retain_weight or method.adapt or method.phases or method.normalised)

    @property
    def retain_needs_reference(self) -> bool:
        """Whether the retain term needs the reference model in every step."""
        return self.needs_retain and term_needs_reference(self.retain_term)

    @property
    def needs_reference_forward(self) -> bool:
        """Whether every step needs a forward pass of the reference model."""
        return self.spec.needs_reference_forward or self.retain_needs_reference

    @property
    def scored_tasks(self) -> list[str]:
        """The tasks to score while training; by default all that the data may have."""
        return [name.strip() for name in (self.evaluate_tasks or ",".join(SCORED)).split(",")]


def check_types(options: Any) -> None:
    """Check the fields of a dataclass against their annotations, for callers in Python; the command line has done so.

    Numbers become plain int or float: pickles of jsonargparse's types load only where jsonargparse is installed.

    Raises:
        ConfigError: names every option outside its choices or range.
    """
    hints = get_type_hints(type(options))
    faults = []
    for field in fields(options):
        name, value, hint = field.name, getattr(options, field.name), hints[field.name]
        if value is None:
            continue
        if get_origin(hint) is Literal and value not in get_args(hint):
            faults.append(f"--{name} {value!r}: choose one of {', '.join(get_args(hint))}")
        for kind, words in RANGES.items():
            if kind in (hint, *get_args(hint)):
                try:
                    number = kind(value)
                    object.__setattr__(options, name, int(number) if isinstance(number, int) else float(number))
                except (TypeError, ValueError):
                    faults.append(f"--{name} {value}: must be {words}")
    raise_faults(faults)


def raise_faults(faults: Sequence[str]) -> None:
    """Raise one `ConfigError` that lists the faults, one a line; do nothing if there are none."""
    if faults:
        raise ConfigError("\n".join(faults))
