"""The configuration of one unlearning run: what the command line, a recipe and `lume_unlearn.run` all fill in."""

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Literal

from lume_tasks.checks import SPLITS
from lume_unlearn.methods import METHODS, RETAIN_TERMS


class ConfigError(ValueError):
    """An option that cannot work; the message names it and says what to do."""


def require_unused(output: Path, advice: str = "name another folder") -> None:
    """Refuse to write into a folder that holds anything.

    Raises:
        ConfigError: the path exists and is not an empty folder.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"--output {output}: it exists and is not empty; {advice}")


@dataclass(frozen=True)
class RunConfig:
    """Options of `lume-unlearn run`.

    Attributes:
        model: Model to unlearn: a folder or a hub name.
        output: Folder to write: the adapter or the model, its tokenizer and unlearning.json.
        method: Unlearning method; `lume-unlearn methods` lists them.
        tuning: What to train: a LoRA adapter, or all weights.
        data: Data directory with forget and retain rows; else LUME_DATA_DIR, else the published LUME.
        split: Rows to use: all, train, validation or test.
        forget: File or folder with forget rows (jsonl or parquet), instead of --data.
        retain: File or folder with retain rows, instead of --data.
        retain_term: Loss on retain rows: nll, kl or none; by default the method's own.
        forget_weight: Weight of the loss on forget rows.
        retain_weight: Weight of the loss on retain rows.
        beta: Inverse temperature of npo.
        loss_on: Tokens that carry loss: the answer (`output` and EOS), or the whole text.
        epochs: Passes over the forget rows.
        batch_size: Forget rows of one optimiser step, over all processes; as many retain rows come beside them.
        micro_batch_size: Most forget rows in one forward pass of one process; does not change the result.
        learning_rate: Peak learning rate; by default 1e-5 in full, 1e-4 with LoRA.
        weight_decay: Weight decay of AdamW.
        warmup: Share of the steps with rising learning rate; linear decay follows.
        max_grad_norm: Gradient norm above which gradients are scaled down; 0 turns it off.
        seed: Seed of the pairing, the order, the adapter's first weights and dropout.
        precision: Arithmetic of the forward pass: float32, bfloat16, or auto (bfloat16 where the GPU has it).
        gradient_checkpointing: Recompute activations in the backward pass: less memory, a third more time.
        max_length: Cut longer rows to so many tokens; by default a row longer than the model's context is an error.
        lora_rank: Rank of the adapter.
        lora_alpha: Scale of the adapter: its output is multiplied by alpha / rank.
        lora_dropout: Dropout before the adapter.
        lora_targets: Modules that get an adapter: all-linear, or names with commas between them.
        save_steps: Save a checkpoint every so many optimiser steps; 0 for none.
        save_total_limit: Checkpoints to keep; 0 for all.
        resume: Continue from the last checkpoint in the output folder.
        logging_steps: Optimiser steps between two entries of the loss history.
        evaluate_every: When to score through the harness while training: none or epoch.
        evaluate_tasks: Tasks to score then.
        evaluate_limit: Documents of each task to score then; by default all.
        evaluate_batch_size: Prompts of one scoring batch.
        best_metric: Which TASK.METRIC decides the weights kept in best/.
        report_to: Where transformers reports to: none, tensorboard, wandb, ...
        trust_remote_code: Run code that a hub model brings along.
    """

    model: str
    output: str
    method: str
    tuning: Literal["lora", "full"] = "lora"
    data: str | None = None
    split: str = "all"
    forget: str | None = None
    retain: str | None = None
    retain_term: Literal["nll", "kl", "none"] | None = None
    forget_weight: float = 1.0
    retain_weight: float = 1.0
    beta: float = 0.1
    loss_on: Literal["answer", "text"] = "answer"
    epochs: float = 10
    batch_size: int = 32
    micro_batch_size: int = 8
    learning_rate: float | None = None
    weight_decay: float = 0.01
    warmup: float = 0.1
    max_grad_norm: float = 1.0
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: bool = False
    max_length: int | None = None
    lora_rank: int = 8
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    lora_targets: str = "all-linear"
    save_steps: int = 0
    save_total_limit: int = 2
    resume: bool = False
    logging_steps: int = 1
    evaluate_every: Literal["none", "epoch"] = "none"
    evaluate_tasks: str = "lume_task1,lume_task2,lume_task3,lume_mia,lume_score"
    evaluate_limit: int | None = None
    evaluate_batch_size: int = 64
    best_metric: str = "lume_score.task_aggregate"
    report_to: str = "none"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked before anything is loaded.

        Raises:
            ConfigError: names every option that is wrong.
        """
        faults = [*_choice_faults(self), *_range_faults(self), *_source_faults(self), *_evaluation_faults(self)]
        if faults:
            raise ConfigError("\n".join(faults))

    @property
    def terms(self) -> str:
        """The retain term in force: the option, else the method's own."""
        return self.retain_term or METHODS[self.method].retain

    @property
    def needs_retain(self) -> bool:
        """Whether retain rows take part at all."""
        return self.method in METHODS and self.terms != "none"

    @property
    def scored_tasks(self) -> list[str]:
        """The tasks to score while training."""
        return [name.strip() for name in self.evaluate_tasks.split(",")]

    @property
    def rate(self) -> float:
        """The learning rate in force."""
        return self.learning_rate if self.learning_rate is not None else {"full": 1e-5, "lora": 1e-4}[self.tuning]


def _choice_faults(config: RunConfig) -> list[str]:
    """Options whose value is not one of the known ones (a recipe or a Python caller may hold anything)."""
    choices: dict[str, tuple[object, ...]] = {
        "method": tuple(METHODS),
        "tuning": ("lora", "full"),
        "split": ("all", *SPLITS),
        "retain_term": (None, *RETAIN_TERMS),
        "loss_on": ("answer", "text"),
        "precision": ("auto", "float32", "bfloat16"),
        "evaluate_every": ("none", "epoch"),
    }
    return [
        f"--{name} {getattr(config, name)!r}: choose one of {', '.join(str(v) for v in known if v is not None)}"
        for name, known in choices.items()
        if getattr(config, name) not in known
    ]


def _range_faults(config: RunConfig) -> list[str]:
    """Numbers outside the range in which they mean something."""
    positive = (
        "epochs",
        "batch_size",
        "micro_batch_size",
        "beta",
        "lora_rank",
        "lora_alpha",
        "logging_steps",
        "evaluate_batch_size",
    )
    weights = ("forget_weight", "retain_weight", "weight_decay", "max_grad_norm")
    faults = []
    for name in positive:
        if not 0 < (value := getattr(config, name)) < inf:
            faults.append(f"--{name} {value}: must be above 0")
    for name in (*weights, "seed", "save_steps", "save_total_limit"):
        if not 0 <= (value := getattr(config, name)) < inf:
            faults.append(f"--{name} {value}: must not be negative")
    if config.learning_rate is not None and not 0 < config.learning_rate < inf:
        faults.append(f"--learning_rate {config.learning_rate}: must be above 0")
    if not 0 <= config.warmup < 1:
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
    if config.forget is not None and config.data is not None:
        faults.append("--data and --forget both name the rows; give one of them")
    if config.forget is not None and config.split != "all":
        faults.append(f"--split {config.split}: is for --data; --forget already names the rows")
    return faults


def _evaluation_faults(config: RunConfig) -> list[str]:
    """What scoring while training needs."""
    if config.evaluate_every == "none":
        return []
    faults = []
    if config.forget is not None:
        faults.append("--evaluate_every epoch: the tasks read a data directory; name it with --data, not --forget")
    task, _, metric = config.best_metric.partition(".")
    if task not in config.scored_tasks or not metric:
        faults.append(f"--best_metric {config.best_metric}: TASK.METRIC with a task of --evaluate_tasks")
    return faults
