"""Does a generated text give the truth away? Compared by value and by Unicode words, as pure functions.

ROUGE stays for the benchmark's own scores: it knows the letters a to z alone, and gives a wrong answer in the words of
a template most of the points of a right one.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache, partial

LONG = 5
"""An answer of more words need not be repeated whole: see `is_known`."""
SHARE = 0.5
"""Share of the words of a long answer that are its own, from which it counts as known."""
RUN = 8
"""Words in a row, one of them the row's own, from which a long answer counts as known."""
FEW = 3
"""Own words that `SHARE` needs at least, or all of them: with fewer, chance is too large."""
LONG_NUMBER = 6
"""Digits from which a number that is the row's own gives it away alone."""
GUESSED_NUMBER = 3
"""Digits up to which a number can be guessed."""
PHONE = 7
"""Digits from which a number is also found within a longer one, as with a country code in front."""
# fmt: off
_LANGUAGES = [
    "en", "de", "fr", "es", "it", "pt", "nl", "pl", "ru", "uk", "cs", "sk", "sv", "da", "nb", "fi", "tr", "el", "hu",
    "ro", "bg", "hr", "sl", "lt", "lv", "et", "zh", "ja", "ko", "ar", "he", "hi", "th", "vi", "id",
]
# fmt: on
"""Languages in which dates are read."""
_WORD = re.compile(r"[^\W_]+")
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
    r"\U00020000-\U0003ffff]+"
)
"""Thai, Lao, Burmese, Khmer, Japanese, Chinese; and Korean, whose particles follow a word without a space."""
_DATE = re.compile(
    r"(?<!\d)(?:\d{4}\s?[-/.年년]\s?\d{1,2}\s?[-/.月월]\s?\d{1,2}[日일]?"
    r"|\d{1,2}[-/.]\d{1,2}[-/.]\d{4}"
    r"|\d{1,2}(?:st|nd|rd|th|\.)?[\s-](?:\w{2}\s)?[^\W\d_]{3,}\.?,?[\s-](?:\w{2}\s)?\d{4}"
    r"|\b[^\W\d_]{3,}\.?\s\d{1,2}(?:st|nd|rd|th)?,?\s\d{4})(?!\d)"
)
"""What may be a date with its year, in folded text."""
_THOUSANDS = re.compile(r"(?<=\d)[,.'\u2019 \u00a0\u202f](?=\d{3}(?!\d))")
_BETWEEN_DIGITS = re.compile(r"(?<=\d)[-. ()/]{1,3}(?=\d)")
_YES_OR_NO = frozenset(("yes", "no", "true", "false", "ja", "nein", "oui", "non", "si"))


def is_known(kind: str, truth: str, answer: str, common: frozenset[str] = frozenset()) -> bool:
    """Return whether a generated text gives the truth away.

    A question's answer is known if its words are in the generated text, side by side and in order. Case, accents and
    punctuation do not count; dates and numbers are compared by value in any usual notation, dates also with the names
    of months in 35 languages; scripts without spaces by their characters.

    Of texts, and answers of more than `LONG` words, only words that are their own count: those that are not in
    ``common`` and have four letters or more. Known: a number of `LONG_NUMBER` digits or a date of its own is in the
    generated text; or `SHARE` of its own words, but at least `FEW` or all; or `RUN` words in a row, one of them its
    own. So a wrong answer in the words of a template is not known, and a text without words of its own never is.

    Worked examples: "1990-01-02" is in "She was born on January 2, 1990."; "Ada" is not in "Adam"; "5551234567" is in
    "call 555-123-4567"; "東京" is in "彼は東京に住んでいます".

    Args:
        kind: "qa" or "sc".
        truth: the right answer, or the right continuation.
        answer: what the model generated.
        common: words that say nothing about the row (see `words_of`): of its prompt, and of rows that the model may
            know.
    """
    if not _WORD.search(truth):
        return truth.strip() in answer
    has_date = _DATE.search(folded(truth)) is not None
    right, given = list(_forms(truth, has_date)), list(_forms(answer, has_date))
    if kind == "qa" and any(_contains(one, other) for one in right for other in given):
        return True
    wanted = _words(right[-1])
    if kind == "qa" and len(wanted) <= LONG:
        return False
    return _gives_away(wanted, [_words(form) for form in given], common)


def is_guess(truth: str, common: frozenset[str] = frozenset()) -> bool:
    """Return whether an answer may be right by chance: yes, no, a small number, or words that the model knows anyway.

    Args:
        truth: the right answer.
        common: see `is_known`.
    """
    own = {word for word in words_of(truth) if word not in common | _YES_OR_NO}
    return all(word.isdecimal() and len(word) <= GUESSED_NUMBER for word in own)


def words_of(*texts: str) -> frozenset[str]:
    """Return the words of texts as `is_known` compares them: folded, numbers and dates by value."""
    return frozenset(word for text in texts for form in _forms(text, True) for word in _words(form))


def folded(text: str) -> str:
    """Return a text in lower case without accents, in Unicode's compatibility form, with the digits 0 to 9."""
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    without = "".join(char for char in decomposed if not "\u0300" <= char <= "\u036f")
    digits = (str(unicodedata.decimal(char)) if char.isdecimal() else char for char in without)
    return unicodedata.normalize("NFKC", "".join(digits))


def _gives_away(wanted: list[str], given: list[list[str]], common: frozenset[str]) -> bool:
    own = {word for word in wanted if word not in common and not (word.isalpha() and word.isascii() and len(word) < 4)}
    for words in given:
        found = own.intersection(words)
        if any(word.isdecimal() and len(word) >= LONG_NUMBER for word in found):
            return True
        if found and len(found) >= max(SHARE * len(own), min(FEW, len(own))):
            return True
        runs = {tuple(words[start : start + RUN]) for start in range(len(words) - RUN + 1)}
        for start in range(len(wanted) - RUN + 1):
            run = tuple(wanted[start : start + RUN])
            if run in runs and own.intersection(run):
                return True
    return False


def _forms(text: str, dates: bool) -> Iterator[str]:
    """Yield a text in the notations that are compared: as written, and with numbers and, if asked for, dates by value.

    Dates become year-month-day, with the month or the day first where both can be meant; marks between digits go.
    """
    plain = folded(text)
    yield plain
    yield _THOUSANDS.sub("", plain)
    for order in ("DMY", "MDY") if dates else ("",):
        dated = _DATE.sub(partial(_dated, order), plain) if order else plain
        yield _BETWEEN_DIGITS.sub("", dated)


def _dated(order: str, match: re.Match[str]) -> str:
    return _as_date(match.group(), order)


@lru_cache(maxsize=4096)
def _as_date(text: str, order: str) -> str:
    """Return what may be a date as " yyyy-mm-dd ", or as it is if it is none."""
    import dateparser

    settings = {"DATE_ORDER": order, "STRICT_PARSING": True, "PARSERS": ["absolute-time"]}
    date = dateparser.parse(text, languages=_LANGUAGES, settings=settings)
    return f" {date:%Y-%m-%d} " if date else text


def _words(form: str) -> list[str]:
    """Return the words of a form; of scripts without spaces, pairs of neighbouring characters."""
    words = []
    for word in _WORD.findall(form):
        if _UNSPACED.search(word) and len(word) > 2:
            words += [word[start : start + 2] for start in range(len(word) - 1)]
        else:
            words.append(word)
    return words


def _contains(truth: str, answer: str) -> bool:
    right, given = _WORD.findall(truth), _WORD.findall(answer)
    if _UNSPACED.search(truth):
        return "".join(right) in "".join(given)
    if len(right) == 1 and right[0].isdecimal() and len(right[0]) >= PHONE:
        return any(right[0] in word for word in given)
    return any(given[start : start + len(right)] == right for start in range(len(given) - len(right) + 1))
