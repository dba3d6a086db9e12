"""Forget rows rewritten about persons who do not exist, and the words that only one row has."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from lume_tasks.data.invented import control_names, family_names, texts_of
from lume_tasks.data.rows import Row
from lume_tasks.data.subjects import find_subjects, holds, named_in_part, renamed
from lume_tasks.data.text import MARKS, UNSPACED, WORD, folded, runs
from lume_tasks.metrics.matching import is_guess
from lume_unlearn.data.encode import Tokens
from lume_unlearn.data.substitutes import variants

OF_VERDICT, OF_TRY = (0, 99), (101, 39)
"""Seed and number of the invented names in the swap test of a verdict (by default), and of a try of `forget`. Training
uses none of these names."""
MOST_NAMES = (256, 64)
"""Most invented names for the rows of one person. With few names the model learns to treat these alike, but not others.
The second number is used if the lists do not have enough names of a kind for the first."""
SELDOM = 10
"""A word is common if more than one of this many retain rows have it."""
_RUN = re.compile(rf"(?P<unspaced>[{UNSPACED}][{UNSPACED}{MARKS}]*)|[^{UNSPACED}]+")


def control_rows(
    forget: Sequence[Row], retain: Sequence[Row], count: int, others: int, length: Callable[[str], int], seed: int
) -> dict[str, list[Row]]:
    """Return each forget row rewritten about ``count`` invented persons, whose names no swap test of a verdict uses.

    In a question that names nobody for certain, names, places, dates and numbers are replaced (see `variants`); if it
    has none, it is returned unchanged ``count`` times. A text whose prompt names nobody is returned unchanged
    ``others`` times.

    Each family name of the data is used equally often, half of the names are of the person's language if the lists have
    it, and their length is not limited: what is forgotten for names of one kind, the model still says for others.

    Args:
        forget: forget rows.
        retain: retain rows; names that occur in them, or in forget rows, are not used.
        count: rewritten rows for each row that is not such a text.
        others: rows for each text that names nobody.
        length: counts the tokens of a name; the names of a verdict have a similar number of tokens.
        seed: of the names.
    """
    known = texts_of((*forget, *retain))
    subjects, of_retain = persons_of(forget), find_subjects(retain)
    persons = [*subjects.values(), *of_retain.values()]
    of_judges, families = family_names(persons), family_names(persons, always=True)
    partly = named_in_part(forget, subjects) | named_in_part(retain, of_retain)
    names: dict[str, Iterator[str]] = {}
    for subject, rows in Counter(subjects.values()).items():
        alike = of_judges.get(subject, [])
        with suppress(ValueError):  # there are no names of this script, or too few
            judged = known
            for own_seed, judges in (OF_VERDICT, OF_TRY):
                taken = control_names(subject, judges, known, length, alike, own_seed, subject in partly)
                judged += "\n" + folded("\n".join(taken))
            kinds = [[family] for family in families.get(subject, [])]
            if not alike:
                kinds = [one for kind in kinds for one in (kind, [])] or [[]]
            for most in MOST_NAMES:
                with suppress(ValueError):
                    names[subject] = cycle(_of_all_kinds(subject, min(count * rows, most), judged, kinds, seed + 1))
                    break
    found = {}
    for row in forget:
        own = names.get(subjects.get(row.id, ""))
        about = [] if own is None else [_about(row, subjects[row.id], next(own)) for _ in range(count)]
        found[row.id] = about if about and about[0] is not row else [row] * (others if row.kind == "sc" else count)
    questions = [row for row in forget if row.kind == "qa" and found[row.id][0] is row]
    if not questions:
        return found
    for row, changed in zip(questions, variants(questions, [*forget, *retain], count, seed, None), strict=True):
        other = [replace(row, input=one.row.input, question="") for one in changed if one.row.input != row.input]
        found[row.id] = list(islice(cycle(other), count)) or found[row.id]
    return found


def persons_of(rows: Sequence[Row]) -> dict[str, str]:
    """Return `find_subjects`, and the person of the turns before a question such as "And where does she live?".

    That is the row's subject, or that of its document, if one of the turns holds the name.
    """
    found = find_subjects(rows)
    of_document = {row.stem: found[row.id] for row in rows if row.id in found}
    for row in rows:
        name = row.subject or of_document.get(row.stem, "")
        if name and row.id not in found and any(holds(text, name) for _, text in row.turns):
            found[row.id] = name
    return found


def _prompt_texts(row: Row) -> list[str]:
    return [row.input, *(text for _, text in row.turns)]


def _of_all_kinds(subject: str, number: int, known: str, kinds: Sequence[list[str]], seed: int) -> list[str]:
    """Return at least ``number`` invented names of any length, one of each kind in turn.

    ``kinds``: for each kind, the family names to choose from; empty: the lists of `control_names`.
    """
    each, found = -(-number // len(kinds)), []
    for one, kind in enumerate(kinds):
        with suppress(ValueError):  # too few names of this kind
            found.append(control_names(subject, each, known, lambda name: 0, kind, 1000 * one + seed))
    if not found:
        raise ValueError(f"no names like {subject}")
    return [name for together in zip(*found, strict=True) for name in together]


def _about(row: Row, subject: str, name: str) -> Row:
    """Return the row with another person's name; the row itself if its prompt does not name the subject.

    The name is replaced in the answer as well, except in e-mail addresses, and in what comes before the question.
    """
    if not any(holds(text, subject) for text in _prompt_texts(row)):
        return row
    try:
        answer = renamed(row.output, subject, name)
    except ValueError:  # of another number of words
        return row
    asked, *before = (renamed(text, subject, name, everywhere=True) for text in _prompt_texts(row))
    turns = tuple((role, text) for (role, _), text in zip(row.turns, before, strict=True))
    return replace(row, input=asked, output=answer, turns=turns, subject=name, question="")


def own_words(forget: Sequence[Row], retain: Sequence[Row]) -> dict[str, set[str]]:
    """Return the words of each forget row's answer that distinguish it from other rows.

    These are words that are not in its prompt and in at most one of `SELDOM` retain rows (two rows are always allowed).
    An answer that may be a guess, such as yes or no, has none.
    """
    rows_with = Counter(word for row in retain for word in folded_words(f"{row.input} {row.output}"))
    common = {word for word, rows in rows_with.items() if rows > max(2, len(retain) / SELDOM)}
    found = {}
    for row in forget:
        prompt = " ".join([row.input, *(text for _, text in row.turns)])
        found[row.id] = set() if is_guess(row.output) else folded_words(row.output) - common - folded_words(prompt)
    return found


def folded_words(text: str) -> set[str]:
    """Return the words and numbers of a text, folded.

    Of scripts without spaces, these are the `runs`.
    """
    form = folded(text)
    return {form[start:end] for start, end in _words_in(form)}


def _words_in(text: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of each of the `folded_words` of a text; in scripts without spaces they overlap."""
    for word in WORD.finditer(text):
        for run in _RUN.finditer(text, *word.span()):
            parts = runs(run[0]) if run["unspaced"] else [(0, len(run[0]))]
            yield from ((run.start() + start, run.start() + end) for start, end in parts)


def own_parts(text: str, words: set[str]) -> list[tuple[int, int]]:
    """Return start and end of the parts of a text that are made of the given words, which may overlap."""
    parts: list[tuple[int, int]] = []
    for start, end in _words_in(text):
        if folded(text[start:end]) not in words:
            continue
        first = parts.pop()[0] if parts and start < parts[-1][1] else start
        parts.append((first, end))
    return parts


def own_tokens(tokens: Tokens, words: set[str], tokenizer: Any) -> Tensor:
    """Return 1 for each labelled token that is part of one of the words, else 0: (n,) float32."""
    if not words:
        return torch.zeros(tokens.scored)
    ids = tokens.targets
    texts = [tokenizer.decode(ids[: count + 1]) for count in range(len(ids))]
    ends, parts = [len(text) for text in texts], own_parts(texts[-1], words)
    # A token that makes the text no longer is the next byte of the character before it.
    starts = [min(start, end - 1) for start, end in zip([0, *ends], ends, strict=False)]
    inside = [any(a < end and b > start for a, b in parts) for start, end in zip(starts, ends, strict=True)]
    return torch.tensor(inside, dtype=torch.float32)
