"""`lume-unlearn distill`: make an unlearned model robust by distilling it into a noised copy of itself (UNDO)."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn

from lume_tasks.data.chat import chat_prompt
from lume_tasks.data.generate import sampled_rows
from lume_tasks.data.rows import Row
from lume_unlearn.config import RunConfig
from lume_unlearn.data.documents import read_texts
from lume_unlearn.data.inputs import Inputs, load_inputs
from lume_unlearn.data.texts import checksums
from lume_unlearn.errors import ConfigError
from lume_unlearn.files import write_text, writing
from lume_unlearn.methods.distill import initial_weights, noised
from lume_unlearn.model import load
from lume_unlearn.training.checkpoints import whole_checkpoints
from lume_unlearn.training.distributed import is_first_process
from lume_unlearn.training.monitor import Throughput
from lume_unlearn.training.options import DistillConfig
from lume_unlearn.training.record import Record
from lume_unlearn.training.run import in_output, prepare, save
from lume_unlearn.training.signals import Stop

GENERATED = "generated.jsonl"
LAST = 10
"""Optimiser steps at the end over which the printed KL divergence is averaged."""


def distill(options: DistillConfig) -> Path:
    """Add noise to the weights of an unlearned model (see `noised`), and distil the model into the noised copy.

    The loss is the KL divergence from the unlearned model (see `kl_tokens`), token mean over all tokens of the texts:
    retain rows, generated texts and the file ``texts``. All weights are trained, and the result is saved as `run` does.

    Deviation: the paper distils on pretraining texts; with retain rows alone, the model loses other abilities.

    Returns:
        The output folder.

    Raises:
        ConfigError: an option that cannot work, training that diverged, or a write that failed.
        DataError: rows or texts that are faulty or do not fit the model.
        Interrupted: a signal stopped the run, and a checkpoint is saved.
    """
    return in_output(options.run_config(), partial(_read, options), partial(_distill, options))


def _read(options: DistillConfig, config: RunConfig) -> Inputs:
    """Return all texts, each once, as the forget rows of a run; a checkpoint's generated texts are read again."""
    inputs = load_inputs(config)
    texts, files = list(inputs.retain), []
    if options.generate:
        files.append(Path(config.output) / GENERATED)
        if is_first_process() and not (config.resume and whole_checkpoints(Path(config.output))):
            _generate(options, inputs.forget, files[0])
        PartialState().wait_for_everyone()
        texts += read_texts("texts", files[0], texts, "generated text")
    if options.texts is not None:
        files.append(Path(options.texts).expanduser())
        texts += read_texts("texts", files[-1], texts)
    if not texts:
        raise ConfigError("there is no text to distil on: give --retain with --forget, --texts or --generate")
    return Inputs(texts, retain=[], alternatives=None, checksums=inputs.checksums | checksums(files))


def _generate(options: DistillConfig, forget: list[Row], path: Path) -> None:
    """Sample texts from the generator and write them as documents; a chat model's hold its whole template.

    Raises:
        ConfigError: the generator cannot be loaded, gives too few texts, or the file cannot be written.
    """
    name = options.generator or options.model
    tokenizer = load.load_tokenizer(name, options.trust_remote_code)
    dtype = torch.bfloat16 if load.use_bfloat16(options.precision) else torch.float32
    model = load.load_model(name, dtype, options.trust_remote_code)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    known = [f"{row.input} {row.output}" for row in forget]
    rows, left_out = sampled_rows(model, tokenizer, known, (), options.generate, options.seed, options.ngram)
    shared = f"{left_out} more were left out, which share {options.ngram} words in a row with a forget row"
    if len(rows) < options.generate:
        raise ConfigError(
            f"--generate {options.generate}: {name} generated {len(rows)} usable texts; {shared}; lower --generate"
        )
    print(f"{name} generated {len(rows)} texts; {shared}", flush=True)
    texts = [row["text"] if "text" in row else chat_prompt(tokenizer, row["question"]) + row["answer"] for row in rows]
    with writing(path.parent):
        write_text(path, "".join(json.dumps({"document": text}, ensure_ascii=False) + "\n" for text in texts))


@torch.no_grad()
def add_noise(model: nn.Module, alpha: float, beta: float, seed: int) -> None:
    """Replace each trained weight by its `noised` one, in place; tied weights once."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.copy_(noised(weight, initial_weights(weight.shape, generator).to(weight), alpha, beta))


def _distill(
    options: DistillConfig, config: RunConfig, inputs: Inputs, record: Record, checkpoint: Path | None
) -> None:
    """Load the model, add noise, train, from ``checkpoint`` if there is one, and save."""
    stop, throughput = Stop(), Throughput()
    trainer, monitor = prepare(config, inputs, [throughput, record], [stop])
    trainer.remove_callback(monitor)  # its warnings are about unlearning
    # The reference model is a copy without noise. The weights of a checkpoint replace the noised ones.
    model: Any = trainer.model
    add_noise(model, options.alpha, options.beta, config.seed)
    with stop.listening():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        stop.raise_if_stopped(trainer.state)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        last = losses[-LAST:]
        speed = throughput.summary(trainer.trained_tokens)
        if trainer.is_world_process_zero():
            print(
                f"{len(inputs.forget)} texts, {trainer.state.global_step} optimiser steps: KL divergence from the "
                f"unlearned model {losses[0]:.4f} nats a token in the first step, {sum(last) / len(last):.4f} in the "
                f"last {len(last)}; {speed}",
                flush=True,
            )
        save(trainer, record, distill={"generator": options.generator, "texts": options.texts})
    stop.say_if_late()
