"""Normalise text for comparison: without case, accents and marks without meaning."""

import re
import unicodedata

EMAIL = r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Characters of scripts without spaces: Thai, Lao, Burmese, Khmer, Japanese, Chinese; for the brackets of a pattern."""
ATTACHED = f"{UNSPACED}\uac00-\ud7af"
"""The same and Korean, whose words carry particles; for the brackets of a pattern."""
_LETTERS = str.maketrans({"ł": "l", "ø": "o", "đ": "d", "\u0131": "i", "*": None, "\\": None, "\u00ad": None})


def folded(text: str) -> str:
    r"""Return a text in lower case without accents, in Unicode's compatibility form, with the digits 0 to 9.

    Vowel signs of Hebrew and Arabic and Markdown's ``*`` and ``\`` are removed, white space in a row becomes one space,
    and all dashes become "-".
    """
    plain = text.lower().translate(_LETTERS)
    if not plain.isascii():
        letters = unicodedata.normalize("NFKD", text).casefold().translate(_LETTERS)
        plain = unicodedata.normalize("NFKC", "".join(map(_simple, letters)))
    return re.sub(r"[^\S\n]+", " ", plain)


def _simple(char: str) -> str:
    if "\u0300" <= char <= "\u036f" or "\u0591" <= char <= "\u05c7" or "\u064b" <= char <= "\u0652":
        return ""
    if char.isdecimal():
        return str(unicodedata.decimal(char))
    return "-" if unicodedata.category(char) == "Pd" else char
