"""Does a generated text give the truth away? Compared by value and by Unicode words, as pure functions.

ROUGE stays for the benchmark's own scores: it knows the letters a to z alone, and gives a wrong answer in the words of
a template most of the points of a right one.
"""

import re
from collections.abc import Iterator
from functools import lru_cache, partial

from lume_tasks.data.text import ATTACHED, EMAIL, folded

LONG = 5
"""An answer of more words need not be repeated whole: see `is_known`."""
SHARE = 0.5
"""Share of the words of a long answer that are its own, from which it counts as known."""
FEW = 3
"""Own words that `SHARE` needs at least, or all of them: with fewer, chance is too large."""
RUN, LONG_RUN = 8, 12
"""Words in a row from which a long answer counts as known: with one that is the row's own, and without."""
SECRET = 6
"""Digits, or letters and digits, from which a word that is the row's own gives it away alone; so does an e-mail."""
GUESSED_NUMBER = 3
"""Digits up to which a number can be guessed."""
PHONE, LOCAL = 9, 8
"""Digits from which a number is compared by its last ones, as the country code may differ, and by how many."""
# fmt: off
_LANGUAGES = [
    "en", "de", "fr", "es", "it", "pt", "nl", "pl", "ru", "uk", "cs", "sk", "sv", "da", "nb", "fi", "tr", "el", "hu",
    "ro", "bg", "hr", "sl", "lt", "lv", "et", "zh", "ja", "ko", "ar", "he", "hi", "th", "vi", "id",
]
# fmt: on
"""Languages in which dates are read."""
_WORD = re.compile(r"[^\W_]+")
_UNSPACED = re.compile(f"[{ATTACHED}]+")
"""Also Korean, whose particles follow a word without a space."""
_DATE = re.compile(
    r"(?<!\d)(?:\d{4}\s?[-/.년年]\s?\d{1,2}\s?[-/.月월]\s?\d{1,2}[日일]?"
    r"|\d{1,2}\s?[-/.]\s?\d{1,2}\s?[-/.]\s?\d{4}"
    r"|\d{1,2}(?:st|nd|rd|th|er|\.)?[\s-]?(?:\w{2}\s)?[^\W\d_]{3,}\.?,?[\s-](?:\w{2,3}\s)?\d{4}"
    r"|\b[^\W\d_]{3,}\.?\s(?:the\s)?\d{1,2}(?:st|nd|rd|th)?,?\s\d{4})(?!\d)"
)
"""What may be a date with its year, in folded text."""
_THOUSANDS = re.compile(r"(?<=\d)[,.'\u2019 \u00a0\u202f](?=\d{3}(?!\d))")
_DIGITS = re.compile(r"\+?\d(?:[-. ()/]{0,3}\d)+")
_UMLAUTS = re.compile(r"(?<=[aou])e")
_ANSWERS = frozenset(
    ("yes", "no", "true", "false", "ja", "nein", "oui", "non", "si", "да", "нет", "はい", "いいえ", "是", "否")
)


def is_known(kind: str, truth: str, answer: str, common: frozenset[str] = frozenset()) -> bool:
    """Return whether a generated text gives the truth away.

    It does if the words of the truth are in it, side by side and in order; of a question's answer of up to `LONG`
    words, in any order, without words of under four letters, and with numbers only beside an own word. Case, accents
    and punctuation do not count; dates and numbers are compared by value in any usual notation, dates also with the
    names of months in 35 languages; scripts without spaces by their characters. Yes, no and single letters count as
    the first word only.

    Of texts and longer answers, parts count, too, but only by words that are their own: those that are not in
    ``common`` and have four letters or more. Known: an e-mail address, a date, or a number or code of `SECRET`
    characters of its own is in the generated text; or `SHARE` of its own words, but at least `FEW` or all; or `RUN`
    words in a row, one of them its own, or `LONG_RUN` of any. So a wrong answer in the words of a template is not
    known.

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
    pairs = list(zip(_forms(truth, has_date), _forms(answer, has_date), strict=True))
    if is_short(truth):
        return any(_WORD.findall(one) == _WORD.findall(other)[:1] for one, other in pairs)
    if any(_contains(one, other) for one, other in pairs):
        return True
    return any(_gives_away(kind, _words(one), _words(other), common) for one, other in pairs)


def is_short(truth: str) -> bool:
    """Return whether an answer is yes, no or a single letter."""
    words = _WORD.findall(folded(truth))
    return len(words) == 1 and (words[0] in _ANSWERS or (len(words[0]) == 1 and not words[0].isdecimal()))


def is_guess(truth: str, common: frozenset[str] = frozenset()) -> bool:
    """Return whether an answer may be right by chance.

    Yes, no, a single letter, a small number, or an e-mail address made of words in ``common``, as of the name.
    """
    form = folded(truth)
    words = _WORD.findall(form)
    small = len(words) == 1 and words[0].isdecimal() and len(words[0]) <= GUESSED_NUMBER
    return is_short(truth) or small or (re.fullmatch(EMAIL, form.strip()) is not None and common.issuperset(words))


def words_of(*texts: str) -> frozenset[str]:
    """Return the words of texts as `is_known` compares them: folded, numbers and dates by value."""
    return frozenset(word for text in texts for form in _forms(text, True) for word in _words(form))


def _gives_away(kind: str, wanted: list[str], given: list[str], common: frozenset[str]) -> bool:
    own = {word for word in wanted if _counts(word) and not _follows(word, common)}
    found = own.intersection(given)
    if any(_is_secret(word) for word in found) or any(_same_number(word, given) for word in own):
        return True
    if kind == "qa" and len(wanted) <= LONG:
        counted = {word for word in wanted if _counts(word)}
        numbers = {word for word in counted if word.isdecimal()}
        return len(counted) > 1 and counted <= set(given) and (not numbers or bool(own - numbers))
    if found and len(found) >= max(SHARE * len(own), min(FEW, len(own))):
        return True
    names = {word for word in own if not word.isdecimal() or len(word) >= SECRET}
    repeated = _runs(wanted, RUN) & _runs(given, RUN)
    return any(map(names.intersection, repeated)) or bool(_runs(wanted, LONG_RUN) & _runs(given, LONG_RUN))


def _follows(word: str, common: frozenset[str]) -> bool:
    """Return whether a word is common, or an e-mail address made of common words, as of the person's name."""
    return word in common or ("@" in word and common.issuperset(_WORD.findall(word)))


def _counts(word: str) -> bool:
    """Return whether a word is long enough to say something."""
    return len(word) > 3 or not word.isascii() or not word.isalpha()


def _is_secret(word: str) -> bool:
    return "@" in word or (len(word) >= SECRET and any(char.isdecimal() for char in word))


def _same_number(word: str, given: list[str]) -> bool:
    """Return whether a long number, as of a phone, is in a text, with another country code in front."""
    if not word.isdecimal() or len(word) < PHONE:
        return False
    return any(other.isdecimal() and len(other) >= LOCAL and other.endswith(word[-LOCAL:]) for other in given)


def _runs(words: list[str], size: int) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


def _forms(text: str, dates: bool) -> Iterator[str]:
    """Yield a text in the notations that are compared, always the same ones in the same order.

    As written; with umlauts as one letter; without marks between thousands; and with numbers and, if asked for, dates
    by value: year-month-day, with the day or the month first where both can be meant; marks between digits go.
    """
    plain = folded(text)
    yield plain
    yield _UMLAUTS.sub("", plain)
    yield _THOUSANDS.sub("", plain)
    if not (dates and _DATE.search(plain)):
        yield from [_DIGITS.sub(_joined, plain)] * 2
        return
    for order in ("DMY", "MDY"):
        yield _DIGITS.sub(_joined, _DATE.sub(partial(_dated, order), plain))


def _joined(match: re.Match[str]) -> str:
    digits = re.sub(r"\D", "", match.group())
    return digits if len(digits) >= SECRET else match.group()


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
    """Return the words of a form, e-mails also whole; of scripts without spaces, pairs of neighbouring characters."""
    words = []
    for word in re.findall(rf"{EMAIL}|{_WORD.pattern}", form):
        if "@" in word:
            words += [word, *_WORD.findall(word)]
        elif _UNSPACED.search(word) and len(word) > 2:
            words += [word[start : start + 2] for start in range(len(word) - 1)]
        else:
            words.append(word)
    return words


def _contains(truth: str, answer: str) -> bool:
    right, given = _WORD.findall(truth), _WORD.findall(answer)
    if _UNSPACED.search(truth):
        return "".join(right) in "".join(given)
    return any(given[start : start + len(right)] == right for start in range(len(given) - len(right) + 1))
