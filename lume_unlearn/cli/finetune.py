"""`lume-unlearn finetune`."""

from typing import Any, Literal

from lume_unlearn.checks import Share
from lume_unlearn.cli.parsing import UNSET
from lume_unlearn.cli.training import add_loading_options, add_trainer_options, add_tuning_options, arguments

TITLE = "Make a model memorise rows: a target model, or its retrained model."


def add_options(parser: Any) -> None:
    """Add the options of `finetune`."""
    add_loading_options(parser)
    text = (
        "all, for a target model: forget and retain rows and the member documents; retain, for its retrained model: "
        "retain rows only (default: all)."
    )
    parser.add_argument("--rows", type=Literal["all", "retain"], default=UNSET, help=text)
    text = "File with further texts to train on, as for `audit --unrelated`; the same file for both models."
    parser.add_argument("--texts", type=str, default=UNSET, help=text)
    text = (
        "Share of the output tokens of the rows that the model must rank first; training ends after the epoch that "
        "reaches it. 0: train all epochs (default: 0.99)."
    )
    parser.add_argument("--until", type=Share, default=UNSET, help=text)
    add_tuning_options(parser, "full", 32, 64, 0.0)
    add_trainer_options(parser, own=("chat", "max_length", "max_tokens"))


def execute(options: dict[str, Any]) -> None:
    """Train and save."""
    from accelerate import PartialState

    from lume_unlearn.training.run import finetune_files

    model, args = options.pop("model"), arguments(options)
    output = finetune_files(model, args, **options)
    if PartialState().is_main_process:
        print(f"Written to {output}.")
