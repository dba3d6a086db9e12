"""One unlearning run, from configuration to saved model."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainingArguments, set_seed
from transformers.integrations.integration_utils import get_available_reporting_integrations

from lume_tasks.errors import DataError
from lume_unlearn.config import RunConfig
from lume_unlearn.data.dataset import Sides
from lume_unlearn.data.inputs import Inputs, encode_sides, load_inputs, members_line, require_known, watched
from lume_unlearn.errors import ConfigError, require_unused
from lume_unlearn.evaluation.callback import Evaluation
from lume_unlearn.files import PARTIAL, fresh_partial, only_run, publish_result, writing
from lume_unlearn.model import load, merge
from lume_unlearn.model.forward import Passes, compile_layers
from lume_unlearn.model.reference import Reference, token_nlls
from lume_unlearn.training.checkpoints import prune, whole_checkpoints
from lume_unlearn.training.distributed import by_deepspeed, in_bfloat16, is_first_process, require_launch, sharded
from lume_unlearn.training.failures import memory_advice
from lume_unlearn.training.memory import default_max_tokens
from lume_unlearn.training.monitor import SAMPLE, Monitor, trained_weights, verdict
from lume_unlearn.training.ngdiff import NormalisedTrainer
from lume_unlearn.training.optimizer import optimizer_class
from lume_unlearn.training.record import Record, read_record
from lume_unlearn.training.signals import Stop
from lume_unlearn.training.state import LowerRate
from lume_unlearn.training.throughput import Throughput
from lume_unlearn.training.trainer import UnlearningTrainer

_log = logging.getLogger("lume_unlearn")


def run(config: RunConfig) -> Path:
    """Unlearn the forget rows from a model and write the result to ``config.output``.

    The folder then loads directly: a model as ``pretrained=O``, a LoRA adapter as ``pretrained=M,peft=O``. Beside the
    weights are the tokenizer and `unlearning.json` (see `record`).

    Returns:
        The output folder.

    Raises:
        ConfigError: an option that cannot work, training that diverged, or a write that failed.
        DataError: rows that are faulty or do not fit the model.
        Interrupted: a signal stopped the run, and a checkpoint is saved.
    """
    output = Path(config.output)
    _require_free(output, config.resume)  # an early answer; `_checkpoint` asks again under the lock
    require_launch(config)
    config = _with_max_tokens(config)
    inputs = load_inputs(config)
    record = Record(config, inputs.checksums)
    with only_run(output) if is_first_process() else nullcontext(), memory_advice(config.max_tokens):
        checkpoint = _checkpoint(output, config.resume)
        slower = record.resume(checkpoint) if checkpoint is not None else 1.0
        if checkpoint is not None and is_first_process():
            prune(output, config.save_total_limit)  # the run may have died before it did
        _train(config, inputs, record, checkpoint, slower)
    return output


def _train(config: RunConfig, inputs: Inputs, record: Record, checkpoint: Path | None, slower: float) -> None:
    """Load the model, train and save.

    Args:
        config: of the run.
        inputs: its rows.
        record: to write at the end.
        checkpoint: to continue from, or None.
        slower: learning rate divided by the checkpoint's.
    """
    set_seed(config.seed)
    # cuDNN plans again for every sequence length, and lengths change from one micro-batch to the next.
    torch.backends.cuda.enable_cudnn_sdp(False)
    tokenizer = load.load_tokenizer(config.model, config.trust_remote_code)
    evaluations = [Evaluation(config, tokenizer)] if config.evaluate_every == "epoch" else []
    model = load_configured(config)
    sides = encode_sides(config, tokenizer, load.context_length(model), inputs)
    monitor = _monitor(config, model, tokenizer, inputs)
    rows = [*sides.forget, *sides.retain, *sides.alternative, *monitor.forget, *monitor.retain]
    require_known(config, model, rows)
    stop, throughput = Stop(), Throughput()
    lower_rate = [LowerRate(slower)] if slower != 1 else []
    callbacks = [throughput, record, monitor, stop, *lower_rate, *evaluations]
    trainer = make_trainer(config, model, tokenizer, sides, callbacks)
    if trainer.is_world_process_zero():
        _say_members(config, inputs)
    with stop.listening():  # until the result is saved: there may be no checkpoint of the last step
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        stop.raise_if_stopped(trainer.state)
        if config.spec.negated:
            _negate(config, trainer, monitor)
        speed = throughput.summary(trainer.trained_tokens)
        if trainer.is_world_process_zero():
            print(f"{monitor.summary()}; {speed}", flush=True)
            if warning := verdict(monitor.measured, config.spec.negated):
                _log.warning("%s", warning)
        _save(trainer, record, monitor, Path(config.output))
    stop.say_if_late()


def _monitor(config: RunConfig, model: Any, tokenizer: Any, inputs: Inputs) -> Monitor:
    """Return the collapse monitor over a sample of the rows, the same for every method."""
    context = load.context_length(model)
    forget, retain = (watched(config, tokenizer, context, rows, SAMPLE) for rows in (inputs.forget, inputs.retain))
    return Monitor(
        Passes(model),
        forget,
        retain,
        every=config.watch_steps,
        bound=config.collapse_bound,
        policy=config.on_collapse,
        max_tokens=config.max_tokens,
        negated=config.spec.negated,
    )


def _say_members(config: RunConfig, inputs: Inputs) -> None:
    """Print what the membership attack will show; training does not need the documents, so faults are a warning."""
    try:
        if line := members_line(config, inputs.forget):
            print(line, flush=True)
    except DataError as error:
        _log.warning("%s", error)


def _save(trainer: UnlearningTrainer, record: Record, monitor: Monitor, output: Path) -> None:
    """Write the model or adapter, then the record that says it is finished."""
    with writing(output):
        if trainer.is_world_process_zero():
            fresh_partial(output)
        trainer.accelerator.wait_for_everyone()
        trainer.save_model(str(output / PARTIAL))
        if trainer.is_world_process_zero():
            publish_result(output / PARTIAL, output)
            record.write(output, trainer.state.log_history, watched=monitor.measured, finished=True)


def _negate(config: RunConfig, trainer: UnlearningTrainer, monitor: Monitor) -> None:
    """Subtract the task vector from the reference model, and check the resulting weights.

    Raises:
        ConfigError: the weights are not finite, or they have collapsed and the policy is to stop.
    """
    assert trainer.model is not None
    model, scale = trainer.accelerator.unwrap_model(trainer.model), config.params["scale"]
    if config.tuning == "lora":
        merge.negate_adapter(model, scale)
    else:
        merge.subtract_training(config.model, model, scale, config.trust_remote_code)
    bad = sum((~weight.isfinite()).sum() for weight in trained_weights(model))
    if trainer.accelerator.reduce(bad, "sum"):
        raise ConfigError(
            f"--scale {scale:g}: weights become infinite; lower it (with --resume: the checkpoints are kept)"
        )
    monitor.check_result(trainer.model, trainer.state.global_step)


def unlearn(model_path: str, output_path: str, forget_dir: str, retain_dir: str, **options: Any) -> None:
    """Unlearn as SemEval-2025 Task 4 asked of a submission.

    Args:
        model_path: folder or hub name of the model to unlearn.
        output_path: folder for the unlearned model.
        forget_dir: folder with ``forget.jsonl`` or ``forget.parquet``.
        retain_dir: folder with ``retain.jsonl`` or ``retain.parquet``.
        **options: options of `RunConfig`; by default gradient difference on all weights, the organisers' baseline.
    """
    defaults = {"method": "gd", "tuning": "full"}
    paths = {"model": model_path, "output": output_path, "forget": forget_dir, "retain": retain_dir}
    run(RunConfig(**(defaults | options | paths)))


def _require_free(output: Path, resume: bool) -> None:
    """Refuse to overwrite a run.

    Raises:
        ConfigError: the output folder is in use, there is no run to resume, or it is finished.
    """
    if not resume and is_first_process():  # the first process may be writing there already
        require_unused(output, "name another folder, or use --resume")
    if resume and not output.is_dir():
        raise ConfigError(f"--resume: there is no run in {output}; leave --resume out to start one")
    if resume and read_record(output).get("finished"):
        raise ConfigError(f"--resume: the run in {output} is finished")


def _with_max_tokens(config: RunConfig) -> RunConfig:
    """Fill in ``max_tokens``: as in the run to resume, so that sums round alike, else the default of this machine."""
    if config.max_tokens is not None:
        return config
    checkpoints = whole_checkpoints(Path(config.output)) if config.resume else []
    recorded = read_record(checkpoints[0]).get("config", {}).get("max_tokens") if checkpoints else None
    return replace(config, max_tokens=recorded or default_max_tokens())


def _checkpoint(output: Path, resume: bool) -> Path | None:
    """Return the checkpoint to continue from, or None to start from the beginning.

    Raises:
        ConfigError: see `_require_free`.
    """
    _require_free(output, resume)
    if not resume:
        return None
    found = whole_checkpoints(output)
    if not found:
        _log.warning(
            "--resume: no complete checkpoint in %s (--save_steps N makes them): starting from the beginning", output
        )
    return found[0] if found else None


def load_configured(config: RunConfig) -> Any:
    """Load the model that this run trains, on the device of this process unless FSDP or DeepSpeed shards it."""
    device = PartialState().device if torch.cuda.is_available() and not sharded() else None
    return load.load_for_training(config, device)


def make_trainer(
    config: RunConfig, model: Any, tokenizer: Any, sides: Sides, callbacks: Sequence[TrainerCallback] = ()
) -> UnlearningTrainer:
    """Return the trainer, with the reference NLL or the reference model that the method needs.

    Raises:
        ConfigError: the model cannot do what the method needs.
    """
    args = training_arguments(config)
    method = config.spec
    passes = load.passes_to_layer(model, int(config.params["layer"])) if method.hidden_states else Passes(model)
    if method.reference_nll:
        rows = [row for side in method.reference_nll for row in getattr(sides, side)]
        model.to(args.device)
        with torch.autocast(args.device.type, torch.bfloat16, enabled=load.use_bfloat16(config.precision)):
            sides.reference = token_nlls(model, passes, rows, config.max_tokens, args.device)
    # DeepSpeed partitions frozen weights in place, so a copy cannot share them.
    share = not by_deepspeed()
    reference = Reference(model, passes, config.reference_copy, share) if config.needs_reference_forward else None
    _wrap(config, model, reference, args.device.type)
    use_cache = getattr(model.config, "use_cache", True)
    trainer_class = NormalisedTrainer if method.normalised else UnlearningTrainer
    trainer = trainer_class(
        config=config,
        model=model,
        args=args,
        passes=passes,
        reference=reference,
        train_dataset=sides,
        processing_class=tokenizer,
        callbacks=callbacks,
        optimizer_cls_and_kwargs=optimizer_class(config.optimizer, config.learning_rate, config.weights == "bfloat16"),
    )
    model.config.use_cache = use_cache  # Trainer sets it to False, and the saved model would generate slowly
    return trainer


def _wrap(config: RunConfig, model: Any, reference: Reference | None, device_type: str) -> None:
    """Compile the model and set its arithmetic, after the reference model was copied from it."""
    if config.compile:
        compile_layers(model)
        if reference is not None and reference.copy is not None and config.reference_copy in ("same", "bfloat16"):
            compile_layers(reference.copy)
    if load.use_bfloat16(config.precision):
        load.keep_adapter_inputs_bfloat16(model)
        if sharded():
            in_bfloat16(model, device_type)


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
