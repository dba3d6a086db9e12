"""Substitute names, places, dates and numbers in forget rows: texts about somebody whom the model does not know so."""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from lume_tasks.data.files import place, scan
from lume_tasks.data.rows import Row, text_problems
from lume_tasks.errors import raise_problems
from lume_unlearn.errors import ConfigError

NAME = r"[^\W\d_][\w-]*\w"
EMAIL = re.compile(r"[^\s@]+@[^\s@]+\.\w+")
SPAN = re.compile(rf"\d(?:[\d,./-]*\d)?|{NAME}(?: {NAME})*")
"""A number, or a sequence of words."""
COMMON = 0.1
"""Share of a task's rows from which on a capitalised word is part of the template, as "Social Security Number" is."""
LEAST_COMMON = 10
"""Rows that any name may be in."""
TRIES = 20
"""Spans drawn to find one of another document."""


@dataclass(frozen=True)
class Variant:
    """A row with substitutes."""

    row: Row
    words: dict[str, str]
    """Each word, number or address of the row that was substituted, and its substitute."""


def templated(rows: Sequence[Row], others: Sequence[Row]) -> set[str]:
    """Return the ids of rows that are templates: without its names, most of a row's text is in other documents, too.

    Compared are sequences of three words that hold no name or number. Substituting the names of such a row removes
    what identifies it; in prose the other words still do.
    """
    names = _Names([*rows, *others])
    sequences = {row.id: names.sequences(row) for row in (*rows, *others)}
    documents: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for row in (*rows, *others):
        for sequence in sequences[row.id]:
            documents[sequence].add(row.stem)
    found = set()
    for row in rows:
        shared = [len(documents[sequence]) > 1 for sequence in sequences[row.id]]
        if sum(shared) >= len(shared) / 2:
            found.add(row.id)
    return found


def variants(
    forget: Sequence[Row], retain: Sequence[Row], count: int, seed: int, given: Mapping[str, Sequence[str]] | None
) -> list[list[Variant]]:
    """Return ``count`` variants of each forget row; within a variant, a word has the same substitute everywhere.

    Without ``given``, what is substituted are numbers, e-mail addresses, and names: capitalised words that are no
    English stop words, that no row has in lower case and at most a tenth of the task's rows have, and the capitalised
    words right after them. The substitutes come from other documents of the same task, forget and retain rows: for a
    sequence of words one of as many words, for a number one of the same digits and signs, or random digits if there is
    none.

    Args:
        forget: rows to vary.
        retain: further rows to draw substitutes from.
        count: variants of each row.
        seed: of the choice.
        given: instead, texts to substitute and their substitutes.
    """
    names = _Names([*forget, *retain])
    found = []
    for number, row in enumerate(forget):
        chooser = random.Random(f"{seed} {number}")
        words = partial(names.substitutes, row, chooser) if given is None else partial(_given, row, given, chooser)
        found.append([_applied(row, words()) for _ in range(count)])
    return found


def read_substitutes(named: str | Path) -> dict[str, list[str]]:
    """Read ``{"text": "Jane Roe", "substitute": "..."}`` a line; a text may occur several times.

    Raises:
        ConfigError: there is no such file.
        DataError: lists faulty lines.
    """
    path = Path(named)
    if not path.is_file():
        raise ConfigError(f"--substitutes {named}: there is no such file")
    fields = ("text", "substitute")
    objects, faults = scan(path, fields, lambda obj: text_problems(obj, *fields))
    raise_problems(place(str(path), faults))
    found: dict[str, list[str]] = {}
    for obj in objects.values():
        found.setdefault(obj["text"], []).append(obj["substitute"])
    return found


def _given(row: Row, given: Mapping[str, Sequence[str]], chooser: random.Random) -> dict[str, str]:
    text = f"{row.input} {row.output}"
    return {word: chooser.choice(choices) for word, choices in given.items() if word in text}


def _applied(row: Row, words: dict[str, str]) -> Variant:
    """Replace whole words, the longest first, in one pass."""
    if not words:
        return Variant(row, {})
    longest_first = sorted(words, key=len, reverse=True)
    pattern = re.compile("|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in longest_first))

    def changed(text: str) -> str:
        return pattern.sub(lambda match: words[match[0]], text)

    return Variant(replace(row, input=changed(row.input), output=changed(row.output)), words)


class _Names:
    """What the rows of each task name: the source of substitutes."""

    def __init__(self, rows: Sequence[Row]) -> None:
        state = random.getstate()
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # takes a second, and draws a random number

        random.setstate(state)
        self.lower = set(ENGLISH_STOP_WORDS)  # few rows need not have "What" in lower case anywhere
        self.rows_with: dict[str, Counter[str]] = defaultdict(Counter)
        self.rows = Counter(row.task for row in rows)
        for row in rows:
            words = set(re.findall(NAME, EMAIL.sub("|", f"{row.input} {row.output}")))
            self.lower |= {word for word in words if word[0].islower()}
            self.rows_with[row.task].update(words)
        pool: dict[tuple[str, str | int], set[tuple[str, str]]] = defaultdict(set)
        for row in rows:
            for span in self.spans(row):
                pool[row.task, _kind(span)].add((span, row.stem))
        self.pool = {key: sorted(spans) for key, spans in pool.items()}
        """(task, kind of span) to the spans of that kind, each with the document that it is in."""

    def spans(self, row: Row) -> list[str]:
        """Return what a row names: e-mail addresses, numbers, and sequences of names, each once, in order."""
        text = f"{row.input} {row.output}"
        found: dict[str, None] = dict.fromkeys(EMAIL.findall(text))
        for match in SPAN.finditer(EMAIL.sub("|", text)):
            if match[0][0].isdigit():
                found[match[0]] = None
                continue
            sequence: list[str] = []
            for word in [*match[0].split(" "), ""]:
                # A family name may be an ordinary word: "Lanae Brown".
                if self.is_name(word, row.task) or (sequence and word[:1].isupper()):
                    sequence.append(word)
                elif sequence:
                    found[" ".join(sequence)] = None
                    sequence = []
        return list(found)

    def sequences(self, row: Row) -> list[tuple[str, ...]]:
        """Return the row's task with each sequence of three words, in lower case, that holds nothing to substitute."""
        text = f"{row.input} {row.output}"
        for span in sorted(self.spans(row), key=len, reverse=True):
            text = text.replace(span, " | ")
        words = re.findall(r"\w+|\|", text.lower())
        triples = zip(words, words[1:], words[2:], strict=False)
        return [(row.task, *triple) for triple in triples if "|" not in triple]

    def is_name(self, word: str, task: str) -> bool:
        """Return whether a word is a name: capitalised, nowhere in lower case, and not in many rows."""
        if not word[:1].isupper() or word.lower() in self.lower:
            return False
        return self.rows_with[task][word] <= max(COMMON * self.rows[task], LEAST_COMMON)

    def substitutes(self, row: Row, chooser: random.Random) -> dict[str, str]:
        """Choose a substitute for each span of a row, and map names word by word, so that parts of names agree."""
        words: dict[str, str] = {}
        for span in self.spans(row):
            kind = _kind(span)
            tried = chooser.choices(self.pool[row.task, kind], k=TRIES)
            other = next((text for text, stem in tried if stem != row.stem and text != span), None)
            if not isinstance(kind, int):
                words[span] = other or re.sub(r"\d", lambda _: str(chooser.randrange(10)), span)
            elif other:
                for word, substitute in zip(span.split(" "), other.split(" "), strict=True):
                    words.setdefault(word, substitute)
        return words


def _kind(span: str) -> str | int:
    """Return "email", the shape of a number ("000-00-0000"), or the number of words."""
    if "@" in span:
        return "email"
    return re.sub(r"\d", "0", span) if span[0].isdigit() else len(span.split(" "))
