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
    from lume_unlearn.methods.gradient import Finetune
    from lume_unlearn.training.run import FINETUNING

    default = Finetune.defaults
    rates = default["learning_rate"]
    texts = {
        "num_train_epochs": f"Most epochs; see --until (default: {default['num_train_epochs']:g}).",
        "per_device_train_batch_size": "Texts of one optimiser step, for each process and accumulation step "
        f"(default: {default['per_device_train_batch_size']}).",
        "gradient_accumulation_steps": "Multiplies the texts of one optimiser step (default: 1).",
        "learning_rate": f"Peak learning rate (default: {rates['full']:g}; {rates['lora']:g} with LoRA).",
        "lr_scheduler_type": "Schedule of the learning rate after the warm-up "
        f"(default: {default['lr_scheduler_type']}).",
        "warmup_steps": "Warm-up steps of the learning rate, or, below 1, their share of all steps "
        f"(default: {default['warmup_steps']:g}).",
    }
    add_loading_options(parser)
    add_texts(parser, TEXTS)
    add_tuning_options(parser, **FINETUNING)
    add_trainer_options(parser, own=("chat", "max_length", "max_tokens"), **texts)


def execute(options: dict[str, Any]) -> None:
    """Train and save."""
    from accelerate import PartialState

    from lume_unlearn.training.run import finetune_files

    model, args = options.pop("model"), arguments(options)
    output = finetune_files(model, args, **options)
    if PartialState().is_main_process:
        print(f"Written to {output}.")
