"""Small runs for the fault tests: how to start, break, resume and compare them."""

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import sklearn.feature_extraction.text  # noqa: F401  # draws a random number when it is first imported
import torch
import tqdm.auto
from transformers import AutoModelForCausalLM, AutoTokenizer

from lume_tasks.data.files import read_rows
from lume_unlearn.methods.registry import METHODS
from lume_unlearn.training.checkpoints import is_whole
from lume_unlearn.training.trainer import UnlearningTrainer
from tests.conftest import make_model, make_rows, make_tokenizer, start_run, write_rows

Run = partial[Path]
"""A call of `start_run`: ``run()`` starts it, ``run(resume=True)`` resumes it."""


class Broken(Exception):
    """Stands for whatever ends a run without warning."""


def write_inputs(folder: Path) -> Path:
    """A model with dropout, 7 forget rows, 5 retain rows, other answers to the forget rows, and texts never seen."""
    make_model(attention_dropout=0.1).save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    forget = make_rows("forget", 7)
    write_rows(folder / "data" / "forget.jsonl", forget)
    write_rows(folder / "data" / "retain.jsonl", make_rows("retain", 5))
    lines = [json.dumps({"id": row.id, "alternative": f"none of {row.id}"}) for row in forget]
    (folder / "others.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "unseen.jsonl").write_text('{"document": "nothing that anybody has ever read"}\n')
    return folder


def make(inputs: Path, output: Path, method: str = "gd", tuning: str = "lora", **options: Any) -> Run:
    """A run of at least four optimiser steps with several micro-batches each, saved after every step."""
    plain: dict[str, Any] = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 2e-3}
    plain |= {"max_tokens": 100, "lora_rank": 4, "lora_dropout": 0.1, "save_steps": 1, "monitor_steps": 2}
    plain |= {"model": str(inputs / "model"), "data": str(inputs / "data"), "disable_tqdm": True}
    if METHODS[method].needs.alternatives == "file":
        plain["alternatives"] = str(inputs / "others.jsonl")
    if METHODS[method].needs.hidden_states:
        plain["layer"] = 0
    return partial(start_run, method, output=str(output), tuning=tuning, **(plain | options))


def broken_off(run: Run, step: int) -> None:
    """Run, and break off in this step (counted from 1)."""
    own = UnlearningTrainer.training_step

    def training_step(trainer: UnlearningTrainer, *args: Any) -> Any:
        found = own(trainer, *args)
        if trainer.state.global_step == step - 1:
            raise Broken
        return found

    with mock.patch.object(UnlearningTrainer, "training_step", training_step), suppress(Broken):
        run()
        raise AssertionError("the run has fewer steps")


def assert_resumes(step: int, inputs: Path, folder: Path, *args: str, **options: Any) -> tuple[Path, Path]:
    """Check that a run broken off in this step and resumed equals a whole one; return both."""
    whole = make(inputs, folder / "whole", *args, **options)()
    broken = make(inputs, folder / "broken", *args, **options)
    broken_off(broken, step)
    assert_equal(whole, broken(resume=True))
    return whole, folder / "broken"


def record(output: Path) -> dict[str, Any]:
    """The record, without what differs from time to time."""
    found: dict[str, Any] = json.loads((output / "unlearning.json").read_text())
    del found["seconds"]
    return found


def trainer_state(path: Path) -> dict[str, Any]:
    """Trainer's state, without its note that it was asked to stop."""
    found: dict[str, Any] = json.loads(path.read_text())
    del found["stateful_callbacks"]["TrainerControl"]
    return found


def assert_equal(one: Path, other: Path) -> None:
    """Results, records and checkpoints of two runs are the same, byte for byte."""
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (one, other)]
    assert names[0] == names[1]
    for name in names[0]:
        ours, theirs = one / name, other / name
        if name.endswith("unlearning.json"):
            assert record(ours.parent) == record(theirs.parent)
        elif name.endswith("trainer_state.json"):
            assert trainer_state(ours) == trainer_state(theirs)
        elif ours.is_file() and ours.name != "complete.json":
            assert ours.read_bytes() == theirs.read_bytes(), f"{name} differs"
    assert all(is_whole(checkpoint) for checkpoint in other.glob("checkpoint-*"))


def nll_by_hand(folder: Path, inputs: Path, side: str) -> float:
    """Token mean of the NLL of a side's rows, from a saved model and its tokenizer, row by row."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    nlls = []
    for row in read_rows(inputs / "data" / f"{side}.jsonl"):
        prompt, ids = tokenizer.encode(row.input), tokenizer.encode(f"{row.input} {row.output}")
        ids = [*ids, tokenizer.eos_token_id]
        with torch.no_grad():
            lines = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        nlls += [-lines[place - 1, ids[place]].item() for place in range(len(prompt), len(ids))]
    return sum(nlls) / len(nlls)


def in_child(work: Callable[[], Any]) -> int:
    """Do something in a forked process; its id. It ends with 0, or 1 after an error that goes to stderr."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        _work_and_leave(work)
    return process


def _work_and_leave(work: Callable[[], Any]) -> NoReturn:
    status = 1
    try:
        torch.set_num_threads(1)
        for bars in (tqdm.std.tqdm, tqdm.auto.tqdm):
            bars.set_lock(threading.RLock())  # theirs is shared with the parent: a killed child would hold it for ever
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(process: int, within: float = 120) -> int:
    """Exit status of a child, negative for a signal; kills it where it hangs."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise AssertionError(f"process {process} did not end within {within} s")
