"""The error that users see, and helpers for its text."""

import json
import unicodedata

_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


class DataError(ValueError):
    """Data that cannot be used. The message is meant for the user and lists everything wrong at once."""

    def __str__(self) -> str:
        """The message without control characters, which a name in it could carry to the terminal."""
        return visible(super().__str__())


def visible(text: str) -> str:
    r"""The text with control and invisible characters written out, such as ``\x1b`` or ``\u202e``; line feeds stay."""
    if text.isprintable():
        return text
    return "".join(
        char if char == "\n" or unicodedata.category(char) not in _HIDDEN else ascii(char)[1:-1] for char in text
    )


def quote(text: str) -> str:
    """Show ``text`` as JSON in ASCII, cut at 80 characters: printable whatever it holds, and found by a search."""
    return json.dumps(text if len(text) <= 80 else text[:77] + "...")


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, printable, or its class where it has none."""
    return visible(str(error).strip().partition("\n")[0]) or type(error).__name__


def describe(value: object) -> str:
    """Name the JSON type of ``value`` as a user would."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, bytes):
        return "binary data"
    if isinstance(value, (int, float)):
        return "a number"
    names: dict[type, str] = {str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")
