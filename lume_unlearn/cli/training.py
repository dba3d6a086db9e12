"""Options that `run` and `finetune` share: what to load, what to train, and those of transformers' Trainer."""

import sys
from collections.abc import Iterable
from inspect import signature
from typing import Any

from lume_unlearn.cli.parsing import SHARED, UNSET, OtherHelp, add_fields, add_texts

COMMON = (
    *("num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "seed", "bf16", "optim"),
    *("gradient_checkpointing", "save_steps", "eval_strategy", "report_to"),
)
"""Options of Trainer that `--help` lists; the others are in `--help_trainer`."""
ELSEWHERE = (
    *("output_dir", "resume_from_checkpoint", "parallelism_config", "local_rank"),
    *("do_train", "do_eval", "do_predict"),
)
"""Fields of Trainer that `--output`, `--resume` and the launcher set, or that have no effect here."""


def add_loading_options(parser: Any) -> None:
    """Add the options that name model, output and data directory."""
    texts = {
        "model": "Model to train: a folder (also of an adapter) or a hub name.",
        "output": "Folder for the result (Trainer's output_dir).",
        **SHARED,
        "resume": "Continue from the last checkpoint in the output.",
    }
    add_texts(parser, texts, required=("model", "output"))


def add_tuning_options(parser: Any, **changed: Any) -> None:
    """Add the options that choose the trained weights; ``changed``: defaults that differ from those of `run`."""
    from lume_unlearn.model.load import lora_config

    adapter = {name: option.default for name, option in signature(lora_config).parameters.items()}
    default = {"tuning": "lora"} | adapter | changed
    texts = {
        "tuning": "What to train: lora (an adapter), full (all weights), last:K (the last K decoder layers), or "
        "modules:REGEX (the weights whose names match)",
        "lora_rank": "Rank of the adapter",
        "lora_alpha": "Scale of the adapter: its output is multiplied by alpha / rank",
        "lora_dropout": "Dropout before the adapter",
        "lora_targets": "Names of modules, separated by commas",
    }
    texts = {name: f"{text} (default: {default[name]})." for name, text in texts.items()}
    add_texts(parser.add_argument_group("What to train"), texts)


def add_trainer_options(parser: Any, own: Iterable[str] | None = None, **changed: str) -> None:
    """Add options for the fields of `UnlearningArguments`: this package's (only ``own``, if given) and Trainer's.

    ``changed``: help texts that differ from those of `run`.
    """
    from transformers import TrainingArguments

    from lume_unlearn.training.arguments import UnlearningArguments

    theirs = [name for name in TrainingArguments.__dataclass_fields__ if name not in ELSEWHERE]
    ours = [name for name in UnlearningArguments.__dataclass_fields__ if name not in (*theirs, *ELSEWHERE)]
    add_fields(parser.add_argument_group("Unlearning"), ours if own is None else own)
    group = parser.add_argument_group("Trainer")
    text = "Print the other options of Trainer, and exit."
    group.add_argument("--help_trainer", action=OtherHelp, nargs=0, default=UNSET, help=text)
    add_fields(group, dict.fromkeys((*COMMON, *theirs)), shown=COMMON, texts=changed)


def take(options: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Remove the options of these names that are given, and return them."""
    return {name: options.pop(name) for name in names if name in options}


def arguments(options: dict[str, Any]) -> Any:
    """Remove the training arguments from the options of a command, and return them as `UnlearningArguments`.

    Raises:
        ConfigError: an argument cannot work; the message names it.
    """
    from lume_unlearn.training.arguments import UnlearningArguments

    # A log file needs no progress bar beside the lines with the losses.
    given: dict[str, Any] = {"disable_tqdm": not sys.stderr.isatty()}
    given |= take(options, UnlearningArguments.__dataclass_fields__)
    return UnlearningArguments(options.pop("output"), **given)
