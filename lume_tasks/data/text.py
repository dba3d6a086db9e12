"""Cut text into words, and normalise it for comparison: without case, accents and marks without meaning."""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import takewhile

_SIGNS = "".join(char if unicodedata.category(char) in ("Mn", "Mc") else " " for char in map(chr, range(0x300, 0xFE00)))
MARKS = "".join(f"{run[0]}-{run[-1]}" for run in _SIGNS.split()) + "\u0e33\u0eb3"
r"""Accents and vowel signs, which belong to the letter before, most not in ``\w``; for the brackets of a pattern."""
_INVISIBLE = "\u00ad\u200c\u200d"  # soft hyphens and joiners
WORD = re.compile(rf"\w[\w{MARKS}{_INVISIBLE}]*")
r"""A word with its marks, at which ``\w+`` would cut it."""
_UNSPACED_LETTERS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
"""Thai, Lao, Burmese, Khmer: characters of alphabets without spaces; for the brackets of a pattern."""
_UNSPACED_LETTER = re.compile(f"[{_UNSPACED_LETTERS}]")
UNSPACED = f"{_UNSPACED_LETTERS}\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""The same, Japanese and Chinese: characters of all scripts without spaces; for the brackets of a pattern."""
ATTACHED = f"{UNSPACED}\uac00-\ud7af"
"""The same and Korean, whose words carry particles; for the brackets of a pattern."""
EMAIL = rf"(?=[\w.+-]+@)(?:[^\W{ATTACHED}]|[.+-])+@(?:[^\W{ATTACHED}]|-)+(?:\.(?:[^\W{ATTACHED}]|-)+)+"
_APOSTROPHES, _HYPHENS = "'\u2019\u02bc", "-\u2010\u2011"
_UMLAUTS = {"ä": "ae", "ö": "oe", "ü": "ue"}
_PARTS = re.compile(r"(?P<point>\. ?)(?=\w)|[aou]e|.", re.IGNORECASE | re.DOTALL)
_LETTERS = str.maketrans({"ł": "l", "ø": "o", "đ": "d", "\u0131": "i", **dict.fromkeys(f"*\\{_INVISIBLE}")})


def folded(text: str) -> str:
    r"""Return a text in lower case without accents, in Unicode's compatibility form, with the digits 0 to 9.

    Vowel signs of Hebrew and Arabic, joiners, and Markdown's ``*`` and ``\`` are removed, white space in a row becomes
    one space, and all dashes become "-".
    """
    plain = text.lower().translate(_LETTERS)
    if not plain.isascii():
        letters = unicodedata.normalize("NFKD", text).casefold().translate(_LETTERS)
        plain = unicodedata.normalize("NFKC", "".join(map(_simple, letters)))
    return re.sub(r"[^\S\n]+", " ", plain)


def plain(text: str) -> str:
    """Return the words of a text, folded, with a space between them."""
    return " ".join(WORD.findall(folded(text)))


def _simple(char: str) -> str:
    kind = unicodedata.category(char)
    # U+0653 to U+0655 stay: they make other letters, with which NFKC joins them.
    if kind == "Mn" and ("\u0300" <= char <= "\u0652" or "\u0656" <= char <= "\u06ed"):
        return ""
    if char.isdecimal():
        return str(unicodedata.decimal(char))
    return "-" if kind == "Pd" else char


def runs(word: Sequence[str]) -> list[tuple[int, int]]:
    """Return start and end of the runs of two characters, or of four in an alphabet such as Thai, in a word.

    They stand for the words in a text without spaces. A shorter word is one run.
    """
    size = 4 if any(map(_UNSPACED_LETTER.match, word)) else 2
    return [(start, min(start + size, len(word))) for start in range(max(len(word) - size + 1, 1))]


def alike(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens the beginnings of two sequences have in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _spelt(match: re.Match[str]) -> str:
    """Return a pattern for a letter, sign or pair of a name in the spellings of other systems, such as "ae" for "ä"."""
    found = match.group()
    if match["point"]:
        return r"\. ?"
    for signs in (_APOSTROPHES, _HYPHENS):
        if found in signs:
            return f"[{signs}]"
    forms = {found, unicodedata.normalize("NFD", found)}
    for umlaut, two in _UMLAUTS.items():
        if found.lower() in (umlaut, two):
            other = umlaut if found.lower() == two else two
            other = other.upper() if found.isupper() else other.title() if found[0].isupper() else other
            forms |= {other, unicodedata.normalize("NFD", other)}
    return f"(?:{'|'.join(map(re.escape, sorted(forms)))})"


@lru_cache(maxsize=4096)
def whole(
    *words: str, first: str = "", genitive: bool = False, any_case: bool = False, spelt: bool = False
) -> re.Pattern[str]:
    """Return a pattern that finds any of the words where it is no part of a longer word; the first takes precedence.

    Letters of the scripts in `ATTACHED` may be directly beside a word, but no vowel sign may follow it. ``first``:
    a pattern in front of the word. ``genitive``: an s may follow it. ``spelt``: with any apostrophe and hyphen, with
    initials with or without a space, with accents as characters of their own (NFD), and with ä, ö, ü as ae, oe, ue or
    the reverse.
    """
    case = "i" * any_case
    patterns = [_PARTS.sub(_spelt, unicodedata.normalize("NFC", word)) if spelt else re.escape(word) for word in words]
    before = rf"{first}(?<![^\W{ATTACHED}]|(?![{ATTACHED}])[{MARKS}])"
    after = rf"(?=(?{case}:{'s?' * genitive})(?![^\W{ATTACHED}]|[{MARKS}]))"
    return re.compile(rf"{before}(?{case}:{'|'.join(patterns)}){after}")
