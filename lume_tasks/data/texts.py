"""Cut a text into parts that a model must complete."""

import re
from bisect import bisect_left, bisect_right
from itertools import accumulate, pairwise

from lume_tasks.data.items import Item
from lume_tasks.data.text import MARKS, UNSPACED

PART_WORDS, PART_CHARACTERS = 60, 200
"""Largest part of a long text, in words, or in characters for scripts without spaces."""
_AIM = 0.8  # planned share of the largest part, so that parts can end where a sentence does
_AWAY = 0.35  # share of a part by which a cut may move to reach a sentence end

_UNIT = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
_CLOSING = "[\"'\u201d\u2019\u300d\u300f\uff09)\\]]"
_SENTENCE_END = re.compile(
    rf"[.!?\u2026\u061f\u06d4\u0964]{_CLOSING}*(?=\s)|[\u3002\uff01\uff1f\uff61\u104b\u17d4]{_CLOSING}*(?!{_CLOSING}|\Z)"
)
_WORD_END = re.compile(rf"(?<=\S)(?=\s)|(?<=[{UNSPACED}])(?=[{UNSPACED}])(?![{MARKS}])")
_ENDS = (("sentence", _SENTENCE_END), ("word", _WORD_END))
_OFF = 0.25  # share of a short text by which a sentence end may be off its middle; further off, it may end "Mr."


def completions(text: str) -> list[Item]:
    """Return a text as rows to complete: one row, or for a long text one for each part and the part after it.

    A text of up to two parts (of `PART_WORDS` words) is cut in two. A longer one is cut into parts of about equal size;
    the first row's output is the second part, the second row's the third, and so on.

    Returns:
        The rows; none for a text of one word.
    """
    parts = _parts(text.strip())
    if len(parts) > 1:
        return [Item("sc", first, second, note) for (first, _), (second, note) in pairwise(parts)]
    item = cut(text)
    return [item] if item else []


def cut(text: str) -> Item | None:
    """Cut a text in two at the sentence end nearest to its middle, or if none is near, between two words.

    Returns:
        The two parts without white space around the cut; None for a text of one word.
    """
    text = text.strip()
    for note, pattern in _ENDS:
        ends = [match.end() for match in pattern.finditer(text)]
        end = min(ends, key=lambda end: abs(2 * end - len(text)), default=0)
        if end and (note == "word" or abs(end / len(text) - 0.5) <= _OFF):
            return Item("sc", text[:end], text[end:].lstrip(), note)
    return None


def _parts(text: str) -> list[tuple[str, str]]:
    """Cut a text into parts of size 1 (`PART_WORDS` words) or less, each with a note on where it begins.

    Returns:
        The parts; if the text has a size of at most 2, the whole text is the only part.
    """
    units = list(_UNIT.finditer(text))
    most = (PART_CHARACTERS if re.match(f"[{UNSPACED}]", unit[0]) else PART_WORDS for unit in units)
    sizes = list(accumulate((1 / number for number in most), initial=0.0))
    if sizes[-1] <= 2 + 1e-9:  # rounding of the sums
        return [(text, "")]
    starts = [unit.start() for unit in units]

    def size(end: int) -> float:
        return sizes[bisect_right(starts, end - 1)]

    ends = {note: [(size(match.end()), match.end()) for match in pattern.finditer(text)] for note, pattern in _ENDS}
    number = int(sizes[-1] / _AIM) + 1
    cuts = [(0, "")]
    done = 0.0
    for left in range(number, 1, -1):
        aim = done + (sizes[-1] - done) / left
        low, high = max(done, aim - _AWAY, sizes[-1] - (left - 1)), min(done + 1, aim + _AWAY)
        for note, places in ends.items():
            near = places[bisect_left(places, (low, 0)) : bisect_right(places, (high, len(text)))]
            near = [(at, end) for at, end in near if at > done]
            if near:
                done, end = min(near, key=lambda place: abs(place[0] - aim))
                cuts.append((end, note))
                break
    limits = [*(end for end, _ in cuts), len(text)]
    return [(text[a:b].strip(), note) for (a, b), (_, note) in zip(pairwise(limits), cuts, strict=True)]
