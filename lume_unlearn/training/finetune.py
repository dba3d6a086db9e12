"""`lume-unlearn finetune`: make a model memorise texts, for a target model and its retrained twin."""

from functools import partial
from pathlib import Path
from typing import Any

from lume_unlearn.config import RunConfig
from lume_unlearn.data.encode import encode_rows
from lume_unlearn.data.inputs import Inputs
from lume_unlearn.data.texts import load_texts
from lume_unlearn.training.memorised import Memorised
from lume_unlearn.training.monitor import Throughput
from lume_unlearn.training.options import OWN, FinetuneConfig
from lume_unlearn.training.record import Record
from lume_unlearn.training.run import in_output, prepare, save
from lume_unlearn.training.signals import Stop


def finetune(config: FinetuneConfig) -> Path:
    """Train a model on the texts (see `load_texts`) until it has memorised them, and save it as `run` does.

    The loss is the NLL of the whole text and its EOS, token mean.

    Returns:
        The output folder.

    Raises:
        ConfigError: an option that cannot work, training that diverged, or a write that failed.
        DataError: rows or texts that are faulty or do not fit the model.
        Interrupted: a signal stopped the run, and a checkpoint is saved.
    """

    def read(_: RunConfig) -> Inputs:
        return load_texts(config.data, config.split, config.rows, config.texts)

    return in_output(config.run_config(), read, partial(_memorise, config))


def _memorise(
    options: FinetuneConfig, config: RunConfig, inputs: Inputs, record: Record, checkpoint: Path | None
) -> None:
    """Load the model, train, from ``checkpoint`` if there is one, and save."""
    stop, throughput = Stop(), Throughput()
    memorised = Memorised(options.until, config.max_tokens, config.seed)
    trainer, monitor = prepare(config, inputs, [throughput, record, memorised], [stop])
    trainer.remove_callback(monitor)  # its warnings are about unlearning
    # Nothing tells a model how a text begins, so the share is over the outputs of rows, not over whole texts.
    rows = [row for row in inputs.forget if row.task]
    outputs = encode_rows(trainer.processing_class, rows, "answer", config.max_length, None, config.chat)
    memorised.watch(trainer.passes, outputs, trainer.steps_per_epoch)
    with stop.listening():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        stop.raise_if_stopped(trainer.state)
        model: Any = trainer.model
        share = memorised.share(model, outputs)
        speed = throughput.summary(trainer.trained_tokens)
        if trainer.is_world_process_zero():
            missed = "" if share >= options.until else f", not the {options.until:g} of --until"
            print(
                f"{len(inputs.forget)} texts, {trainer.state.global_step} optimiser steps: {share:.4f} of the output "
                f"tokens are ranked first{missed}; {speed}",
                flush=True,
            )
        own = {name: getattr(options, name) for name in OWN}
        save(trainer, record, memorised=memorised.measured, ranked_first=share, finetune=own)
    stop.say_if_late()
