"""Does a generated answer give the truth away? Compared by value and by Unicode words, as pure functions."""

import re
import unicodedata
from collections.abc import Iterator
from difflib import SequenceMatcher

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from lume_tasks.metrics.text import rouge_recall

REPEATED = 0.5
"""ROUGE-L recall from which a text counts as known."""
LONG, ANSWERED = 5, 0.8
"""An answer of more words counts as known from this ROUGE-L recall, since a model may word it a little differently."""
NEAR = 0.9
"""Similarity of characters (difflib's ratio) from which a whole answer counts as the right one: a letter is missing."""
LONG_NUMBER = 7
"""Digits from which a number, as of a phone, is also found within a longer one: with a country code in front."""

_WORD = re.compile(r"[^\W_]+")
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
    r"\U00020000-\U0003ffff]"
)
"""Thai, Lao, Burmese, Khmer, Japanese, Chinese; and Korean, whose particles follow a word without a space."""
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = rf"\b(?P<month>{'|'.join(_MONTHS)})[a-z]*\.?"
_DAY, _YEAR = r"\b(?P<day>\d{1,2})(?:st|nd|rd|th)?", r"(?P<year>\d{4})(?!\d)"
_DATES = [
    re.compile(pattern)
    for pattern in (
        r"(?<!\d)(?P<year>\d{4})(?:[-/.]|\s*年\s*)(?P<month>\d{1,2})(?:[-/.]|\s*月\s*)(?P<day>\d{1,2})(?!\d)",
        rf"{_MONTH} ?{_DAY},? {_YEAR}",
        rf"{_DAY}(?: of)?[ -]{_MONTH},?[ -]{_YEAR}",
    )
]
_NUMERIC_DATE = re.compile(rf"(?<!\d)(?P<first>\d{{1,2}})[-/.](?P<second>\d{{1,2}})[-/.]{_YEAR}")
_THOUSANDS = re.compile(r"(?<=\d)[,.'\u2019 \u00a0\u202f](?=\d{3}(?!\d))")
_BETWEEN_DIGITS = re.compile(r"(?<=\d)[-. ()/]{1,3}(?=\d)")


def is_known(kind: str, truth: str, answer: str) -> bool:
    """Return whether a generated answer gives the truth away.

    A text (``kind`` "sc") is known from a ROUGE-L recall of `REPEATED`. A question's answer ("qa") is known if its
    words are in the generated one, in order and side by side; or, with all its numbers there, if it is long and its
    ROUGE-L recall is `ANSWERED`, or if nearly all characters are the same. Case, accents and punctuation do not count.
    Dates and numbers are compared by value in any usual notation; texts in scripts without spaces by their characters.

    Worked examples: "1990-01-02" is in "She was born on January 2, 1990."; "Ada" is not in "Adam"; "5551234567" is in
    "call 555-123-4567"; "東京" is in "彼は東京に住んでいます".

    Args:
        kind: "qa" or "sc".
        truth: the right answer, or the right continuation.
        answer: what the model generated.
    """
    if kind == "sc":
        return recall(truth, answer) >= REPEATED
    if not _WORD.search(truth):
        return truth.strip() in answer
    right, given = list(forms(truth)), list(forms(answer))
    if any(_contains(one, other) for one in right for other in given):
        return True
    numbers = set(re.findall(r"\d+", right[-1]))
    if not any(numbers <= set(re.findall(r"\d+", form)) for form in given):
        return False
    if len(_WORD.findall(truth)) > LONG and recall(truth, answer) >= ANSWERED:
        return True
    return SequenceMatcher(None, folded(truth), folded(answer)).ratio() >= NEAR


def recall(truth: str, answer: str) -> float:
    """Compute the ROUGE-L recall: the benchmark's for ASCII texts, of Unicode words (or characters) for others."""
    if truth.isascii():
        return rouge_recall(truth, answer)["rougeL"]
    return float(_SCORER.score(truth, answer)["rougeL"].recall)


def forms(text: str) -> Iterator[str]:
    """Yield a text in the notations that are compared: as written, and with numbers and dates by value.

    Dates become year-month-day, with the month or the day first where both can be meant; marks between digits go.
    """
    plain = folded(text)
    yield plain
    yield _BETWEEN_DIGITS.sub("", plain)
    for day_first in (True, False):
        yield _THOUSANDS.sub("", _with_dates(plain, day_first))


def folded(text: str) -> str:
    """Return a text in lower case without accents, in Unicode's compatibility form, with the digits 0 to 9."""
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    without = "".join(char for char in decomposed if not "\u0300" <= char <= "\u036f")
    digits = (str(unicodedata.decimal(char)) if char.isdecimal() else char for char in without)
    return unicodedata.normalize("NFKC", "".join(digits))


def _contains(truth: str, answer: str) -> bool:
    right, given = _WORD.findall(truth), _WORD.findall(answer)
    if _UNSPACED.search(truth):
        return "".join(right) in "".join(given)
    if len(right) == 1 and right[0].isdecimal() and len(right[0]) >= LONG_NUMBER:
        return any(right[0] in word for word in given)
    return any(given[start : start + len(right)] == right for start in range(len(given) - len(right) + 1))


def _with_dates(text: str, day_first: bool) -> str:
    def written(match: re.Match[str]) -> str:
        month = match["month"]
        number = int(month) if month.isdecimal() else _MONTHS.index(month) + 1
        return f" {match['year']}-{number:02}-{int(match['day']):02} "

    def numeric(match: re.Match[str]) -> str:
        first, second = int(match["first"]), int(match["second"])
        month, day = (second, first) if (day_first and second <= 12) or first > 12 else (first, second)
        return f" {match['year']}-{month:02}-{day:02} "

    for pattern in _DATES:
        text = pattern.sub(written, text)
    return _NUMERIC_DATE.sub(numeric, text)


class _Words(Tokenizer):
    """Unicode words without accents, and single characters of scripts without spaces."""

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens."""
        spaced = _UNSPACED.sub(lambda match: f" {match.group()} ", folded(text))
        return _WORD.findall(spaced)


_SCORER = RougeScorer(["rougeL"], tokenizer=_Words())
