"""One unlearning run, from configuration to saved model."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import torch
from accelerate import PartialState
from accelerate.utils import release_memory
from transformers import TrainerCallback, set_seed

from lume_unlearn.config import RunConfig
from lume_unlearn.data.dataset import Sides
from lume_unlearn.data.inputs import (
    Inputs,
    encode_sides,
    load_inputs,
    members_line,
    require_known,
    teacher_contexts,
    watched,
)
from lume_unlearn.errors import ConfigError, require_unused
from lume_unlearn.evaluation.callback import Evaluation
from lume_unlearn.files import PARTIAL, fresh_partial, only_run, publish_result, writing
from lume_unlearn.methods.registry import COMMANDS
from lume_unlearn.model import load
from lume_unlearn.model.forward import Passes, compile_layers
from lume_unlearn.model.masters import keep_masters
from lume_unlearn.model.reference import Reference, token_nlls
from lume_unlearn.model.teacher import Teacher
from lume_unlearn.training import merge
from lume_unlearn.training.arguments import filled_in, training_arguments
from lume_unlearn.training.checkpoints import prune, whole_checkpoints
from lume_unlearn.training.distributed import (
    by_deepspeed,
    in_bfloat16,
    is_first_process,
    require_launch,
    sharded,
)
from lume_unlearn.training.failures import memory_advice
from lume_unlearn.training.level import StopWhen, follow_level
from lume_unlearn.training.monitor import SAMPLE, Monitor, Throughput, verdict
from lume_unlearn.training.ngdiff import NormalisedTrainer
from lume_unlearn.training.optimizer import optimizer_class
from lume_unlearn.training.record import Record, read_record
from lume_unlearn.training.signals import Stop
from lume_unlearn.training.split import WrappedTrainer
from lume_unlearn.training.teaching import teach, write_substitutes
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
    name = config.method
    if name in COMMANDS:
        raise ConfigError(f"--method {name}: does not unlearn; use the command `lume-unlearn {name}`")
    return in_output(config, load_inputs, _train)


Train: TypeAlias = Callable[[RunConfig, Inputs, Record, Path | None], None]
"""Trains and saves; the path is the checkpoint to continue from."""


def in_output(config: RunConfig, read: Callable[[RunConfig], Inputs], train: Train) -> Path:
    """Train in the output folder of a run: new or to be resumed, locked, with its record. See `run`."""
    output, first = Path(config.output), is_first_process()
    if config.resume and not output.is_dir():
        raise ConfigError(f"--resume: there is no run in {output}; leave --resume out to start one")
    require_launch(config)
    with only_run(output) if first else nullcontext():
        if first and not config.resume:
            require_unused(output, "name another folder, or use --resume")
        checkpoint = _checkpoint(output) if config.resume else None
        inputs = read(config)
        config = filled_in(config, checkpoint)
        record = Record(config, inputs.checksums)
        if checkpoint is not None:
            record.resume(checkpoint)
            if first:
                prune(output, config.save_total_limit)  # the run may have died before it did
        with memory_advice(config.max_tokens):
            train(config, inputs, record, checkpoint)
    return output


def _train(config: RunConfig, inputs: Inputs, record: Record, checkpoint: Path | None) -> None:
    """Load the model, train, from ``checkpoint`` if there is one, and save."""
    evaluations = [Evaluation(config)] if config.evaluate_every == "epoch" else []
    stop, throughput = Stop(), Throughput()
    trainer, monitor = prepare(config, inputs, [throughput, record], [stop, *evaluations])
    if inputs.variants and trainer.is_world_process_zero():
        write_substitutes(record.output, inputs)
    members = members_line(config, inputs.forget)
    if members and trainer.is_world_process_zero():
        print(members, flush=True)
    with stop.listening():  # until the result is saved: there may be no checkpoint of the last step
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        stop.raise_if_stopped(trainer.state)
        if config.spec.negated:
            _negate(config, trainer)
            monitor.check_result(trainer.model, trainer.state.global_step)
        speed = throughput.summary(trainer.trained_tokens)
        if trainer.is_world_process_zero():
            print(f"{monitor.summary()}; {speed}", flush=True)
            warning = verdict(monitor.measured, config.spec.negated)
            if warning:
                _log.warning("%s", warning)
        ended = [callback.reason for callback in trainer.callback_handler.callbacks if isinstance(callback, StopWhen)]
        save(trainer, record, watched=monitor.measured, **({"stopped": ended[0]} if any(ended) else {}))
    stop.say_if_late()


def prepare(
    config: RunConfig, inputs: Inputs, first: Sequence[TrainerCallback] = (), last: Sequence[TrainerCallback] = ()
) -> tuple[UnlearningTrainer, Monitor]:
    """Load the model, and return the trainer of a run and its monitor.

    Args:
        config: of the run.
        inputs: its rows.
        first: callbacks that are called before the monitor.
        last: callbacks that are called after it.

    Raises:
        ConfigError: the model cannot be loaded, or cannot do what the method needs.
        DataError: rows that do not fit the model.
    """
    set_seed(config.seed)
    # cuDNN plans again for every sequence length, and lengths change from one micro-batch to the next.
    torch.backends.cuda.enable_cudnn_sdp(False)
    tokenizer = load.load_tokenizer(config.model, config.trust_remote_code)
    model = load_configured(config)
    context = load.context_length(model)
    sides = encode_sides(config, tokenizer, context, inputs)
    rows = {"forget": inputs.forget, "retain": inputs.retain, "forgotten": inputs.forgotten}
    sample = {side: watched(config, tokenizer, context, found, SAMPLE) for side, found in rows.items()}
    require_known(config, model, chain(sides.forget, sides.retain, sides.alternative, *sample.values()))
    passes = Passes(model)
    monitor = Monitor(config, passes, sample)
    teacher = None
    if config.spec.teacher:
        contexts = teacher_contexts(config, tokenizer, context, inputs, sides.forget)
        teacher = teach(config, model, passes, sides, contexts)
    trainer = make_trainer(config, model, passes, tokenizer, sides, [*first, monitor, *last], teacher)
    follow_level(trainer, tokenizer, context, inputs)
    return trainer, monitor


def unlearned(config: RunConfig, callbacks: Callable[[Monitor], Sequence[TrainerCallback]]) -> tuple[Any, Any]:
    """Unlearn without writing anything, and return the model (with its adapter, if it has one) and the tokenizer.

    Args:
        config: of the run; nothing is written to its ``output``.
        callbacks: from the run's monitor to callbacks that are called after it.

    Raises:
        ConfigError: as `run`.
        DataError: as `run`.
    """
    release_memory()  # of the run before, whose trainer and model refer to each other
    config, inputs = with_inputs(config)
    with memory_advice(config.max_tokens):
        trainer, monitor = prepare(config, inputs)
        for callback in callbacks(monitor):
            trainer.add_callback(callback)
        trainer.train()
        if config.spec.negated:
            _negate(config, trainer)
    # Without accelerate's autocast: the model is scored in float32, whatever it was trained in.
    model: Any = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    tokenizer = trainer.processing_class
    del trainer, monitor
    release_memory()
    return model.float().eval(), tokenizer


def with_inputs(config: RunConfig) -> tuple[RunConfig, Inputs]:
    """Return a run's options, all of them (see `filled_in`), and its rows.

    Raises:
        ConfigError: ``--data`` is not a directory.
        DataError: lists everything wrong with the rows.
    """
    inputs = load_inputs(config)
    return filled_in(config), inputs


def save(trainer: UnlearningTrainer, record: Record, **result: Any) -> None:
    """Write the model or adapter, then the record, with the ``result``, that says it is finished."""
    output = record.output
    with writing(output):
        if trainer.is_world_process_zero():
            fresh_partial(output)
        trainer.accelerator.wait_for_everyone()
        trainer.save_model(str(output / PARTIAL))
        if trainer.is_world_process_zero():
            publish_result(output / PARTIAL, output)
            record.write(output, trainer.state.log_history, finished=True, **result)


def _negate(config: RunConfig, trainer: UnlearningTrainer) -> None:
    """Subtract the task vector from the reference model."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if config.tuning == "lora":
        merge.negate_adapter(model, config.params["scale"])
    else:
        merge.subtract_training(config.model, model, config.params["scale"], config.trust_remote_code)


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


def _checkpoint(output: Path) -> Path | None:
    """Return the checkpoint to continue from, or None to start from the beginning.

    Raises:
        ConfigError: the run is finished.
    """
    if read_record(output).get("finished"):
        raise ConfigError(f"--resume: the run in {output} is finished")
    found = whole_checkpoints(output)
    if found:
        return found[0]
    _log.warning("--resume: no complete checkpoint in %s (--save_steps N makes them): starting anew", output)
    return None


def load_configured(config: RunConfig) -> Any:
    """Load the model that this run trains, on the device of this process unless FSDP or DeepSpeed shards it."""
    device = PartialState().device if torch.cuda.is_available() and not sharded() else None
    return load.load_for_training(config, device)


def make_trainer(
    config: RunConfig,
    model: Any,
    passes: Passes,
    tokenizer: Any,
    sides: Sides,
    callbacks: Sequence[TrainerCallback] = (),
    teacher: Teacher | None = None,
) -> UnlearningTrainer:
    """Return the trainer, with the reference NLL or the reference model that the method needs.

    ``passes`` are for logits; a method of hidden states gets its own, which end after its layer.

    Raises:
        ConfigError: the model cannot do what the method needs.
    """
    args = training_arguments(config)
    method = config.spec
    if method.hidden_states:
        passes = load.passes_to_layer(model, int(config.params["layer"]))
    if config.weights == "masters":
        keep_masters(model)
    if method.reference_nll:
        rows = [row for side in method.reference_nll for row in getattr(sides, side)]
        model.to(args.device)
        with torch.autocast(args.device.type, torch.bfloat16, enabled=load.use_bfloat16(config.precision)):
            sides.reference = token_nlls(model, passes, rows, config.max_tokens, args.device)
    reference = None
    if config.needs_reference_forward:
        # DeepSpeed partitions frozen weights in place, so a copy cannot share them.
        reference = Reference(model, passes, config.reference_copy, share=not by_deepspeed())
    _wrap(config, model, reference, args.device.type)
    use_cache = getattr(model.config, "use_cache", True)
    trainer_class = trainer_of(config)
    trainer = trainer_class(
        config=config,
        model=model,
        args=args,
        passes=passes,
        reference=reference,
        train_dataset=sides,
        teacher=teacher,
        processing_class=tokenizer,
        callbacks=callbacks,
        optimizer_cls_and_kwargs=optimizer_class(config.optimizer, config.learning_rate, config.weights == "bfloat16"),
    )
    model.config.use_cache = use_cache  # Trainer sets it to False, and the saved model would generate slowly
    return trainer


def trainer_of(config: RunConfig) -> type[UnlearningTrainer]:
    """Return the trainer that the method and its wrappers need."""
    if config.spec.normalised:
        return NormalisedTrainer
    return WrappedTrainer if (config.robust, config.protect) != ("none", "none") else UnlearningTrainer


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
