"""One unlearning run, from configuration to checkpoint."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import LoraConfig
from transformers import TrainerCallback, TrainingArguments, set_seed
from transformers.integrations.integration_utils import get_available_reporting_integrations

from lume_tasks.errors import DataError
from lume_unlearn.config import ConfigError, RunConfig, require_unused
from lume_unlearn.data.dataset import Sides
from lume_unlearn.data.inputs import Inputs, encode_sides, load_inputs, members_line, require_known, watched
from lume_unlearn.evaluation.callback import Evaluation
from lume_unlearn.files import PARTIAL
from lume_unlearn.model import load, merge
from lume_unlearn.model.forward import Passes, compile_layers
from lume_unlearn.model.reference import Reference, token_nlls
from lume_unlearn.training.checkpoints import fresh_partial, only_run, prune, publish_result, whole_checkpoints, writing
from lume_unlearn.training.distributed import by_deepspeed, in_bfloat16, is_first_process, require_launch, sharded
from lume_unlearn.training.failures import LowerRate, memory_advice
from lume_unlearn.training.memory import default_max_tokens
from lume_unlearn.training.monitor import SAMPLE, Watch, trained_weights
from lume_unlearn.training.ngdiff import NormalisedTrainer
from lume_unlearn.training.optimizer import optimizer_class
from lume_unlearn.training.record import Record, is_finished, recorded_max_tokens
from lume_unlearn.training.signals import Stop
from lume_unlearn.training.trainer import UnlearningTrainer

_log = logging.getLogger("lume_unlearn")


def run(config: RunConfig) -> Path:
    """Unlearn the forget rows from a model and write the result to ``config.output``.

    The folder then holds what the harness loads: a model (``pretrained=O``), with LoRA an adapter
    (``pretrained=M,peft=O``), the tokenizer, and `unlearning.json` (see `record`).

    Returns:
        The output folder.

    Raises:
        ConfigError: an option that cannot work, or training that diverged.
        DataError: rows that are faulty or do not fit.
    """
    output = Path(config.output)
    _require_free(output, config.resume)  # at once, before anything is read; what counts is what only_run finds
    require_launch(config)
    config = _with_max_tokens(config)
    inputs = load_inputs(config)
    record = Record(config, inputs.checksums)
    with only_run(output) if is_first_process() else nullcontext():
        checkpoint = _checkpoint(output, config.resume)
        slower = record.resume(checkpoint) if checkpoint is not None else 1.0
        if checkpoint is not None and is_first_process():
            prune(output, config.save_total_limit)  # the run may have ended before it could
        _train(config, inputs, record, checkpoint, slower)
    return output


def _train(config: RunConfig, inputs: Inputs, record: Record, checkpoint: Path | None, slower: float) -> None:
    """Load, train, save. ``slower``: new learning rate to the checkpoint's."""
    set_seed(config.seed)
    # cuDNN plans anew for every length of a sequence, and lengths change from pass to pass.
    torch.backends.cuda.enable_cudnn_sdp(False)
    tokenizer = load.load_tokenizer(config.model, config.trust_remote_code)
    evaluations = [Evaluation(config, tokenizer)] if config.evaluate_every == "epoch" else []
    declared = load.load_model_config(config.model, config.trust_remote_code)
    load.require_depth(declared.get_text_config().num_hidden_layers, config.tuning, config.params.get("layer", 0))
    with memory_advice(config):
        model = load_configured(config)
    context = load.context_length(model)
    sides = encode_sides(config, tokenizer, context, inputs)
    forget, retain = (watched(config, tokenizer, context, rows, SAMPLE) for rows in (inputs.forget, inputs.retain))
    require_known(config, model, [*sides.forget, *sides.retain, *sides.alternative, *forget, *retain])
    watch = Watch(
        Passes(model),
        forget,
        retain,
        every=config.watch_steps,
        bound=config.collapse_bound,
        policy=config.on_collapse,
        max_tokens=config.max_tokens,
        at_end=config.spec.negated,
    )
    stop = Stop()
    callbacks = [record, watch, stop, *([LowerRate(slower)] if slower != 1 else []), *evaluations]
    with memory_advice(config, model):
        trainer = make_trainer(config, model, tokenizer, sides, callbacks)
        if trainer.is_world_process_zero():
            _say_members(config, inputs)
        with stop.listening():  # until the record is written: there may be no checkpoint of the last step
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            stop.raise_if_stopped(trainer.state)
            if config.spec.negated:
                _negate(config, trainer, watch)
            if trainer.is_world_process_zero():
                _report(watch)
            _save(config, trainer, record, watch)
        stop.say_if_late()


def _say_members(config: RunConfig, inputs: Inputs) -> None:
    """Print what the membership attack will show; faulty documents are a warning, since training does not need them."""
    try:
        if line := members_line(config, inputs.forget):
            print(line, flush=True)
    except DataError as error:
        _log.warning("%s", error)


def _report(watch: Watch) -> None:
    """Print what the run did, and warn where that is little or does harm."""
    if watch.forget or watch.retain:
        print(watch.summary(), flush=True)
    if verdict := watch.verdict():
        _log.warning("%s", verdict)


def _save(config: RunConfig, trainer: UnlearningTrainer, record: Record, watch: Watch) -> None:
    """The model or adapter, and then the record, which says that it is finished."""
    output = Path(config.output)
    with writing(output):
        if trainer.is_world_process_zero():
            fresh_partial(output)
        trainer.accelerator.wait_for_everyone()
        trainer.save_model(str(output / PARTIAL))
        if trainer.is_world_process_zero():
            publish_result(output / PARTIAL, output)
            record.write(trainer.state.log_history, watch.measured, finished=True)


def _negate(config: RunConfig, trainer: UnlearningTrainer, watch: Watch) -> None:
    """Turn what was learned around, and judge what comes of it.

    Raises:
        ConfigError: weights that are not finite, or a collapse that the run is to stop at.
    """
    assert trainer.model is not None
    model, scale = trainer.accelerator.unwrap_model(trainer.model), config.params["scale"]
    if config.tuning == "lora":
        merge.negate_adapter(model, scale)
    else:
        merge.subtract_training(config.model, model, scale, config.trust_remote_code)
    bad = sum((~weight.isfinite()).sum() for weight in trained_weights(model))
    if trainer.accelerator.reduce(bad, "sum"):
        raise ConfigError(f"--scale {scale:g}: weights become infinite; lower it (with --resume: all checkpoints stay)")
    watch.judge(trainer.model, trainer.state.global_step)


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


def _require_free(output: Path, resume: bool) -> None:
    """Refuse to write over a finished or half-finished run.

    Raises:
        ConfigError: the output folder is in use, there is no such run to resume, or it is finished.
    """
    if not resume and is_first_process():  # another one may be writing there by now
        require_unused(output, "name another folder, or use --resume")
    if resume and not output.is_dir():
        raise ConfigError(f"--resume: there is no run in {output}")
    if resume and is_finished(output):
        raise ConfigError(f"--resume: the run in {output} is finished")


def _with_max_tokens(config: RunConfig) -> RunConfig:
    """Fill in the default of ``max_tokens``: by device and memory, or as the run to resume had it (same rounding)."""
    if config.max_tokens is not None:
        return config
    checkpoints = whole_checkpoints(Path(config.output)) if config.resume else []
    recorded = recorded_max_tokens(checkpoints[0]) if checkpoints else None
    return replace(config, max_tokens=recorded or default_max_tokens())


def _checkpoint(output: Path, resume: bool) -> Path | None:
    """The checkpoint to continue from, None to begin.

    Raises:
        ConfigError: see `_require_free`.
    """
    _require_free(output, resume)
    if not resume:
        return None
    found = whole_checkpoints(output)
    if not found:
        _log.warning("--resume: no complete checkpoint in %s (--save_steps N makes them): beginning anew", output)
    return found[0] if found else None


def load_configured(config: RunConfig) -> Any:
    """Load the model that this run trains (see `load.load_for_training`)."""
    targets = [name.strip() for name in config.lora_targets.split(",")]
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets[0] if targets == ["all-linear"] else targets,
        task_type="CAUSAL_LM",
    )
    return load.load_for_training(
        config.model,
        config.tuning,
        lora,
        attention=config.attention,
        bfloat16=load.use_bfloat16(config.precision),
        bfloat16_weights=config.weights == "bfloat16",
        device=PartialState().device if torch.cuda.is_available() and not sharded() else None,
        trust_remote_code=config.trust_remote_code,
    )


def make_trainer(
    config: RunConfig, model: Any, tokenizer: Any, sides: Sides, callbacks: Sequence[TrainerCallback] = ()
) -> UnlearningTrainer:
    """The trainer, with what the method needs of the model before unlearning.

    Raises:
        ConfigError: the model cannot do what the method needs.
    """
    args = training_arguments(config)
    method = config.spec
    passes = load.passes_to_layer(model, int(config.params["layer"])) if method.hidden_states else Passes(model)
    if method.reference_nll:
        model.to(args.device)
        wanted = [row for side in method.reference_nll for row in getattr(sides, side)]
        with torch.autocast(args.device.type, torch.bfloat16, enabled=load.use_bfloat16(config.precision)):
            sides.reference = token_nlls(model, passes, wanted, config.max_tokens, args.device)
    live = config.needs_reference_forward
    # DeepSpeed takes frozen weights apart where they are, so that a copy cannot share them.
    reference = Reference(model, passes, config.reference_copy, share=not by_deepspeed()) if live else None
    if config.compile:  # after the copy was made: it takes nothing compiled along
        compile_layers(model)
        if reference is not None and reference.copy is not None and config.reference_copy in ("same", "bfloat16"):
            compile_layers(reference.copy)
    if sharded() and load.use_bfloat16(config.precision):
        in_bfloat16(model, args.device.type)
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
    if load.use_bfloat16(config.precision):
        load.keep_adapter_inputs_bfloat16(model)
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
        use_cpu=use_cpu,
    )
    # One GPU a process (accelerate launch starts several): Trainer's own way to use more would cut packs apart.
    args._n_gpu = min(args.n_gpu, 1)
    return args
