"""One unlearning run, from configuration to checkpoint."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, set_seed
from transformers.integrations.integration_utils import get_available_reporting_integrations
from transformers.trainer_utils import get_last_checkpoint

from lume_tasks import data as lume_data
from lume_tasks.checks import SIDES, check_sides
from lume_tasks.rows import DataError, Row, find_file, read_rows
from lume_unlearn import modeling
from lume_unlearn.config import ConfigError, RunConfig, require_unused
from lume_unlearn.data import PairDataset, collate, encode_rows, passes_per_step
from lume_unlearn.evaluation import Evaluation
from lume_unlearn.forward import Reference, nll_sums
from lume_unlearn.methods import METHODS
from lume_unlearn.record import Record
from lume_unlearn.trainer import UnlearningTrainer


def run(config: RunConfig) -> Path:
    """Unlearn the forget rows from a model and write the result to ``config.output``.

    The folder then holds what the harness loads: in full tuning a model (``pretrained=O``), with LoRA an adapter
    (``pretrained=M,peft=O``), the tokenizer, and `unlearning.json` (see `record`).

    Returns:
        The output folder.

    Raises:
        ConfigError: an option that cannot work, or training that diverged.
        DataError: rows that are faulty or do not fit.
    """
    output = Path(config.output)
    checkpoint = _checkpoint(output, config.resume)
    forget, retain, checksums = load_sides(config)
    record = Record(config, checksums)
    if checkpoint is not None:
        record.resume()
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
    trainer = make_trainer(config, model, tokenizer, dataset, record)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(output))
    if trainer.is_world_process_zero():
        # Trainer leaves its arguments as a pickle beside the weights; ours are in the record, as text.
        (output / "training_args.bin").unlink(missing_ok=True)
        record.write(trainer.state.log_history)
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
        ConfigError: ``--data`` is no directory.
        DataError: anything wrong with the rows, all at once.
    """
    if config.forget is not None:
        files, sides = _named_sides(config)
    else:
        if config.data is not None and not Path(config.data).expanduser().is_dir():
            raise ConfigError(f"--data {config.data}: is not a directory")
        directory = lume_data.data_dir(config.data)
        files = {side: lume_data.side_file(directory, side, config.split) for side in SIDES}
        sides = lume_data.load_rows(directory, config.split)
    checksums = {str(path): lume_data.checksums(path.parent, [path.name])[path.name] for path in files.values()}
    return sides["forget"], sides["retain"] if config.needs_retain else [], checksums


def _named_sides(config: RunConfig) -> tuple[dict[str, Path], dict[str, list[Row]]]:
    """The files of ``--forget`` and ``--retain`` and their rows, by side."""
    files: dict[str, Path] = {}
    sides: dict[str, list[Row]] = {}
    faults: list[str] = []
    for side in SIDES:
        if (named := getattr(config, side)) is None:
            continue
        try:
            files[side] = _rows_file(Path(named).expanduser(), side)
            sides[side] = read_rows(files[side])
        except DataError as error:
            faults.append(str(error))
    faults = faults or check_sides(sides["forget"], sides.get("retain", []))
    if faults:
        raise DataError("\n".join(faults))
    return files, sides


def _rows_file(path: Path, side: str) -> Path:
    """A file as it is; in a folder the side's file."""
    if not path.exists():
        raise DataError(f"--{side} {path}: there is no such file or folder")
    return find_file(path, side, str(path / side)) if path.is_dir() else path


def _checkpoint(output: Path, resume: bool) -> str | None:
    """The checkpoint to continue from; refuses to write over a finished or half-finished run.

    Raises:
        ConfigError: the output folder is in use, or there is nothing to resume.
    """
    if not resume:
        require_unused(output, "name another folder, or use --resume")
        return None
    last: str | None = get_last_checkpoint(str(output)) if output.is_dir() else None  # type: ignore[no-untyped-call]
    if last is None:
        raise ConfigError(f"--resume: no checkpoint in {output} (runs save them with --save_steps N)")
    return last


def make_trainer(
    config: RunConfig, model: Any, tokenizer: Any, dataset: PairDataset, record: Record
) -> UnlearningTrainer:
    """The trainer, with what the method needs of the model before unlearning."""
    args = training_arguments(config)
    if METHODS[config.method].reference_sums:
        model.to(args.device)
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
            dataset.reference = nll_sums(model, model.config, dataset.forget, config.micro_batch_size, args.device)
    use_cache = getattr(model.config, "use_cache", True)
    trainer = UnlearningTrainer(
        config=config,
        model=model,
        args=args,
        reference=Reference(model) if config.terms == "kl" else None,
        train_dataset=dataset,
        data_collator=collate,
        processing_class=tokenizer,
        callbacks=[record, *([Evaluation(config, tokenizer)] if config.evaluate_every == "epoch" else [])],
    )
    model.config.use_cache = use_cache  # Trainer turns it off, and would have it saved so: slow to generate with
    return trainer


def training_arguments(config: RunConfig) -> TrainingArguments:
    """Our options in Trainer's words.

    Raises:
        ConfigError: ``--report_to`` names what is not installed.
    """
    reporters = get_available_reporting_integrations()  # type: ignore[no-untyped-call]
    if config.report_to not in ("none", "all", *reporters):
        known = ", ".join(["none", "all", *reporters])
        raise ConfigError(f"--report_to {config.report_to}: neither known nor installed; there is: {known}")
    use_cpu = not torch.cuda.is_available()
    processes = TrainingArguments(output_dir=config.output, use_cpu=use_cpu).world_size
    checkpointing = "activation_checkpointing"  # its name since transformers 5.2x
    if not hasattr(TrainingArguments, checkpointing):
        checkpointing = "gradient_checkpointing"
    renamed: dict[str, Any] = {checkpointing: config.gradient_checkpointing}
    args = TrainingArguments(
        output_dir=config.output,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=passes_per_step(config.batch_size, config.micro_batch_size, processes),
        learning_rate=config.rate,
        weight_decay=config.weight_decay,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        bf16=modeling.use_bfloat16(config),
        **renamed,
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 1,
        save_total_limit=config.save_total_limit or None,
        logging_steps=config.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        report_to=config.report_to,
        remove_unused_columns=False,
        use_cpu=use_cpu,
    )
    # One GPU a process (accelerate launch starts several): Trainer's own way to use more would cut packs apart.
    args._n_gpu = min(args.n_gpu, 1)
    return args
