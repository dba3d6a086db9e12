"""The options of the commands `finetune` and `distill`."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from lume_unlearn.config import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    RunConfig,
    Share,
    Split,
    check_types,
)
from lume_unlearn.methods.distill import DISTILL

OWN = ("rows", "texts", "until")
"""Options that `run` does not have."""


@dataclass(frozen=True)
class FinetuneConfig:
    """Options of `lume-unlearn finetune`.

    Attributes:
        model: Model to train: a folder or a hub name.
        output: Folder for the result: the model or the adapter, its tokenizer and unlearning.json.
        data: Data directory with forget and retain rows; default LUME_DATA_DIR, else the published LUME.
        split: Rows to use: all, train, validation or test.
        rows: all, for a target model: forget and retain rows and the member documents; retain, for its retrained twin:
            retain rows only.
        texts: File with further texts to train on, as for `audit --unrelated`; the same file for target
            and twin.
        chat: Ask questions of your own tasks through the chat template; see `lume-unlearn run --help`.
        until: Share of the output tokens of the rows that the model must rank first; training ends after the epoch that
            reaches it. 0: train all epochs.
        tuning: What to train: full (all weights), lora (an adapter; `lume-unlearn merge` folds it into the model),
            last:K or modules:REGEX, as for `run`.
        epochs: Most epochs (Trainer's num_train_epochs).
        batch_size: Texts of one optimiser step, over all processes.
        max_tokens: Most tokens in one micro-batch of one process; see `lume-unlearn run --help`.
        learning_rate: Peak learning rate; default 1e-4, and 1e-3 with LoRA.
        lr_schedule: Learning rate after the warm-up (Trainer's lr_scheduler_type): cosine, linear (to 0) or constant.
        weight_decay: Weight decay of AdamW.
        warmup: Share of the steps in which the learning rate rises (Trainer's warmup_ratio).
        seed: Seed of the order of the texts, the adapter's initial weights and dropout.
        precision: Arithmetic of the forward pass: float32, bfloat16 (Trainer's bf16), or auto.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, a third more time.
        max_length: Truncate texts to this many tokens. By default a text longer than the model's context is an error.
        lora_rank: Rank of the adapter.
        lora_alpha: Scale of the adapter: its output is multiplied by alpha / rank.
        lora_dropout: Dropout before the adapter.
        save_steps: Optimiser steps between checkpoints; 0 for none.
        resume: Continue from the last complete checkpoint in the output folder.
        report_to: Where transformers reports to: none, tensorboard, wandb, ...
        trust_remote_code: Run code that a hub model brings along.
    """

    model: str
    output: str
    data: str | None = None
    split: Split = "all"
    rows: Literal["all", "retain"] = "all"
    texts: str | None = None
    chat: bool = True
    until: Share = 0.99
    tuning: str = "full"
    epochs: PositiveInt = 20
    batch_size: PositiveInt = 16
    max_tokens: PositiveInt | None = None
    learning_rate: PositiveFloat | None = None
    lr_schedule: Literal["linear", "cosine", "constant"] = "cosine"
    weight_decay: NonNegativeFloat = 0.0
    warmup: Share = 0.05
    seed: NonNegativeInt = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: bool = False
    max_length: PositiveInt | None = None
    lora_rank: PositiveInt = 32
    lora_alpha: PositiveInt = 64
    lora_dropout: Share = 0.0
    save_steps: NonNegativeInt = 0
    resume: bool = False
    report_to: str = "none"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Raise `ConfigError` for options that cannot work."""
        check_types(self)

    def run_config(self) -> RunConfig:
        """Return the options of the run that trains: the method `finetune`, with the loss on whole texts."""
        shared: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in OWN}
        return RunConfig(method="finetune", loss_on="text", watch_steps=0, logging_steps=10, **shared)


@dataclass(frozen=True)
class DistillConfig:
    """Options of `lume-unlearn distill`.

    Attributes:
        model: Unlearned model: a folder or a hub name. It is the teacher, and its noised copy is trained. Merge an
            adapter first (`lume-unlearn merge`).
        output: Folder for the result: the model, its tokenizer and unlearning.json.
        data: Data directory with forget and retain rows; default LUME_DATA_DIR, else the published LUME.
        split: Rows to use: all, train, validation or test.
        forget: File or folder with forget rows (jsonl or parquet), instead of --data; only --ngram uses them.
        retain: File or folder with retain rows, instead of --data.
        texts: File with further texts to distil on, as for `audit --unrelated`.
        generate: Texts to generate (up to 128 tokens, temperature 1, top-p 0.9) and distil on; a chat model generates
            questions and answers. They are written to generated.jsonl in the output folder, which --resume reads again.
        generator: Model that generates them; default the unlearned model.
        ngram: Leave out generated texts that share this many words in a row with a forget row. Forget rows of fewer
            words leave out nothing.
        alpha: Share of the weights that noise replaces, from 0 to 1; higher is more robust and takes more training.
        beta: Scale of the noise, from 0 to 1.
        chat: Ask questions of your own tasks through the chat template; see `lume-unlearn run --help`.
        epochs: Epochs (Trainer's num_train_epochs).
        batch_size: Texts of one optimiser step, over all processes.
        max_tokens: Most tokens in one micro-batch of one process; see `lume-unlearn run --help`.
        learning_rate: Peak learning rate; the schedule is cosine. Default: by the size of the model, as for `run`. The
            authors' scripts have 9e-4 for 0.1 B parameters and 2e-5 for 2 B.
        warmup: Share of the steps in which the learning rate rises (Trainer's warmup_ratio).
        seed: Seed of the noise, the generated texts, the order of the texts and dropout.
        precision: Arithmetic of the forward pass: float32, bfloat16 (Trainer's bf16), or auto.
        reference_copy: Copy of the unlearned model: same, bfloat16, int8 (needs torchao), or cpu.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, a third more time.
        max_length: Truncate texts to this many tokens. By default a text longer than the model's context is an error.
        save_steps: Optimiser steps between checkpoints; 0 for none.
        resume: Continue from the last complete checkpoint in the output folder.
        trust_remote_code: Run code that a hub model brings along.
    """

    model: str
    output: str
    data: str | None = None
    split: Split = "all"
    forget: str | None = None
    retain: str | None = None
    texts: str | None = None
    generate: NonNegativeInt = 0
    generator: str | None = None
    ngram: PositiveInt = 8
    alpha: NonNegativeFloat = 0.6
    beta: NonNegativeFloat = 0.1
    chat: bool = True
    epochs: PositiveInt = 10
    batch_size: PositiveInt = 16
    max_tokens: PositiveInt | None = None
    learning_rate: PositiveFloat | None = None
    warmup: Share = 0.05
    seed: NonNegativeInt = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    reference_copy: Literal["same", "bfloat16", "int8", "cpu"] = "same"
    gradient_checkpointing: bool = False
    max_length: PositiveInt | None = None
    save_steps: NonNegativeInt = 0
    resume: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Raise `ConfigError` for options that cannot work."""
        check_types(self)

    def run_config(self) -> RunConfig:
        """Return the options of the run that trains: the method `distill` on all weights, with the loss on texts."""
        own = {*DISTILL.params, "texts", "generator"}
        shared: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}
        fixed: dict[str, Any] = {"tuning": "full", "loss_on": "text", "lr_schedule": "cosine", "weight_decay": 0.0}
        params = {name: getattr(self, name) for name in DISTILL.params}
        return RunConfig(method=DISTILL.name, watch_steps=0, params=params, **fixed, **shared)
