"""The parser of a command: errors in one line, suggestions, recipes, and options from the fields of a dataclass."""

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING
from difflib import get_close_matches
from enum import Enum
from inspect import isclass
from types import NoneType
from typing import Any, Literal, Union, get_args, get_type_hints

import jsonargparse

from lume_unlearn.checks import NonNegativeInt, PositiveFloat, PositiveInt, Share
from lume_unlearn.cli import COMMANDS
from lume_unlearn.errors import ConfigError
from lume_unlearn.recipes import find_recipe, read_recipe

UNSET = argparse.SUPPRESS
"""Default of an option that is passed on only if it is given, so that the library's own default applies."""
KINDS: dict[str, Any] = {
    "split": Literal["all", "train", "validation", "test"],
    "loss_on": Literal["text", "answer"],
    "rows": Literal["all", "retain"],
    **dict.fromkeys(("chat", "resume", "retrain", "show_pii", "trust_remote_code"), bool),
    **dict.fromkeys(("limit", "seed"), NonNegativeInt),
    **dict.fromkeys(("batch_size", "controls", "lora_alpha", "lora_rank", "max_new_tokens", "samples"), PositiveInt),
    **dict.fromkeys(("relearn_steps", "relearn_rows", "tries"), PositiveInt),
    **dict.fromkeys(("minutes", "relearn_rate", "temperature", "top_p"), PositiveFloat),
    **dict.fromkeys(("keep", "lora_dropout", "until"), Share),
}
"""Types of those options of `add_texts` that are not strings."""
SHARED = {
    "data": "Data directory; default LUME_DATA_DIR, else the published LUME.",
    "split": "Rows to use (default: all).",
    "trust_remote_code": "Run code that a hub model brings along.",
}
"""Options that several commands share, with their help."""
TRAINER: Mapping[str, str] = {
    "eval_strategy": "When to score the model on the rows and keep the best weights in best/: no, steps or epoch.",
    "gradient_checkpointing": "Recompute activations in the backward pass: less memory, a third more time.",
    "optim": "Optimiser, under its name in transformers' `OptimizerNames`.",
}
"""Help of Trainer's options whose own help refers to other pages or other names."""


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help that shows the default of each option that has one, and hides the options that `OtherHelp` prints."""

    def add_argument(self, action: argparse.Action) -> None:
        """Add an option to the help unless it is hidden."""
        if not getattr(action, "other", False):
            super().add_argument(action)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class Parser(jsonargparse.ArgumentParser):
    """A parser whose printed configuration is a recipe."""

    def dump(self, cfg: Any, *args: Any, **kwargs: Any) -> str:
        """Return the given options as YAML, without those that a recipe may not set."""
        cfg = cfg.clone()
        cfg.pop("trust_remote_code", None)
        return str(super().dump(cfg, *args, **kwargs))


def parse(command: str, module: Any, argv: Sequence[str]) -> dict[str, Any]:
    """Read the options of a command, from the command line and from recipes (``--config``), which it overrides.

    Raises:
        ConfigError: unknown options, values of the wrong type, or a recipe that cannot be used.
        SystemExit: help or configuration was printed.
    """
    settings: dict[str, Any] = {"formatter_class": Formatter, "allow_abbrev": False, "exit_on_error": False}
    settings |= {"description": COMMANDS[command], "epilog": getattr(module, "EXIT_STATUS", None)}
    parser = Parser(prog=f"lume-unlearn {command}", **settings)
    module.add_options(parser)
    needed = [action.option_strings[0] for action in parser._actions if action.required and action.option_strings]
    words = [f"{action.dest} [{action.dest} ...]" for action in parser._actions if not action.option_strings]
    words += [f"{name} {name.lstrip('-').upper()}" for name in needed]
    parser.usage = " ".join(["%(prog)s", *words, "[options]"])
    for action in parser._actions:
        if getattr(action, "_typehint", None) is bool:  # --resume is short for --resume true
            action.nargs, action.const = "?", True
    try:
        options: dict[str, Any] = parser.parse_args(_recipes_first(argv)).as_dict()
    except argparse.ArgumentError as error:
        raise ConfigError(_usage_error(str(error), parser._option_string_actions)) from error
    recipe, given = options.pop("config", None), any("--trust_remote_code" in word for word in argv)
    if recipe and options.get("trust_remote_code") and not given:
        raise ConfigError("--config: a recipe may not set trust_remote_code; give it on the command line")
    return {name: value for name, value in options.items() if value is not None}  # null in a recipe: the default


def _usage_error(message: str, known: Iterable[str]) -> str:
    """Return a message of argparse or jsonargparse in one line, with the option that was probably meant."""
    message = " ".join(message.split())
    if unknown := re.match(r"unrecognized arguments: (?:.*? )?(-[^ =]+)|Option '(.*)' is not accepted", message):
        option = unknown[1] or f"--{unknown[2]}"
        near = get_close_matches(option.lstrip("-").replace("-", "_"), [name.lstrip("-") for name in known], 1)
        return f"{option}: no such option; " + (f"did you mean --{near[0]}?" if near else "see --help")
    return re.sub(r'^Parser key "([^"]+)":', r"--\1:", message)


def _recipes_first(argv: Sequence[str]) -> list[str]:
    """Move each ``--config RECIPE`` to the front, so that options override it; replace shipped names by paths.

    Raises:
        ConfigError: a recipe cannot be read.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config", action="append", default=[])
    found, others = finder.parse_known_args(argv)
    for name in found.config:
        read_recipe(name)  # jsonargparse would not name a file that it cannot read
    return [*(f"--config={find_recipe(name)}" for name in found.config), *others]


def add_texts(parser: Any, texts: Mapping[str, str], required: Sequence[str] = ()) -> None:
    """Add an option for each name and help text, with the types of `KINDS`; options not given are not passed on."""
    for name, text in texts.items():
        kind = KINDS.get(name, str)
        parser.add_argument(f"--{name}", type=kind, required=name in required, default=UNSET, help=text)


def add_fields(
    parser: Any, names: Iterable[str], shown: Iterable[str] | None = None, texts: Mapping[str, str] | None = None
) -> None:
    """Add options for fields of a dataclass, passed on only if given; ``--help`` lists ``shown`` (None: all).

    ``texts`` replaces the help of some fields, with their default.
    """
    from lume_unlearn.training.arguments import UnlearningArguments

    texts = {**TRAINER, **(texts or {})}
    hints, known = get_type_hints(UnlearningArguments), UnlearningArguments.__dataclass_fields__
    for name in names:
        default = known[name].default
        text = known[name].metadata.get("help", "")
        text = texts.get(name, text)
        if default not in (MISSING, None) and "(default: " not in text:
            text += f" (default: {default})"
        action = parser.add_argument(f"--{name}", type=_plain(hints[name]), default=UNSET, help=text)
        action.other = shown is not None and name not in shown


def _plain(hint: Any) -> Any:
    """Return the type of an option from a type hint: without None, and a Literal or str instead of an Enum."""
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    enums = [kind for kind in kinds if isclass(kind) and issubclass(kind, Enum)]
    if enums:  # Trainer itself checks large Enums (optimizers, schedules)
        return Literal[tuple(member.value for member in enums[0])] if len(enums[0]) < 5 else str
    return Union[tuple(kinds)] if NoneType in get_args(hint) else hint  # noqa: UP007 (a tuple of types)


class OtherHelp(argparse.Action):
    """Print the options that ``--help`` leaves out."""

    def __call__(self, parser: Any, *args: Any) -> None:
        """Print and exit."""
        for action in parser._actions:
            action.other = not getattr(action, "other", False)
        parser.print_help()
        parser.exit()
