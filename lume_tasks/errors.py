"""The error for data that cannot be used, and helpers that write its message."""

import json
import sys
import unicodedata
from collections.abc import Sequence
from functools import cache
from io import TextIOWrapper
from logging import Logger, getLogger

log = getLogger("lume_tasks")  # of all modules of the package
MAX_LINES = 1000  # of one message or one file


class DataError(ValueError):
    """Data that cannot be used. The message is for the user and lists everything wrong at once."""


class NotFinite(DataError):
    """A model returns numbers that are not finite, as after a training that diverged."""


def raise_problems(problems: Sequence[str], *head: str, most: int = MAX_LINES) -> None:
    """Raise one `DataError` that lists the problems, one per line, after ``head``; do nothing if there are none."""
    if problems:
        raise DataError("\n".join([*head, *first_few(problems, most)]))


def first_few(lines: Sequence[str], most: int = MAX_LINES) -> list[str]:
    """Return at most ``most`` lines, followed by the number of lines left out."""
    left_out = len(lines) - most
    return [*lines[:most], f"and {left_out:,} more"] if left_out > 0 else list(lines)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as "1 problem" or "2 problems"."""
    return f"{number} {noun}" + "s" * (number != 1)


def visible(text: str) -> str:
    r"""Escape control and invisible characters (Unicode category C), such as ``\x1b``; keep line feeds."""
    return "".join(ascii(c)[1:-1] if unicodedata.category(c)[0] == "C" and c != "\n" else c for c in text)


def print_any_letter() -> None:
    """Let stdout escape letters that the encoding of the terminal lacks, instead of failing."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@cache
def warn_once(log: Logger, message: str, *values: object) -> None:
    """Log a warning, unless the same one was logged before."""
    log.warning(message, *values)


def quote(text: str) -> str:
    """Return ``text`` as JSON in ASCII, cut at 80 characters, so that a digit of another script can be told apart."""
    return json.dumps(text if len(text) <= 80 else text[:77] + "...")


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its class if it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
