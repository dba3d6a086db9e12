"""One-line messages about wrong options of a command, with the option that was probably meant."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from lume_unlearn.checks import RANGES

WORDS = {**RANGES, int: "a whole number", float: "a number", bool: "true or false"}
RENAMED: dict[str, tuple[str, ...]] = {
    "adapter": ("peft", "model"),
    "adapter_path": ("adapter", "peft", "model"),
    **dict.fromkeys(("base", "base_model"), ("model",)),
    **dict.fromkeys(("batch", "batch_size", "bs"), ("batch_size", "per_device_train_batch_size")),
    "best_metric": ("metric_for_best_model",),
    **dict.fromkeys(("cuda", "gpu"), ("device",)),
    "dataset": ("data",),
    **dict.fromkeys(("epoch", "epochs"), ("num_train_epochs", "relearn_steps")),
    "evaluate_batch_size": ("per_device_eval_batch_size",),
    "evaluate_every": ("eval_strategy",),
    **dict.fromkeys(("learning_rate", "lr"), ("learning_rate", "relearn_rate")),
    "lora": ("adapter", "peft", "tuning", "tunings", "model"),
    "micro_batch_size": ("gradient_accumulation_steps",),
    **dict.fromkeys(("model_name_or_path", "model_path", "pretrained"), ("model", "model_dir")),
    **dict.fromkeys(("out", "output_dir"), ("output",)),
    "peft": ("adapter", "model"),
    "precision": ("bf16",),
    "resume_from_checkpoint": ("resume",),
    "warmup": ("warmup_steps",),
}
"""Option name in other programs or earlier versions to its names here; the first one that the command has is meant."""
VALUE = r".*Got value: (.*)|.*: (.*) does not conform|.*: could not convert string to float: '(.*)'"
"""Pattern of the refused value in a message of jsonargparse."""
TUNED = "compare tunes the learning rate; a recipe among --methods can name one"
STRAY = "not an option; a value with blanks needs quotes around it, and options are under --help"
ANSWERS = {
    **dict.fromkeys(("compare --learning_rate", "compare --lr"), TUNED),
    "forget --resume": "the same command continues by itself",
    **dict.fromkeys(("--cuda", "--device", "--gpu", "--gpus"), "choose the GPU with the variable CUDA_VISIBLE_DEVICES"),
    "--tokenizer": "the tokenizer is read from the folder of the model",
}
"""Advice for options that have no other name here; a key may begin with the command."""


def usage_error(message: str, command: str, actions: Mapping[str, Any]) -> str:
    """Return a one-line message about options that argparse or jsonargparse refuses.

    Args:
        message: their own error message.
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
        wanted = _in_words(actions.get(empty[1].lstrip("-")))
        return f"{empty[1]}: give a value" + (f", {wanted}" if wanted else "")
    wrong = re.match(r'Parser key "([^"]+)": (.*)', message)
    if not wrong:
        return message
    name, reason = wrong[1], wrong[2]
    wanted = _in_words(actions.get(name))
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


def _in_words(action: Any) -> str | None:
    """Describe the values that an option takes; None for a type without a description."""
    hint = getattr(action, "_typehint", None)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    words = [WORDS.get(kind) for kind in get_args(hint) or (hint,) if kind is not NoneType]
    return words[0] if len(words) == 1 else None
