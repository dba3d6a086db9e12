"""The options of a run that depend on machine and model, and all of them as transformers' TrainingArguments."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import get_available_reporting_integrations

from lume_unlearn.config import RunConfig, kind_of
from lume_unlearn.errors import ConfigError
from lume_unlearn.model import load
from lume_unlearn.training.distributed import processes, sharded
from lume_unlearn.training.record import read_record

MOST_TOKENS = {"cuda": 8192, "cpu": 2048}
"""Tokens. On a CPU more are no faster: for a LoRA on a model of 135 M parameters 8192 took 13.3 GB and 2048 6.3 GB."""
LEAST_TOKENS = 512
BYTES_PER_TOKEN = 4 * 2**20
"""Bytes of free memory that each token asks for: almost four times what that model takes, since others are larger."""
RATES = {"full": (1e-5, 2e-4), "lora": (1e-4, 1e-3)}
"""Default learning rate of models with `PARAMETERS` or more, and the highest one of smaller models."""
PARAMETERS = 1e9


def rate_for(parameters: int, tuning: str) -> float:
    """Return the default learning rate of methods without one of their own, by the size of the model.

    In inverse proportion to the number of parameters below `PARAMETERS`. Worked example: full tuning of 135 M
    parameters, 1e-5 * 1e9 / 135e6 = 7.4e-5; of 13 M parameters the highest, 2e-4.
    """
    lowest, highest = RATES[kind_of(tuning)]
    return min(max(lowest, lowest * PARAMETERS / parameters), highest)


def training_arguments(config: RunConfig) -> TrainingArguments:
    """Return the run's options as Trainer's arguments.

    Raises:
        ConfigError: ``--report_to`` names an integration that is not installed.
    """
    reporters = get_available_reporting_integrations()  # type: ignore[no-untyped-call]
    if config.report_to not in ("none", "all", *reporters):
        known = ", ".join(["none", "all", *reporters])
        raise ConfigError(f"--report_to {config.report_to}: not known or not installed; choose one of {known}")
    checkpointing = "activation_checkpointing"  # its name since transformers 5.2x
    if not hasattr(TrainingArguments, checkpointing):
        checkpointing = "gradient_checkpointing"
    renamed: dict[str, Any] = {checkpointing: config.gradient_checkpointing}
    args = TrainingArguments(
        output_dir=config.output,
        num_train_epochs=1 if config.spec.phases else config.epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        lr_scheduler_type="constant_with_warmup" if config.lr_schedule == "constant" else config.lr_schedule,
        warmup_steps=config.warmup,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        bf16=load.use_bfloat16(config.precision) and not sharded(),  # see `in_bfloat16`
        **renamed,
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 1,
        logging_steps=config.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        report_to=config.report_to,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
    )
    # One GPU a process: Trainer's DataParallel would cut micro-batches apart.
    args._n_gpu = min(args.n_gpu, 1)
    return args


def filled_in(config: RunConfig, checkpoint: Path | None = None) -> RunConfig:
    """Fill in ``max_tokens`` and ``learning_rate``: as in the run to resume, else the defaults of machine and model.

    Raises:
        ConfigError: the model's configuration cannot be loaded.
    """
    recorded = read_record(checkpoint).get("config", {}) if checkpoint else {}
    tokens = config.max_tokens or recorded.get("max_tokens") or default_max_tokens()
    rate = config.learning_rate or recorded.get("learning_rate")
    if rate is None:
        rate = rate_for(load.parameter_count(config.model, config.trust_remote_code), config.tuning)
    return replace(config, max_tokens=tokens, learning_rate=rate)


def default_max_tokens() -> int:
    """Return the default of `--max_tokens` on this machine: halved until the tokens fit into its free memory.

    Several processes must agree on the number, so with them it depends on the device alone.
    """
    gpu = torch.cuda.is_available()
    tokens = MOST_TOKENS["cuda" if gpu else "cpu"]
    if processes() == 1:
        free = torch.cuda.mem_get_info()[0] if gpu else psutil.virtual_memory().available
        while tokens > LEAST_TOKENS and tokens * BYTES_PER_TOKEN > free:
            tokens //= 2
    return tokens
