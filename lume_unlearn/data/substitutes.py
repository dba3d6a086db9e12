"""Substitute names, places, dates and numbers in forget rows, so that the model does not recognise the rows."""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from string import ascii_lowercase

from lume_tasks.data.files import place, scan
from lume_tasks.data.invented import control_names, family_names, texts_of
from lume_tasks.data.rows import Row, stem_of, text_problems
from lume_tasks.data.subjects import LEGAL_FORM, find_subjects, without_particles
from lume_tasks.data.text import EMAIL, MARKS, WORD, whole
from lume_tasks.errors import raise_problems
from lume_unlearn.checks import require_list
from lume_unlearn.data.kinds import common_words, dates, kind_of, other_number
from lume_unlearn.errors import ConfigError

NAME = rf"[^\W\d_][\w{MARKS}-]*[\w{MARKS}]"
ADDRESS = re.compile(rf"(?:[\w.+-]+\\)*{EMAIL}")
"""An e-mail address; Markdown may escape an underscore in it."""
SPAN = re.compile(rf"\d(?:[\d,./-]*\d)?|{NAME}(?: {NAME})*(?: (?:S\.[AL]|[BN]\.V|S\.p\.A|S\.r\.l)\.)?")
"""A number, or a sequence of words; after these perhaps the legal form of a company."""
COMMON = 0.1
"""A capitalised word in more than this share of a task's rows is part of a template, like "Social Security Number"."""
LEAST_COMMON = 10
"""A word in at most this many rows may always be a name."""
CODE = 3
"""A capitalised word with at least this many digits is a code, such as the number of a customer: C-77123."""
TRIES = 20
"""Spans sampled to find one from another document."""


@dataclass(frozen=True)
class Variant:
    """A row with substitutes."""

    row: Row
    words: dict[str, str]
    """Each word, number or address of the row that was substituted, and its substitute."""


def templated(rows: Sequence[Row], others: Sequence[Row]) -> set[str]:
    """Return the ids of rows that follow a template: most of their text, names left out, is in other documents as well.

    The function compares sequences of three words without names and numbers. In such a row, substituting the names
    removes what identifies it; in prose the other words still identify it.
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
        if any(shared) and sum(shared) >= len(shared) / 2:
            found.add(row.id)
    return found


def variants(
    forget: Sequence[Row], retain: Sequence[Row], count: int, seed: int, given: Mapping[str, Sequence[str]] | None
) -> list[list[Variant]]:
    """Return ``count`` variants of each forget row; within a variant, a word has the same substitute everywhere.

    Without ``given``, numbers, e-mail addresses and names are substituted. A name is a capitalised word that is no
    English stop word, is in no row in lower case, and is in at most a tenth of the task's rows; and the capitalised
    words right after it. A question word or a German noun is none if questions of two documents have it (see
    `common_words`).

    - The person whom the questions of a document name (see `find_subjects`) becomes an invented one (see
      `control_names`) of the same script, and of the same language and gender if the lists have the name.
    - A month or day of the week becomes another one, a number another of as many digits (see `other_number`), also in
      a code such as AB-1234.
    - An e-mail address is made of the substitutes of its names, or of random letters.
    - Any other sequence of words becomes one of as many words from another document of the same task, of the same kind
      if there is one (see `kind_of`). A company keeps its legal form, and becomes another company of the data.

    If possible, no substitute is a word of the row or the substitute of another word.

    Args:
        forget: rows to vary.
        retain: further rows to draw substitutes from.
        count: variants of each row.
        seed: of the choice.
        given: texts to substitute with their substitutes, instead of all this.

    Raises:
        ConfigError: the substitutes of a text are one text instead of a list.
    """
    for text, substitutes in (given or {}).items():
        require_list(f"substitutes: {text}", substitutes)
    names = _Names([*forget, *retain])
    persons = {} if given is not None else _persons(forget, retain, count, seed)
    found = []
    for number, row in enumerate(forget):
        chooser = random.Random(f"{seed} {number}")
        invented = persons.get(row.stem, [{}] * count)
        if given is None:
            words = [names.substitutes(row, person, chooser) for person in invented]
        else:
            words = [_given(row, given, chooser) for _ in range(count)]
        found.append([_applied(row, one) for one in words])
    return found


def read_substitutes(named: str | Path) -> dict[str, list[str]]:
    """Read a file with one ``{"text": "Jane Roe", "substitute": "..."}`` a line; a text may occur several times.

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
    pattern = whole(*sorted(words, key=len, reverse=True))

    def changed(text: str) -> str:
        return pattern.sub(lambda match: words[match[0]], text)

    return Variant(replace(row, input=changed(row.input), output=changed(row.output)), words)


class _Names:
    """The names in the rows of each task, from which substitutes are drawn."""

    def __init__(self, rows: Sequence[Row]) -> None:
        state = random.getstate()
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # takes a second, and draws a random number

        random.setstate(state)
        self.lower = set(ENGLISH_STOP_WORDS)  # few rows need not have "What" in lower case anywhere
        self.rows_with: dict[str, Counter[str]] = defaultdict(Counter)
        self.rows = Counter(row.task for row in rows)
        documents: dict[str, set[str]] = defaultdict(set)  # a name begins questions of one document alone
        for row in rows:
            words = set(re.findall(NAME, ADDRESS.sub("|", f"{row.input} {row.output}")))
            self.lower |= {word for word in words if word[0].islower()}
            self.rows_with[row.task].update(words)
            for word in common_words(row.input):
                documents[word].add(row.stem)
        self.lower |= {word for word, stems in documents.items() if len(stems) > 1}
        self.all_rows = rows

    @cached_property
    def pool(self) -> dict[tuple[str, str, int], list[tuple[str, str]]]:
        """Return sequences of words, each with its document, by task, kind ("": any) and number of words."""
        pool: dict[tuple[str, str, int], set[tuple[str, str]]] = defaultdict(set)
        for row in self.all_rows:
            for span in self.spans(row):
                if "@" not in span and not span[0].isdigit() and span not in dates() and not _is_code(span):
                    words = span.split(" ")
                    for kind in {kind_of(span), ""}:
                        pool[row.task, kind, len(words)].add((span, row.stem))
                    own = [word for word in words if not _is_form(word)]
                    if own and len(own) < len(words):
                        pool[row.task, "company", len(own)].add((" ".join(own), row.stem))
        return {key: sorted(spans) for key, spans in pool.items()}

    def spans(self, row: Row) -> list[str]:
        """Return the e-mail addresses, numbers and sequences of names in a row, each once, in order."""
        text = f"{row.input} {row.output}"
        found: dict[str, None] = dict.fromkeys(ADDRESS.findall(text))
        for match in SPAN.finditer(ADDRESS.sub("|", text)):
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
        """Return each sequence of three words, in lower case, with nothing to substitute, after the row's task."""
        text = f"{row.input} {row.output}"
        for span in sorted(self.spans(row), key=len, reverse=True):
            text = text.replace(span, " | ")
        words = re.findall(rf"{WORD.pattern}|\|", text.lower())
        triples = zip(words, words[1:], words[2:], strict=False)
        return [(row.task, *triple) for triple in triples if "|" not in triple]

    def is_name(self, word: str, task: str) -> bool:
        """Return whether a word is a name: capitalised, in no row in lower case, and not in too many rows."""
        if not word[:1].isupper() or word.lower() in self.lower:
            return False
        return self.rows_with[task][word] <= max(COMMON * self.rows[task], LEAST_COMMON)

    def substitutes(self, row: Row, person: Mapping[str, str], chooser: random.Random) -> dict[str, str]:
        """Choose a substitute for each span of a row. Names are mapped word by word, so that parts of a name agree.

        ``person``: the words of the name of the row's person, and for each a word of an invented name.
        """
        text, spans = f"{row.input} {row.output}", self.spans(row)
        words = {word: other for word, other in person.items() if word in text}
        taken = {*re.findall(NAME, text), *words.values()}
        for span in spans:
            if span[0].isdigit():
                words[span] = _other_digits(span, chooser)
            elif "@" not in span:
                codes = list(filter(_is_code, span.split(" ")))
                words |= {code: _other_digits(code, chooser) for code in codes}
                *_, last = whole = span.split(" ")
                own = [word for word in whole if word not in words and not _is_form(word)]
                kind = "company" if _is_form(last) else kind_of(" ".join(own)) if own else ""
                others = self._others(own, kind, row, taken, chooser) if own else []
                words |= zip(own, others, strict=True)
                taken |= set(others)
        return words | {span: _address(span, words, chooser) for span in spans if "@" in span}

    def _others(self, words: list[str], kind: str, row: Row, taken: set[str], chooser: random.Random) -> list[str]:
        """Return as many words from another document, if possible of the same kind and none of them taken.

        No word is the legal form of a company.
        """
        span = " ".join(words)
        if span in dates():
            return [chooser.choice(dates()[span])]
        found: list[list[str]] = []
        for one in dict.fromkeys((kind, "")):
            pool = self.pool.get((row.task, one, len(words)), [])
            drawn = chooser.choices(pool, k=TRIES) if pool else []
            found += [text.split(" ") for text, stem in drawn if stem != row.stem]
        found = [other for other in found if not any(map(_is_form, other))]
        fresh = (other for other in found if not taken & {*other})
        return next(fresh, found[0] if found else words)


def _persons(forget: Sequence[Row], retain: Sequence[Row], count: int, seed: int) -> dict[str, list[dict[str, str]]]:
    """Return, for each document about a person, the words of the name mapped to those of ``count`` invented names."""
    subjects = {stem_of(row_id): subject for row_id, subject in find_subjects(forget).items()}
    families = family_names([*subjects.values(), *find_subjects(retain).values()], always=True)
    known, found = texts_of([*forget, *retain]), {}
    for stem, subject in subjects.items():
        with suppress(ValueError):  # there are no names of this script, or too few
            names = control_names(subject, count, known, len, families.get(subject, ()), seed)
            found[stem] = [dict(zip(without_particles(subject), name.split(), strict=True)) for name in names]
    return found


def _other_digits(text: str, chooser: random.Random) -> str:
    return re.sub(r"\d+", lambda digits: other_number(digits[0], chooser, alone=len(text) == 2), text)


def _is_form(word: str) -> bool:
    """Return whether a word is the legal form of a company, with or without its period."""
    return bool(re.fullmatch(LEGAL_FORM, word if word.endswith(".") else f"{word}."))


def _is_code(word: str) -> bool:
    return sum(map(str.isdigit, word)) >= CODE


def _address(span: str, words: Mapping[str, str], chooser: random.Random) -> str:
    """Return an e-mail address made of the substitutes of its names, or of random letters."""
    box, domain = span.split("@", 1)
    names = {word.lower(): other.lower() for word, other in words.items()}
    parts = re.split(r"([^\W_]+)", box)
    found = "".join(names.get(part.lower(), part) for part in parts)
    if found == box:
        found = re.sub(r"[^\W_]", lambda _: chooser.choice(ascii_lowercase), box)
    return f"{found}@{domain}"
