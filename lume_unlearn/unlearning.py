"""One unlearning run, from configuration to checkpoint."""

import json
import platform
import time
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from lume_tasks import data as lume_data
from lume_tasks.checks import SIDES, check_sides
from lume_tasks.rows import DataError, Row, find_file, read_rows
from lume_unlearn import modeling
from lume_unlearn.config import ConfigError, RunConfig
from lume_unlearn.data import PairDataset, collate, encode_rows
from lume_unlearn.forward import Reference, nll_sums
from lume_unlearn.methods import METHODS
from lume_unlearn.trainer import UnlearningTrainer

RECORD = "unlearning.json"


def run(config: RunConfig) -> Path:
    """Unlearn the forget rows from a model and write the result to ``config.output``.

    The folder then holds what the harness loads: in full tuning a model (``pretrained=O``), with LoRA an adapter
    (``pretrained=M,peft=O``), the tokenizer, and `unlearning.json`: the configuration, versions, checksums of the data,
    seed, time and the loss terms over time.

    Returns:
        The output folder.

    Raises:
        ConfigError: an option that cannot work.
        DataError: rows that are faulty or do not fit.
    """
    started = time.time()
    output = Path(config.output)
    checkpoint = _checkpoint(output, config.resume)
    forget, retain, files = load_sides(config)
    set_seed(config.seed)
    tokenizer = modeling.load_tokenizer(config.model, config.trust_remote_code)
    model = modeling.load_for_training(config)
    encode = partial(
        encode_rows,
        tokenizer,
        loss_on=config.loss_on,
        max_length=config.max_length,
        context=modeling.context_length(model),
    )
    dataset = PairDataset(encode(forget), encode(retain))
    trainer = _trainer(config, model, tokenizer, dataset)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(output))
    if trainer.is_world_process_zero():
        # Trainer leaves its arguments as a pickle beside the weights; ours are in the record, as text.
        (output / "training_args.bin").unlink(missing_ok=True)
        record = _record(config, trainer.state.log_history, files, time.time() - started)
        (output / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return output


def unlearn(model_path: str, output_path: str, forget_dir: str, retain_dir: str, **options: Any) -> None:
    """The function that SemEval-2025 Task 4 asked of a submission.

    Args:
        model_path: folder (or hub name) of the model to unlearn.
        output_path: folder for the unlearned model.
        forget_dir: folder with ``forget.jsonl`` or ``forget.parquet``.
        retain_dir: folder with ``retain.jsonl`` or ``retain.parquet``.
        **options: any option of `RunConfig`; by default gradient difference, the organisers' baseline, in full.
    """
    defaults = {"method": "gd", "tuning": "full"}
    paths = {"model": model_path, "output": output_path, "forget": forget_dir, "retain": retain_dir}
    run(RunConfig(**(defaults | options | paths)))


def load_sides(config: RunConfig) -> tuple[list[Row], list[Row], dict[str, str]]:
    """Forget rows, retain rows (none where no term uses them) and the SHA-256 of each file read.

    Raises:
        DataError: anything wrong with the rows, all at once.
    """
    if config.forget is None:
        directory = lume_data.data_dir(config.data)
        files = {side: lume_data.side_file(directory, side, config.split) for side in SIDES}
        sides = lume_data.load_rows(directory, config.split)
    else:
        named = {"forget": config.forget, "retain": config.retain}
        files = {side: _rows_file(Path(path), side) for side, path in named.items() if path is not None}
        sides = {side: read_rows(path) for side, path in files.items()}
        if faults := check_sides(sides["forget"], sides.get("retain", [])):
            raise DataError("\n".join(faults))
    sums = {str(path): lume_data.checksums(path.parent, [path.name])[path.name] for path in files.values()}
    return sides["forget"], sides["retain"] if config.needs_retain else [], sums


def _rows_file(path: Path, side: str) -> Path:
    """A file as it is; in a folder the side's file."""
    return find_file(path, side, str(path / side)) if path.is_dir() else path


def _checkpoint(output: Path, resume: bool) -> str | None:
    """The checkpoint to continue from; refuses to write over a finished or half-finished run.

    Raises:
        ConfigError: the output folder is in use, or there is nothing to resume.
    """
    if not resume:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise ConfigError(f"--output {output}: it exists and is not empty; name another folder, or use --resume")
        return None
    last = get_last_checkpoint(str(output)) if output.is_dir() else None
    if last is None:
        raise ConfigError(f"--resume: no checkpoint in {output} (runs save them with --save_steps N)")
    return last


def _trainer(config: RunConfig, model: Any, tokenizer: Any, dataset: PairDataset) -> UnlearningTrainer:
    """The trainer, with what the method needs of the model before unlearning."""
    args = training_arguments(config, len(dataset.forget))
    if METHODS[config.method].reference_sums:
        model.to(args.device)
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
            dataset.reference = nll_sums(model, model.config, dataset.forget, config.micro_batch_size, args.device)
    return UnlearningTrainer(
        config=config,
        model=model,
        args=args,
        reference=Reference(model) if config.terms == "kl" else None,
        train_dataset=dataset,
        data_collator=collate,
        processing_class=tokenizer,
    )


def training_arguments(config: RunConfig, forget_rows: int) -> TrainingArguments:
    """Our options in Trainer's words.

    Raises:
        ConfigError: the batch does not divide among processes and micro batches.
    """
    batch_size = min(config.batch_size, forget_rows)
    args = partial(
        TrainingArguments,
        output_dir=config.output,
        num_train_epochs=config.epochs,
        learning_rate=config.rate,
        weight_decay=config.weight_decay,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        bf16=modeling.use_bfloat16(config),
        gradient_checkpointing=config.gradient_checkpointing,
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 1,
        save_total_limit=config.save_total_limit,
        logging_steps=config.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        report_to=config.report_to,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
    )
    processes = args().world_size
    share, rest = divmod(batch_size, processes)
    if rest or not share:
        raise ConfigError(f"--batch_size {batch_size}: must be a multiple of the number of processes ({processes})")
    micro = min(config.micro_batch_size, share)
    while share % micro:
        micro -= 1
    return args(per_device_train_batch_size=micro, gradient_accumulation_steps=share // micro)


def _record(config: RunConfig, history: list[dict[str, Any]], files: dict[str, str], seconds: float) -> dict[str, Any]:
    """What `unlearning.json` holds."""
    packages = ("lume-unlearning", "torch", "transformers", "peft", "accelerate", "datasets", "lm_eval")
    return {
        "config": asdict(config) | {"learning_rate": config.rate, "retain_term": config.terms},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "data_sha256": files,
        "seed": config.seed,
        "seconds": round(seconds, 1),
        "history": history,
    }


