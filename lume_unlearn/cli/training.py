"""Options that `run` and `finetune` share: what to load, what to train, and those of transformers' Trainer."""

from collections.abc import Iterable
from typing import Any, Literal

from lume_unlearn.checks import PositiveInt, Share
from lume_unlearn.cli.parsing import UNSET, OtherHelp, add_fields

COMMON = (
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "seed",
    "bf16",
    "optim",
    "gradient_checkpointing",
    "save_steps",
    "eval_strategy",
    "report_to",
)
"""Options of Trainer that `--help` lists; the others are in `--help_trainer`."""
ELSEWHERE = (
    "output_dir",
    "resume_from_checkpoint",
    "parallelism_config",
    "local_rank",
    "do_train",
    "do_eval",
    "do_predict",
)
"""Fields of Trainer that `--output`, `--resume` and the launcher set, or that say nothing here."""


def add_loading_options(parser: Any) -> None:
    """Add the options that name model, output and data directory."""
    parser.add_argument(
        "--model", type=str, required=True, default=UNSET, help="Model to train: a folder or a hub name."
    )
    parser.add_argument(
        "--output", type=str, required=True, default=UNSET, help="Folder for the result (Trainer's output_dir)."
    )
    parser.add_argument(
        "--data", type=str, default=UNSET, help="Data directory; default LUME_DATA_DIR, else the published LUME."
    )
    splits = Literal["all", "train", "validation", "test"]
    parser.add_argument("--split", type=splits, default=UNSET, help="Rows to use (default: all).")
    parser.add_argument("--trust_remote_code", type=bool, default=UNSET, help="Run code that a hub model brings along.")
    parser.add_argument("--resume", type=bool, default=UNSET, help="Continue from the last checkpoint in the output.")


def add_tuning_options(parser: Any, tuning: str, rank: int, alpha: int, dropout: float) -> None:
    """Add the options that say which weights are trained; the others are the defaults of the command."""
    group = parser.add_argument_group("What to train")
    text = (
        "What to train: lora (an adapter), full (all weights), last:K (the last K decoder layers), or modules:REGEX "
        f"(the weights whose names match) (default: {tuning})."
    )
    group.add_argument("--tuning", type=str, default=UNSET, help=text)
    group.add_argument("--lora_rank", type=PositiveInt, default=UNSET, help=f"Rank of the adapter (default: {rank}).")
    text = f"Scale of the adapter: its output is multiplied by alpha / rank (default: {alpha})."
    group.add_argument("--lora_alpha", type=PositiveInt, default=UNSET, help=text)
    group.add_argument(
        "--lora_dropout", type=Share, default=UNSET, help=f"Dropout before the adapter (default: {dropout:g})."
    )
    text = "Names of modules, separated by commas (default: all-linear)."
    group.add_argument("--lora_targets", type=str, default=UNSET, help=text)


def add_trainer_options(parser: Any, own: Iterable[str] | None = None) -> None:
    """Add the fields of `UnlearningArguments`: ours (or ``own`` of them), and Trainer's."""
    from transformers import TrainingArguments

    from lume_unlearn.training.arguments import UnlearningArguments

    theirs = [name for name in TrainingArguments.__dataclass_fields__ if name not in ELSEWHERE]
    ours = [name for name in UnlearningArguments.__dataclass_fields__ if name not in (*theirs, *ELSEWHERE)]
    add_fields(parser.add_argument_group("Unlearning"), UnlearningArguments, ours if own is None else own)
    group = parser.add_argument_group("Trainer")
    text = "Print the other options of Trainer, and exit."
    group.add_argument("--help_trainer", action=OtherHelp, nargs=0, default=UNSET, help=text)
    names = [*COMMON, *(name for name in theirs if name not in COMMON)]
    add_fields(group, UnlearningArguments, names, shown=COMMON)


def take(options: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Remove the options of these names, as far as they are given, and return them."""
    return {name: options.pop(name) for name in names if name in options}


def arguments(options: dict[str, Any], **fixed: Any) -> Any:
    """Remove what is the Trainer's from the options of a command, and return it as `UnlearningArguments`.

    Raises:
        ConfigError: names what is wrong.
    """
    from lume_unlearn.training.arguments import UnlearningArguments

    given = take(options, UnlearningArguments.__dataclass_fields__)
    return UnlearningArguments(output_dir=options.pop("output"), **(fixed | given))
