"""Find the fields of the user's objects that hold question and answer, a chat or a text; turn values into text."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

ALPACA = ("instruction", "output")
"""Fields of the Alpaca format, which also has the optional field "input"."""
PAIRS = (ALPACA, ("question", "answer"), ("input", "output"), ("prompt", "completion"), ("prompt", "response"))
CHATS = (("messages",), ("conversations",))
TEXTS = (("text",), ("content",), ("document",))


@dataclass(frozen=True)
class Options:
    """How to read the user's files.

    Attributes:
        input_field: field of the question, or of the text if there is no ``output_field``; None: found by usual names.
        output_field: field of the answer.
        document_field: rows with the same value here are one document; None: the field ``document``.
        label: task of rows without a field ``task``.
        where: ``COLUMN=VALUE`` or ``COLUMN!=VALUE``: selects the objects of the forget files to forget; the others
            become retain rows. None: forget all.
        encoding: of text files that are neither UTF-8 nor have a byte-order mark; None: detected.
    """

    input_field: str | None = None
    output_field: str | None = None
    document_field: str | None = None
    label: str = "own"
    where: str | None = None
    encoding: str | None = None


def names_of(obj: Mapping[str, Any], options: Options) -> tuple[str, ...] | None:
    """Return the names of the fields that hold question and answer, a chat or a text, preferably fields with values.

    A field ``content`` beside a field ``role`` is a chat turn, not a text.
    """
    named = tuple(lower_name(name) for name in (options.input_field, options.output_field) if name)
    candidates = ((named,) if named else ()) + PAIRS + CHATS + TEXTS
    there = [names for names in candidates if all(name in obj for name in names)]
    there = [names for names in there if names != ("content",) or "role" not in obj or names == named]
    filled = [names for names in there if not any(_empty(obj[name]) for name in names)]
    return next(iter(filled + there), None)


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def lower_names(obj: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with the names of its fields as `lower_name` returns them."""
    return {lower_name(name): value for name, value in obj.items()}


def lower_name(name: Any) -> str:
    """Return a name in lower case, without white space at its ends, and with a space for each line feed inside."""
    return " ".join(str(name).split()).lower()


def repeated(names: Iterable[Any]) -> str | None:
    """Return the first name that is there twice (see `lower_name`), None if there is none; "" does not count."""
    return next((name for name, number in Counter(map(lower_name, names)).items() if name and number > 1), None)


def quoted(text: str) -> str:
    """Return a name or value in quotation marks for a message: on one line, cut at 80 characters, all letters kept."""
    line = " ".join(text.split())
    return f'"{line if len(line) <= 80 else line[:77] + "..."}"'


def as_text(value: Any) -> str:
    """Return a value as text: "" for None or NaN, 3 for 3.0, only the date for midnight, JSON for lists, objects."""
    if value is None or value != value:  # NaN differs from itself
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime):
        return value.isoformat(" ").removesuffix(" 00:00:00")
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (dict, list)) else str(value)
