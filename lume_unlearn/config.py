"""The configuration of one unlearning run: what the command line, a recipe and `lume_unlearn.run` all fill in."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import inf
from pathlib import Path
from typing import Any, Literal

from lume_tasks.data.rows import SPLITS
from lume_unlearn.methods.registry import METHODS
from lume_unlearn.methods.retain import term_needs_reference
from lume_unlearn.methods.spec import RETAIN_TERMS, Method, RetainTerm

TRANSFORMERS_ATTENTION = ("flash_attention_2", "flash_attention_3", "flex_attention")
"""Implementations of transformers that keep packed rows apart by themselves."""


class ConfigError(ValueError):
    """An option that cannot work; the message names it and says what to do."""


def require_unused(output: Path, advice: str = "name another folder") -> None:
    """Refuse to write into a folder that holds anything.

    Raises:
        ConfigError: the path exists and is not an empty folder.
    """
    if output.exists() and (not output.is_dir() or any(path.name != ".lock" for path in output.iterdir())):
        raise ConfigError(f"--output {output}: it exists and is not empty; {advice}")


SCORED = ("lume_task1", "lume_task2", "lume_task3", "lume_mia", "lume_score")
"""Tasks that `--evaluate_every epoch` scores by default, where the data has rows or documents for them."""
OWN: Any = None
"""Default of an option that is filled in later: by the method, or (``max_tokens``) by the machine."""
DEFAULTS: Mapping[str, Any] = {
    "forget_weight": 1.0,
    "retain_weight": 1.0,
    "kl_weight": 1.0,
    "epochs": 10,
    "batch_size": 32,
    "learning_rate": {"full": 1e-5, "lora": 1e-4},
    "lr_schedule": "linear",
    "warmup": 0.1,
    "max_grad_norm": 1.0,
}
"""What those options are for a method that says nothing."""


@dataclass(frozen=True)
class RunConfig:
    """Options of `lume-unlearn run`.

    Attributes:
        model: Model to unlearn: a folder or a hub name.
        output: Folder to write: the adapter or the model, its tokenizer and unlearning.json.
        method: Unlearning method; `lume-unlearn methods` lists them.
        tuning: What to train: lora (an adapter), full (all weights), last:K (the last K decoder layers), or
            modules:REGEX (the weights whose name the pattern is found in).
        data: Data directory with forget and retain rows; else LUME_DATA_DIR, else the published LUME.
        split: Rows to use: all, train, validation or test.
        forget: File or folder with forget rows (jsonl or parquet), instead of --data.
        retain: File or folder with retain rows, instead of --data.
        alternatives: File with other answers to the forget rows, for dpo and altpo; `alternatives` makes one.
        retain_term: Loss on retain rows: nll, kl, nll+kl, states or none; by default the method's own.
        forget_weight: Weight of the loss on forget rows; by default the method's own.
        retain_weight: Weight of the loss on retain rows; by default the method's own.
        kl_weight: Weight of the KL divergence in the retain term nll+kl, before retain_weight.
        params: The method's own parameters; on the command line each is an option by its name.
        loss_on: Tokens that carry loss: the answer (`output` and EOS), or the whole text.
        epochs: Passes over the forget rows (of one chunk, for methods that go by chunks); by default the method's own.
        batch_size: Forget rows of one optimiser step, over all processes, each with its retain rows; by default the
            method's own.
        micro_batch_size: Most forget rows in one forward pass of one process; does not change the result.
        max_tokens: Most tokens in one forward pass of one process; does not change the result, but memory and speed. By
            default 8192 on a GPU and 2048 on a CPU, less where a single process finds little free memory (4 MiB a
            token, at least 512); unlearning.json has the number used.
        learning_rate: Peak learning rate; by default the method's own, mostly 1e-5, and 1e-4 with LoRA.
        lr_schedule: Learning rate over time, after the warm-up: linear (to 0), cosine or constant.
        weight_decay: Weight decay of AdamW.
        warmup: Share of the steps with rising learning rate; the first step has a rate above 0.
        max_grad_norm: Gradient norm above which gradients are scaled down; 0 turns it off.
        seed: Seed of the pairing, the order, the adapter's first weights and dropout.
        precision: Arithmetic of the forward pass: float32, bfloat16, or auto (bfloat16 where the GPU has it).
        weights: Data type of the trained weights: float32, or bfloat16 with stochastic rounding (needs torchao).
        optimizer: adamw, or adamw8bit with its state in 8 bits (needs torchao).
        reference_copy: Copy of the model before unlearning, where one is needed: same (as the model), bfloat16, int8
            (needs torchao), or cpu.
        attention: Attention of packed rows: auto (torch's variable-length kernel on GPUs, row by row elsewhere), or
            one of transformers' own, if installed: flash_attention_2, flash_attention_3, flex_attention.
        compile: Have torch compile the decoder layers: minutes at the start, fewer passes over memory in each step.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, a third more time.
        max_length: Cut longer rows to so many tokens; by default a row longer than the model's context is an error.
        lora_rank: Rank of the adapter.
        lora_alpha: Scale of the adapter: its output is multiplied by alpha / rank.
        lora_dropout: Dropout before the adapter.
        lora_targets: Modules that get an adapter: all-linear, or names with commas between them.
        save_steps: Save a checkpoint every so many optimiser steps; 0 for none.
        save_total_limit: Checkpoints to keep; 0 for all.
        resume: Continue from the last complete checkpoint in the output folder (from the beginning, where there is
            none yet); --learning_rate may be lower than before.
        watch_steps: Optimiser steps between two looks at a few forget and retain rows; 0 for only before and after.
        collapse_bound: Nats a token by which the watched retain rows may get worse before that counts as collapse.
        on_collapse: What to do then: warn; stop with an error; or best, go back to the last weights before and end.
        logging_steps: Optimiser steps between two entries of the loss history.
        evaluate_every: When to score through the harness while training: none or epoch.
        evaluate_tasks: Tasks to score then; by default those of lume_task1, lume_task2, lume_task3, lume_mia and
            lume_score that the data has rows or documents for.
        evaluate_limit: Documents of each task to score then; by default all.
        evaluate_batch_size: Prompts of one scoring batch.
        best_metric: TASK.METRIC that decides the weights kept in best/. Equal values are ordered by the mean of the
            twelve scores (forget scores as 1 - score), then by the later epoch.
        report_to: Where transformers reports to: none, tensorboard, wandb, ...
        trust_remote_code: Run code that a hub model brings along.
    """

    model: str
    output: str
    method: str
    tuning: str = "lora"
    data: str | None = None
    split: str = "all"
    forget: str | None = None
    retain: str | None = None
    alternatives: str | None = None
    retain_term: RetainTerm = OWN
    forget_weight: float = OWN
    retain_weight: float = OWN
    kl_weight: float = OWN
    params: dict[str, float] = OWN
    loss_on: Literal["answer", "text"] = "answer"
    epochs: float = OWN
    batch_size: int = OWN
    micro_batch_size: int | None = None
    max_tokens: int = OWN
    learning_rate: float = OWN
    lr_schedule: Literal["linear", "cosine", "constant"] = OWN
    weight_decay: float = 0.01
    warmup: float = OWN
    max_grad_norm: float = OWN
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    weights: Literal["float32", "bfloat16"] = "float32"
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    reference_copy: Literal["same", "bfloat16", "int8", "cpu"] = "same"
    attention: Literal["auto", "flash_attention_2", "flash_attention_3", "flex_attention"] = "auto"
    compile: bool = False
    gradient_checkpointing: bool = False
    max_length: int | None = None
    lora_rank: int = 8
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    lora_targets: str = "all-linear"
    save_steps: int = 0
    save_total_limit: int = 2
    resume: bool = False
    watch_steps: int = 10
    collapse_bound: float = 1.0
    on_collapse: Literal["warn", "stop", "best"] = "warn"
    logging_steps: int = 1
    evaluate_every: Literal["none", "epoch"] = "none"
    evaluate_tasks: str | None = None
    evaluate_limit: int | None = None
    evaluate_batch_size: int = 64
    best_metric: str = "lume_score.task_aggregate"
    report_to: str = "none"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked before anything is loaded; fill in the method's defaults.

        Raises:
            ConfigError: names every option that is wrong.
        """
        if faults := [
            f"--{field.name} {getattr(self, field.name)}: must have a value"
            for field in fields(self)
            if field.default is not None and getattr(self, field.name) is None
        ]:
            raise ConfigError("\n".join(faults))
        if self.method in METHODS:
            for name, value in self._defaults().items():
                object.__setattr__(self, name, value)
        checks = (_choice_faults, _range_faults, _source_faults, _method_faults, _param_faults, _evaluation_faults)
        if faults := [fault for check in checks for fault in check(self)]:
            raise ConfigError("\n".join(faults))

    def _defaults(self) -> dict[str, Any]:
        """What the options that were left out are for this method."""
        own = {**DEFAULTS, "retain_term": self.spec.retain, **self.spec.defaults}
        own["learning_rate"] = {**DEFAULTS["learning_rate"], **own["learning_rate"]}[
            "lora" if self.tuning == "lora" else "full"
        ]
        filled = {name: value for name, value in own.items() if getattr(self, name) is None}
        defaults = {name: param.default for name, param in self.spec.params.items()}
        return filled | {"params": defaults | (self.params or {})}

    @property
    def spec(self) -> Method:
        """The method."""
        return METHODS[self.method]

    @property
    def needs_retain(self) -> bool:
        """Whether retain rows take part at all."""
        if self.method not in METHODS or self.retain_term == "none":
            return False
        # Weights that move may leave 0; schedules and found learning rates are made with retain rows, whatever these
        # weigh.
        method = self.spec
        return bool(self.retain_weight or method.adapt or method.phases or method.normalised)

    @property
    def retain_needs_reference(self) -> bool:
        """Whether the retain term needs the model before unlearning in every step."""
        return self.needs_retain and term_needs_reference(self.retain_term)

    @property
    def needs_reference_forward(self) -> bool:
        """Whether the model before unlearning runs in every step, for either side."""
        return self.spec.needs_reference_forward or self.retain_needs_reference

    @property
    def scored_tasks(self) -> list[str]:
        """The tasks to score while training; by default all that the data may have."""
        return [name.strip() for name in (self.evaluate_tasks or ",".join(SCORED)).split(",")]


def _choice_faults(config: RunConfig) -> list[str]:
    """Options whose value is not one of the known ones (a recipe or a Python caller may hold anything)."""
    choices: dict[str, tuple[object, ...]] = {
        "method": tuple(METHODS),
        "split": ("all", *SPLITS),
        "retain_term": (None, *RETAIN_TERMS),
        "loss_on": ("answer", "text"),
        "lr_schedule": (None, "linear", "cosine", "constant"),
        "precision": ("auto", "float32", "bfloat16"),
        "weights": ("float32", "bfloat16"),
        "optimizer": ("adamw", "adamw8bit"),
        "attention": ("auto", *TRANSFORMERS_ATTENTION),
        "reference_copy": ("same", "bfloat16", "int8", "cpu"),
        "on_collapse": ("warn", "stop", "best"),
        "evaluate_every": ("none", "epoch"),
    }
    faults = [
        f"--{name} {getattr(config, name)!r}: choose one of {', '.join(str(v) for v in known if v is not None)}"
        for name, known in choices.items()
        if getattr(config, name) not in known
    ]
    return [*faults, *([fault] if (fault := tuning_fault(config.tuning)) else [])]


def tuning_fault(tuning: str) -> str | None:
    """What is wrong with ``--tuning`` before any model is known."""
    kind, _, rest = tuning.partition(":")
    if tuning in ("lora", "full"):
        return None
    if kind == "last" and rest.isascii() and rest.isdigit() and int(rest) > 0:
        return None
    if kind == "modules" and rest:
        try:
            re.compile(rest)
        except re.error as error:
            return f"--tuning {tuning}: not a regular expression: {error}"
        return None
    return f"--tuning {tuning!r}: choose lora, full, last:K (K layers) or modules:REGEX"


def _range_faults(config: RunConfig) -> list[str]:
    """Numbers outside the range in which they mean something."""
    positive = (
        "epochs",
        "batch_size",
        "micro_batch_size",
        "max_tokens",
        "learning_rate",
        "lora_rank",
        "lora_alpha",
        "logging_steps",
        "collapse_bound",
        "evaluate_batch_size",
    )
    weights = ("forget_weight", "retain_weight", "kl_weight", "weight_decay", "max_grad_norm")
    faults = []
    for name in positive:
        if (value := getattr(config, name)) is not None and not 0 < value < inf:
            faults.append(f"--{name} {value}: must be above 0")
    for name in (*weights, "seed", "save_steps", "save_total_limit", "watch_steps"):
        if (value := getattr(config, name)) is not None and not 0 <= value < inf:
            faults.append(f"--{name} {value}: must not be negative")
    if config.warmup is not None and not 0 <= config.warmup < 1:
        faults.append(f"--warmup {config.warmup}: a share of all steps, at least 0 and below 1")
    if not 0 <= config.lora_dropout < 1:
        faults.append(f"--lora_dropout {config.lora_dropout}: at least 0 and below 1")
    if config.max_length is not None and config.max_length < 2:
        faults.append(f"--max_length {config.max_length}: at least 2")
    return faults


def _source_faults(config: RunConfig) -> list[str]:
    """Contradictions in where the rows come from."""
    faults = []
    if config.retain is not None and config.forget is None:
        faults.append("--retain: give --forget with it, or name a directory with both by --data")
    if config.forget is not None and config.retain is None and config.needs_retain:
        faults.append("--forget: give --retain with it, since the retain term needs rows (--retain_term none does not)")
    return faults + named_twice(config.forget, config.data, config.split)


def named_twice(forget: str | None, data: str | None, split: str) -> list[str]:
    """Contradictions between ``--forget`` and the options that are for ``--data``."""
    faults = []
    if forget is not None and data is not None:
        faults.append("--data and --forget both name the rows; give one of them")
    if forget is not None and split != "all":
        faults.append(f"--split {split}: is for --data; --forget already names the rows")
    return faults


def _method_faults(config: RunConfig) -> list[str]:
    """What this method cannot work with."""
    if config.method not in METHODS:
        return []
    method, faults = config.spec, []
    if config.retain_term in RETAIN_TERMS and config.retain_term not in method.retain_terms:
        known = ", ".join(method.retain_terms)
        faults.append(f"--retain_term {config.retain_term}: {method.name} can have {known}")
    if method.alternative == "file" and config.alternatives is None:
        faults.append(f"--method {method.name}: name a file by --alternatives (`lume-unlearn alternatives` makes one)")
    if method.alternative != "file" and config.alternatives is not None:
        faults.append(f"--alternatives {config.alternatives}: {method.name} has no use for it")
    if method.phases:
        faults += _phase_faults(config)
    if config.compile and method.hidden_states:
        faults.append(f"--compile true: {method.name} looks into the layers, where compiled ones let nobody look")
    if config.compile and config.gradient_checkpointing:
        faults.append("--compile true: nothing would be compiled with --gradient_checkpointing true; choose one")
    if method.negated and config.on_collapse == "best":
        faults.append(f"--on_collapse best: {method.name} makes its weights at the very end; use warn or stop")
    if config.tuning == "lora" and config.weights == "bfloat16":
        faults.append("--weights bfloat16: an adapter is small and stays float32; leave it out with --tuning lora")
    return faults


def _phase_faults(config: RunConfig) -> list[str]:
    """What a method that goes through phases decides by itself."""
    name, faults = config.method, []
    if config.epochs % 1:
        faults.append(f"--epochs {config.epochs}: {name} needs a whole number")
    own = "has a learning rate of its own in each phase, linear to 0 without warm-up; leave it out"
    if config.lr_schedule != "linear":
        faults.append(f"--lr_schedule {config.lr_schedule}: {name} {own}")
    if config.warmup:
        faults.append(f"--warmup {config.warmup}: {name} {own}")
    if config.evaluate_every == "epoch":
        faults.append(f"--evaluate_every epoch: {name} has no epochs over all rows; score its checkpoints instead")
    return faults


def _param_faults(config: RunConfig) -> list[str]:
    """Parameters that the method does not have, or that are out of range."""
    if config.method not in METHODS:
        return []
    faults = []
    for name, value in config.params.items():
        if (param := config.spec.params.get(name)) is None:
            known = ", ".join(config.spec.params) or "none"
            faults.append(f"--{name} {value}: {config.method} has no such parameter (it has: {known})")
        elif fault := param.fault(value):
            faults.append(f"--{name} {value}: {fault}")
    return faults


def _evaluation_faults(config: RunConfig) -> list[str]:
    """What scoring while training needs."""
    if config.evaluate_every == "none":
        return []
    faults = []
    if config.method in METHODS and config.spec.negated:
        faults.append(f"--evaluate_every epoch: {config.method} makes its result at the end; score that instead")
    if config.forget is not None:
        faults.append("--evaluate_every epoch: the tasks read a data directory; name it with --data, not --forget")
    task, _, metric = config.best_metric.partition(".")
    if task not in config.scored_tasks or not metric:
        faults.append(f"--best_metric {config.best_metric}: TASK.METRIC with a task of --evaluate_tasks")
    return faults
