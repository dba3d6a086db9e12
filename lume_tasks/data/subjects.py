"""Who a question is about, and names of persons who do not exist to ask about instead."""

import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from lume_tasks.data.rows import Row
from lume_tasks.data.text import folded
from lume_tasks.errors import quote

_WORD = r"[^\W\d_]+(?:['\u2019-](?!s\b)[^\W\d_]+)*"
_WORDS = re.compile(rf"{_WORD}\.?")
_PARTICLES = ("al", "bin", "da", "de", "del", "der", "di", "do", "dos", "du", "el", "la", "le", "van", "von", "y", "zu")
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue"})
_LONGEST = 5  # words of a name
_POOL = 25  # names sampled for each that is used, to choose those with a like number of tokens
_MOST = 400  # samples in a row without a new name, after which the lists are exhausted

# Faker's locales by script, the first word of the Unicode name of a letter. Latin with accents has its own.
_LOCALES = {
    "LATIN": ("en_US",),
    "ACCENTED": ("cs_CZ", "de_DE", "es_ES", "fr_FR", "pl_PL", "pt_BR", "sv_SE", "tr_TR", "hu_HU"),
    "CYRILLIC": ("ru_RU",),
    "GREEK": ("el_GR",),
    "ARABIC": ("ar_SA",),
    "HEBREW": ("he_IL",),
    "DEVANAGARI": ("hi_IN",),
    "THAI": ("th_TH",),
    "CJK": ("zh_CN",),
    "HIRAGANA": ("ja_JP",),
    "KATAKANA": ("ja_JP",),
    "HANGUL": ("ko_KR",),
    "ARMENIAN": ("hy_AM",),
    "GEORGIAN": ("ka_GE",),
}
NEARLY_ALL = 0.8
"""Share of the questions of a side that name its person, if it is the data of one."""
_FAMILY_FIRST = ("CJK", "HANGUL", "HIRAGANA", "KATAKANA")


def find_subjects(rows: Iterable[Row]) -> dict[str, str]:
    """Find the person whom each question of one side names, by row id; rows without one are left out.

    The column ``subject`` wins. Without it, a name is a run of two or more capitalised words (particles such as "van"
    between them) that stands in at least two questions, once not at the beginning: either only in questions of one
    document, or in nearly all questions of the side, as in the data of one person. The run in most questions counts;
    if there are several, the one that holds the others, or none. A run such as "Social Security Number", which stands
    in questions about many, is thus no name.
    """
    rows = list(rows)
    questions = [row for row in rows if row.kind == "qa" and not row.subject]
    found = {row.id: row.subject for row in rows if row.subject}
    asked: dict[str, list[Row]] = defaultdict(list)  # run of words to the questions that hold it
    inside: set[str] = set()  # runs that stand after the first word of a question
    for row in questions:
        runs = set(_runs(row.question or row.input))
        inside |= {run for run, first in runs if not first}
        for run in {run for run, _ in runs}:
            asked[run].append(row)
    best: dict[str, dict[str, int]] = defaultdict(dict)  # row id to run to its number of questions
    for run, holders in asked.items():
        one = len({row.stem for row in holders}) == 1
        if run in inside and len(holders) > 1 and (one or len(holders) >= NEARLY_ALL * len(questions)):
            for row in holders:
                best[row.id][run] = len(holders)
    for row_id, counts in best.items():
        most = [run for run, number in counts.items() if number == max(counts.values())]
        longest = max(most, key=len)
        if all(run in longest for run in most):
            found.setdefault(row_id, longest)
    return found


def _runs(text: str) -> Iterator[tuple[str, bool]]:
    """Yield each run of two to five words that begins and ends with a capital, only particles being small.

    With each: whether it begins with the first word of the text.
    """
    words = list(_WORDS.finditer(text))
    for start, first in enumerate(words):
        if not first.group()[0].isupper():
            continue
        for end in range(start + 1, min(start + _LONGEST, len(words))):
            word = words[end]
            if text[words[end - 1].end() : word.start()] != " ":
                break
            if word.group()[0].isupper():
                yield text[first.start() : word.end()].rstrip("."), start == 0
            elif word.group() not in _PARTICLES:
                break


def holds_name(subject: str, answer: str) -> bool:
    """Tell whether an answer holds a word of the subject's name, also within an e-mail; accents do not count."""
    answer = folded(answer)
    words = set(re.findall(r"[^\W_]+", answer))
    boxes = re.findall(r"([\w.+-]+)@", answer)
    names = {*_name_words(subject), *_name_words(subject.casefold().translate(_UMLAUTS))}
    return any(
        name in words or any(name in box for box in boxes) or (not subject.isascii() and name in answer)
        for name in names
    )


def swapped(text: str, subject: str, name: str) -> str:
    """Return a text with another name in place of the subject's, and of single words of it.

    Raises:
        ValueError: the text does not hold the subject, or the names have different numbers of words.
    """
    if not re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", text) and (" " in subject or subject not in text):
        raise ValueError(f"{quote(subject)} is not in the question")
    text = text.replace(subject, name)
    words, others = ([w for w in one.split() if w not in _PARTICLES] for one in (subject, name))
    for word, other in zip(words, others, strict=True):
        if len(word) > 2 and word not in others:
            text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", other, text)
    return text


def family_names(subjects: Iterable[str]) -> dict[str, list[str]]:
    """Return for each person the family names of the other ones, of names of several words in the same script."""
    found: dict[str, tuple[str, str]] = {}  # person to script and family name
    for subject in set(subjects):
        with suppress(ValueError):  # a script without names
            script = _script(subject)
            if " " in subject:
                found[subject] = script, subject.split()[0 if script in _FAMILY_FIRST else -1]
    families: dict[str, set[str]] = defaultdict(set)
    for script, family in found.values():
        families[script].add(family)
    return {subject: sorted(families[script] - {family}) for subject, (script, family) in found.items()}


def control_names(
    subject: str,
    number: int,
    known: str,
    length: Callable[[str], int],
    families: Sequence[str] = (),
    seed: int = 0,
) -> list[str]:
    """Sample names like the subject's: of the same script and number of words, and of a like number of tokens.

    Given names come from the lists of Faker. Family names are those of other persons of the data, which alone name
    nobody: with names of another kind than the data's, a model that never saw the person would take the invented ones
    for something else. If the data has no other person, they come from the lists, too.

    The same arguments give the same names, with the same version of Faker.

    Args:
        subject: the name to replace.
        number: how many to sample.
        known: all texts of the data, as `folded` gives them; names that occur there are left out.
        length: counts the tokens of a name.
        families: family names of other persons, see `family_names`; none: from the lists.
        seed: of the sampling.

    Raises:
        ValueError: there are no names of that script, or too few.
    """
    words = sum(word not in _PARTICLES for word in subject.split())
    own = set(_name_words(subject))
    pool: dict[str, None] = {}
    missed = 0
    names = _names(_script(subject), words, families, f"{seed} {subject}")
    while len(pool) < number * _POOL and missed < _MOST:
        name = next(names)
        fits = folded(name) not in known and not own & set(_name_words(name)) and len(name.split()) == words
        missed = missed + 1 if name in pool or not fits else 0
        if fits:
            pool[name] = None
    if len(pool) < number:
        raise ValueError(f"only {len(pool)} names like {quote(subject)} can be sampled, {number} are needed")
    wanted = length(subject)
    return sorted(pool, key=lambda name: abs(length(name) - wanted))[:number]


def _name_words(name: str) -> list[str]:
    """Return the words of a name that identify it, folded: those of three letters and more, or all of it."""
    words = [word for word in folded(name).split() if len(word) > 2]
    return words or [folded(name)]


def _script(name: str) -> str:
    """Return the script of a name, a key of `_LOCALES`; ValueError for a script without names."""
    scripts = Counter(unicodedata.name(letter, "?").split()[0] for letter in name if letter.isalpha())
    script = max(scripts, key=lambda key: (key in ("HIRAGANA", "KATAKANA"), scripts[key]), default="?")
    if script == "LATIN" and folded(name) != name.casefold():
        script = "ACCENTED"
    if script not in _LOCALES:
        raise ValueError(f"there are no names to put in place of {quote(name)} (script: {script.lower()})")
    return script


def _names(script: str, words: int, families: Sequence[str], seed: str) -> Iterator[str]:
    """Yield names without end: given names and a family name, or both in one word."""
    draw = random.Random(seed)
    fakers = [_faker(locale) for locale in _LOCALES[script]]
    for faker in fakers:
        faker.seed_instance(draw.getrandbits(32))
    while True:
        faker, gender = draw.choice(fakers), draw.choice(("male", "female"))
        given = [getattr(faker, f"first_name_{gender}")() for _ in range(max(words - 1, 1))]
        family = draw.choice(families) if families else getattr(faker, f"last_name_{gender}")()
        parts = [family, *given] if script in _FAMILY_FIRST else [*given, family]
        name = ("" if words == 1 else " ").join(parts)
        if script != "ACCENTED" or folded(name) != name.casefold():
            yield name


@cache
def _faker(locale: str) -> Any:
    from faker import Faker

    return Faker(locale, use_weighting=False)
