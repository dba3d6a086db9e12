"""What is wrong with the options of a command, in one line, with the option that was probably meant."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from lume_unlearn.checks import RANGES

WORDS = {**RANGES, int: "a whole number", float: "a number", bool: "true or false"}
RATE = ("learning_rate", "relearn_rate")
BATCH = ("batch_size", "per_device_train_batch_size")
EPOCHS = ("num_train_epochs", "relearn_steps")
MODEL = ("model", "model_dir")
DEVICE = ("device",)
RENAMED: dict[str, tuple[str, ...]] = {
    "adapter": ("peft", "model"),
    "adapter_path": ("adapter", "peft", "model"),
    "base": ("model",),
    "base_model": ("model",),
    "batch": BATCH,
    "batch_size": BATCH,
    "best_metric": ("metric_for_best_model",),
    "bs": BATCH,
    "cuda": DEVICE,
    "dataset": ("data",),
    "epoch": EPOCHS,
    "epochs": EPOCHS,
    "evaluate_batch_size": ("per_device_eval_batch_size",),
    "evaluate_every": ("eval_strategy",),
    "gpu": DEVICE,
    "learning_rate": RATE,
    "lora": ("adapter", "peft", "tuning", "tunings", "model"),
    "lr": RATE,
    "micro_batch_size": ("gradient_accumulation_steps",),
    "model_name_or_path": MODEL,
    "model_path": MODEL,
    "out": ("output",),
    "output_dir": ("output",),
    "peft": ("adapter", "model"),
    "precision": ("bf16",),
    "pretrained": MODEL,
    "resume_from_checkpoint": ("resume",),
    "warmup": ("warmup_steps",),
}
"""What other programs, or earlier versions, call an option: its names here, of which the first that a command has."""
VALUE = r".*Got value: (.*)|.*: (.*) does not conform|.*: could not convert string to float: '(.*)'"
"""Where a message of jsonargparse names the value that it refuses."""
TUNED = "compare tunes the learning rate; a recipe among --methods can name one"
ON_GPU = "the variable CUDA_VISIBLE_DEVICES chooses the GPU"
STRAY = "not an option; a value with blanks needs quotes around it, and options are under --help"
ANSWERS = {
    "compare --learning_rate": TUNED,
    "compare --lr": TUNED,
    "forget --resume": "the same command continues by itself",
    "--cuda": ON_GPU,
    "--device": ON_GPU,
    "--gpu": ON_GPU,
    "--gpus": ON_GPU,
    "--tokenizer": "the tokenizer is read from the folder of the model",
}
"""What to say of options that have no other name here."""


def usage_error(message: str, command: str, actions: Mapping[str, Any]) -> str:
    """Return what is wrong with the options, in one line.

    Args:
        message: of argparse or jsonargparse.
        command: name of the command.
        actions: name of an option, without dashes, to its action.
    """
    message = " ".join(message.split())
    if unknown := re.match(r"unrecognized arguments: (.*)|Option '(.*)' is not accepted", message):
        words = (unknown[1] or f"--{unknown[2]}").split()
        given = [word.split("=")[0] for word in words if word.startswith("-")]
        return "; ".join(_unknown(name, command, actions) for name in given) or f"{words[0]}: {STRAY}"
    if missing := re.match(r"the following arguments are required: (.*)", message):
        named = [f"--{name}" if name in actions else name for name in missing[1].split(", ")]
        return f"give {', '.join(named)}; see --help"
    if empty := re.match(r"argument (--\w+): expected", message):
        wanted = _in_words(_hint(actions.get(empty[1].lstrip("-"))))
        return f"{empty[1]}: give a value" + (f", {wanted}" if wanted else "")
    wrong = re.match(r'Parser key "([^"]+)": (.*)', message)
    if not wrong:
        return message
    name, reason = wrong[1], wrong[2]
    wanted = _in_words(_hint(actions.get(name)))
    value = re.search(VALUE, reason)
    return f"--{name} {value[value.lastindex or 0]}: must be {wanted}" if wanted and value else f"--{name}: {reason}"


def _unknown(option: str, command: str, known: Iterable[str]) -> str:
    name = option.lstrip("-").replace("-", "_")
    near = [other for other in RENAMED.get(name, ()) if other in known]
    answer = ANSWERS.get(f"{command} --{name}") or ANSWERS.get(f"--{name}")
    if answer and "model" in known and (not near or f"{command} --{name}" in ANSWERS):
        return f"{option}: no such option; {answer}"
    near = near or get_close_matches(name, known, 1)
    return f"{option}: no such option; " + (f"did you mean --{near[0]}?" if near else "see --help")


def _hint(action: Any) -> Any:
    return getattr(action, "_typehint", None)


def _in_words(hint: Any) -> str | None:
    """Return what a value of this type is, or None for a type without words."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    words = [WORDS.get(kind) for kind in get_args(hint) or (hint,) if kind is not NoneType]
    return words[0] if len(words) == 1 else None
