"""Train from names of models and files, and save to a folder: called by `lume-unlearn run` and `finetune`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import set_seed

from lume_unlearn.data.alternatives import read_alternatives
from lume_unlearn.data.documents import read_texts
from lume_unlearn.data.sources import Source, earlier_rows, finetune_rows
from lume_unlearn.data.substitutes import read_substitutes
from lume_unlearn.errors import ConfigError, log, require_unused
from lume_unlearn.files import only_run
from lume_unlearn.methods.base import Method
from lume_unlearn.methods.registry import method_of
from lume_unlearn.model import load
from lume_unlearn.model.fingerprint import fingerprint
from lume_unlearn.training.arguments import UnlearningArguments, loaded_dtype
from lume_unlearn.training.callbacks.record import read_record
from lume_unlearn.training.callbacks.signals import Stop
from lume_unlearn.training.checkpoints import prune, whole_checkpoints
from lume_unlearn.training.distributed import is_first_process, sharded
from lume_unlearn.training.failures import memory_advice
from lume_unlearn.training.finetune import FinetuneTrainer
from lume_unlearn.training.trainer import UnlearningTrainer


def run(
    model: str,
    args: UnlearningArguments,
    method: Method | type[Method] | str,
    *,
    data: str | None = None,
    split: str = "all",
    forget: str | None = None,
    retain: str | None = None,
    forgotten: str | None = None,
    alternatives: str | None = None,
    substitutes: str | None = None,
    unseen: str | None = None,
    base: str | None = None,
    resume: bool = False,
    saved: Callable[[Path], None] = lambda output: None,
    **loading: Any,
) -> Path:
    """Unlearn the forget rows from a model; return the folder with model or adapter, tokenizer and `Record`.

    Args:
        model: folder, also of an adapter, or hub name.
        args: arguments of the training.
        method: see `UnlearningTrainer`.
        data: data directory (see `Source`).
        split: rows of the data directory to use.
        forget: file of forget rows, instead of a directory.
        retain: file of retain rows.
        forgotten: data directories of earlier requests, separated by commas.
        alternatives: file of other answers to the forget rows.
        substitutes: file of texts and their substitutes.
        unseen: file of texts never trained on.
        base: folder or hub name of the model that the target was fine-tuned from (see `UnlearningTrainer`).
        resume: continue from the last complete checkpoint in the output folder, or start if there is none yet.
        saved: called with the folder in the first process after the result is saved, before the trainer's advice.
        **loading: what is trained (see `load_trained`); by default a LoRA adapter.

    Raises:
        ConfigError: an option that cannot work, training that diverged, or a write that failed.
        DataError: rows that are faulty or do not fit the model.
        Interrupted: a signal stopped the run, and a checkpoint is saved.
    """
    output, source = Path(str(args.output_dir)), Source(data, split, forget, retain)
    with in_output(output, args, resume) as checkpoint:
        load.require_model(model)
        rows = source.loaded()
        given: dict[str, Any] = {"eval_data": rows}
        given |= {"alternatives": alternatives and read_alternatives(Path(alternatives), rows.forget)}
        given |= {"substitutes": substitutes and read_substitutes(substitutes)}
        given |= {"unseen": unseen and read_texts("unseen", unseen), "forgotten": earlier_rows(forgotten)}
        if base is not None:
            trusted = loading.get("trust_remote_code", False)
            given["base"] = load.load_model(base, torch.float32, trusted, "--base")
        loaded, given["processing_class"] = load_trained(model, args, **loading)
        trainer = UnlearningTrainer(loaded, method, args, rows.forget, rows.retain, **given)
        trainer.logs_advice = False  # `saved` comes first
        _train_and_save(trainer, model, loading.get("tuning", "lora"), checkpoint)
    if trainer.is_world_process_zero():
        saved(output)
    trainer.log_advice()
    return output


FINETUNING: dict[str, Any] = {"tuning": "full", "lora_rank": 32, "lora_alpha": 64, "lora_dropout": 0.0}
"""Defaults of `finetune_files` for ``**loading``."""


def finetune_files(
    model: str,
    args: UnlearningArguments,
    *,
    data: str | None = None,
    split: str = "all",
    rows: str = "all",
    texts: str | None = None,
    until: float = 0.99,
    resume: bool = False,
    **loading: Any,
) -> Path:
    """Make a model memorise rows (see `finetune`), write it to ``args.output_dir``, and return this folder.

    Args and errors are those of `run`; ``rows`` and ``texts`` are those of `finetune_rows`, ``until`` of `finetune`. By
    default all weights are trained.
    """
    output = Path(str(args.output_dir))
    with in_output(output, args, resume) as checkpoint:
        load.require_model(model)
        found = finetune_rows(data, split, rows, texts)
        loading = FINETUNING | loading
        loaded, tokenizer = load_trained(model, args, **loading)
        trainer = FinetuneTrainer(loaded, tokenizer, found, args, until)
        _train_and_save(trainer, model, loading["tuning"], checkpoint)
    return output


def load_trained(
    model: str, args: UnlearningArguments, *, tuning: str = "lora", trust_remote_code: bool = False, **lora: Any
) -> tuple[Any, Any]:
    """Load a model for training, to the device of this process unless it is sharded, and its tokenizer.

    Args:
        model: folder or hub name.
        args: arguments of the training.
        tuning: what to train (see `load.trainable`).
        trust_remote_code: run code that a hub model brings along.
        **lora: options of the adapter (see `load.lora_config`).

    Raises:
        ConfigError: the model cannot be loaded, or does not have what an option names.
    """
    set_seed(args.seed)  # for the adapter's initial weights
    tokenizer = load.load_tokenizer(model, trust_remote_code)
    loaded = load.load_model(model, loaded_dtype(args, tuning), trust_remote_code)
    if torch.cuda.is_available() and not sharded():
        loaded.to(PartialState().device)
    return load.trainable(loaded, tuning, load.lora_config(**lora)), tokenizer


@contextmanager
def in_output(output: Path, args: UnlearningArguments, resume: bool) -> Iterator[Path | None]:
    """Lock the output folder, new or to be resumed, within the block; yield the checkpoint to continue from.

    Raises:
        ConfigError: the folder is in use or not empty, there is nothing to resume, or memory runs out in the block.
    """
    first = is_first_process()
    if resume and not output.is_dir():
        raise ConfigError(f"--resume: there is no run in {output}; leave --resume out to start one")
    with only_run(output) if first else nullcontext(), memory_advice(args.max_tokens):
        if first and not resume:
            require_unused(output, "name another folder, or use --resume")
        if resume and read_record(output).get("finished"):
            raise ConfigError(f"--resume: the run in {output} is finished; name another folder for a new run")
        found = whole_checkpoints(output) if resume else []
        if resume and not found:
            log.warning("--resume: no complete checkpoint in %s (--save_steps N makes them): starting anew", output)
        if first and found:
            prune(output, args.save_total_limit)  # the run may have died before this
        yield found[0] if found else None


def _train_and_save(trainer: UnlearningTrainer, model: str, tuning: str, checkpoint: Path | None) -> None:
    """Train, print a summary, and save; a signal stops the training with a checkpoint.

    The record names ``model``, from which the training starts, and ``tuning``, what is trained.

    Raises:
        Interrupted: a signal stopped the training, and a checkpoint is saved.
    """
    trainer.record.extra |= {"model": fingerprint(trainer.model, model, adapter=False), "tuning": tuning}
    stop = Stop()
    trainer.add_callback(stop)
    with stop.listening():  # until the result is saved: there may be no checkpoint of the last step
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        speed = trainer.throughput.summary()
        if trainer.is_world_process_zero():
            print(f"{trainer.summary()}; {speed}", flush=True)
        trainer.save_model()
    stop.say_if_late()


def unlearn(model_path: str, output_path: str, forget_dir: str, retain_dir: str, **options: Any) -> None:
    """Unlearn with the arguments that SemEval-2025 Task 4 required of a submission.

    Args:
        model_path: folder or hub name of the model to unlearn.
        output_path: folder for the unlearned model.
        forget_dir: folder with ``forget.jsonl`` or ``forget.parquet``.
        retain_dir: folder with ``retain.jsonl`` or ``retain.parquet``.
        **options: options of `run`, ``method``, its parameters, and fields of `UnlearningArguments`; by default
            gradient difference on all weights, the organisers' baseline.
    """
    own = {name: options.pop(name) for name in UnlearningArguments.__dataclass_fields__ if name in options}
    chosen = options.pop("method", "gd")
    if isinstance(chosen, str):
        params = {name: options.pop(name) for name in method_of(chosen).params() if name in options}
        chosen = method_of(chosen, **params)
    args = UnlearningArguments(output_dir=output_path, **own)
    run(model_path, args, chosen, **({"tuning": "full", "forget": forget_dir, "retain": retain_dir} | options))
