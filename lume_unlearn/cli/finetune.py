"""`lume-unlearn finetune`."""

from typing import Any

from lume_unlearn.cli.parsing import add_texts
from lume_unlearn.cli.training import add_loading_options, add_trainer_options, add_tuning_options, arguments

TEXTS = {
    "rows": "all, for a target model: forget and retain rows and the member documents; retain, for its retrained "
    "model: retain rows only (default: all).",
    "texts": "File with further texts to train on, as for `audit --unrelated`; the same file for both models.",
    "until": "Stop after the epoch in which the model ranks this share of the rows' output tokens first "
    "(teacher-forced accuracy). 0: train all epochs (default: 0.99).",
}


def add_options(parser: Any) -> None:
    """Add the options of `finetune`."""
    from lume_unlearn.training.run import FINETUNING

    add_loading_options(parser)
    add_texts(parser, TEXTS)
    add_tuning_options(parser, **FINETUNING)
    add_trainer_options(parser, own=("chat", "max_length", "max_tokens"))


def execute(options: dict[str, Any]) -> None:
    """Train and save."""
    from accelerate import PartialState

    from lume_unlearn.training.run import finetune_files

    model, args = options.pop("model"), arguments(options)
    output = finetune_files(model, args, **options)
    if PartialState().is_main_process:
        print(f"Written to {output}.")
