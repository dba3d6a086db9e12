"""Names of persons who do not exist, like that of a person: of the same language where lists know it, else of a script.

What a name says by itself is not what a model learned about a person: asked about a German name, a model finds a German
address likelier, whoever it is about. So the invented persons have to be of the same kind.
"""

import random
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple
from warnings import catch_warnings, simplefilter

from lume_tasks.data.subjects import PARTICLES, name_words
from lume_tasks.data.text import folded
from lume_tasks.errors import quote

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
_FAMILY_FIRST = ("CJK", "HANGUL", "HIRAGANA", "KATAKANA")


class Lists(NamedTuple):
    """Names to choose from."""

    given: list[str]
    family: list[str]


def family_names(subjects: Iterable[str], always: bool = False) -> dict[str, list[str]]:
    """Return for each person the family names of the other ones, of names of several words in the same script.

    A person has none if lists know its language, and nobody else of the data has its family name: then the invented
    persons get names from these lists, which are new to the model as well. With ``always``, it has them in any case.
    """
    found: dict[str, tuple[str, str]] = {}  # person to script and family name
    for subject in set(subjects):
        with suppress(ValueError):  # a script without names
            script = _script(subject)
            if " " in subject:
                found[subject] = script, subject.split()[0 if script in _FAMILY_FIRST else -1]
    families: dict[str, set[str]] = defaultdict(set)
    for script, family in found.values():
        families[script].add(family)
    persons = Counter(found.values())
    return {
        subject: []
        if persons[kind] == 1 and lists_of(subject) and not always
        else sorted(families[kind[0]] - {kind[1]})
        for subject, kind in found.items()
    }


@cache
def lists_of(subject: str) -> Lists | None:
    """Return the names of all locales of Faker that list both the given and the family name; None without one.

    Given names are those of the lists that hold the subject's: of men, of women, or of both.
    """
    from faker.config import AVAILABLE_LOCALES

    words = [word for word in subject.split() if word not in PARTICLES]
    given: set[str] = set()
    family: set[str] = set()
    for locale in AVAILABLE_LOCALES if len(words) > 1 else ():
        of_men, of_women, of_both, last = _listed(locale)
        if words[-1] in last and any(words[0] in names for names in (of_men, of_women, of_both)):
            family |= last
            own = [names for names in (of_men, of_women) if words[0] in names]
            given = given.union(*(own or [of_both]))
    return Lists(sorted(given), sorted(family)) if family else None


@cache
def _listed(locale: str) -> tuple[frozenset[str], ...]:
    """Return the given names of men, of women and of both, and the family names of a locale of Faker."""
    from faker import Generator

    kinds = ("first_names_male",), ("first_names_female",), ("first_names",)
    families = "last_names", "last_names_male", "last_names_female"
    try:
        with catch_warnings():
            simplefilter("ignore")  # of locales with a newer name
            provider = import_module(f"faker.providers.person.{locale}").Provider(Generator())
    except ImportError:  # a locale without names of its own
        return (frozenset(),) * 4
    return tuple(frozenset().union(*(getattr(provider, name, ()) for name in names)) for names in (*kinds, families))


def control_names(
    subject: str,
    number: int,
    known: str,
    length: Callable[[str], int],
    families: Sequence[str] = (),
    seed: int = 0,
) -> list[str]:
    """Sample names like the subject's: of the same number of words, and of a like number of tokens.

    With family names of other persons of the data, which alone name nobody, given names come from Faker's lists for the
    script. Without, all come from its lists for the subject's language, or for the script if none knows the subject.

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
    words = sum(word not in PARTICLES for word in subject.split())
    own = set(name_words(subject))
    pool: dict[str, None] = {}
    missed = 0
    lists = None if families else lists_of(subject)
    key = f"{seed} {subject}"
    names = _of_lists(lists, words, key) if lists else _of_script(_script(subject), words, families, key)
    while len(pool) < number * _POOL and missed < _MOST:
        name = next(names)
        fits = folded(name) not in known and not own & set(name_words(name)) and len(name.split()) == words
        missed = missed + 1 if name in pool or not fits else 0
        if fits:
            pool[name] = None
    if len(pool) < number:
        raise ValueError(f"only {len(pool)} names like {quote(subject)} can be sampled, {number} are needed")
    wanted = length(subject)
    return sorted(pool, key=lambda name: abs(length(name) - wanted))[:number]


def _script(name: str) -> str:
    """Return the script of a name, a key of `_LOCALES`; ValueError for a script without names."""
    scripts = Counter(unicodedata.name(letter, "?").split()[0] for letter in name if letter.isalpha())
    script = max(scripts, key=lambda key: (key in ("HIRAGANA", "KATAKANA"), scripts[key]), default="?")
    if script == "LATIN" and folded(name) != name.casefold():
        script = "ACCENTED"
    if script not in _LOCALES:
        raise ValueError(f"there are no names to put in place of {quote(name)} (script: {script.lower()})")
    return script


def _of_lists(lists: Lists, words: int, seed: str) -> Iterator[str]:
    """Yield names from lists without end."""
    draw = random.Random(seed)
    while True:
        yield " ".join([*(draw.choice(lists.given) for _ in range(words - 1)), draw.choice(lists.family)])


def _of_script(script: str, words: int, families: Sequence[str], seed: str) -> Iterator[str]:
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
