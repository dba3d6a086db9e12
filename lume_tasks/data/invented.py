"""Invent names similar to a person's name: of the same language if Faker's lists have the name, else of its script.

A name alone says something that is not knowledge about a person: asked about a German name, a model finds a German
address likelier, whoever the person is. So the invented persons must be of the same kind as the true one.
"""

import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from importlib import import_module
from typing import Any
from warnings import catch_warnings, simplefilter

from lume_tasks.data.rows import Row
from lume_tasks.data.subjects import company, name_words, without_particles
from lume_tasks.data.text import folded
from lume_tasks.errors import quote

_POOL = 25  # names sampled for each one that is used, to choose those with a similar number of tokens
_MOST = 400  # samples in a row without a new name, after which the lists are exhausted

# Faker's locales by script, the first word of the Unicode name of a letter. Latin with accents has its own.
LOCALES = {
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
_GENDERS = ("male", "female")
# fmt: off
TITLES = frozenset((
    "mr", "mrs", "ms", "miss", "dr", "prof", "herr", "frau", "monsieur", "madame", "mme", "mlle", "señor", "señora",
    "sr", "sra", "signor", "signora",
))
# fmt: on
"""Titles before a name, in lower case and without a point."""
_FAMILY_FIRST = ("CJK", "HANGUL", "HIRAGANA", "KATAKANA")


def family_names(subjects: Iterable[str], always: bool = False) -> dict[str, list[str]]:
    """Return for each person of two words or more the family names of the other persons in the same script.

    A person gets none if Faker's lists have the name, and nobody else in the data has the family name: the invented
    persons then get names from these lists, which are new to the model as well. With ``always``, each person gets them.
    """
    found: dict[str, tuple[str, str]] = {}  # person to script and family name
    for subject in set(subjects):
        with suppress(ValueError):  # a script without names
            script = _script(subject)
            if " " in subject and not company(subject)[1]:
                family = without_particles(_titled(subject))[0 if script in _FAMILY_FIRST else -1]
                found[subject] = script, family
    families: dict[str, set[str]] = defaultdict(set)
    for script, family in found.values():
        families[script].add(family)
    persons = Counter(found.values())
    return {
        subject: []
        if persons[kind] == 1 and locales_of(subject) and not always
        else sorted(families[kind[0]] - {kind[1]})
        for subject, kind in found.items()
    }


def texts_of(rows: Iterable[Row]) -> str:
    """Return all texts of rows, folded: `control_names` leaves out names that occur in them."""
    return folded("\n".join(f"{row.input} {row.question} {row.output}" for row in rows))


@lru_cache(maxsize=100_000)
def locales_of(subject: str) -> tuple[str, ...]:
    """Return the locales of Faker that list both the given and the family name."""
    from faker.config import AVAILABLE_LOCALES

    words = without_particles(_titled(_title(subject)[1]))
    if len(words) < 2:
        return ()
    return tuple(
        locale
        for locale in AVAILABLE_LOCALES
        if len(listed_names(locale)[-1]) > 1  # Faker fills the gaps of a locale with one person, Jane Doe
        and words[-1] in listed_names(locale)[-1]
        and any(words[0] in names for names in listed_names(locale)[:-1])
    )


def _names_like(subject: str) -> tuple[list[str], list[str]]:
    """Return given and family names from the lists of the subject's locales.

    They are those of the genders whose list has the subject's given name; if none has it, those of both.
    """
    first, given, family = without_particles(_titled(subject))[0], set[str](), set[str]()
    for locale in locales_of(subject):
        *of_one, of_both, last = listed_names(locale)
        genders = [gender for gender, names in zip(_GENDERS, of_one, strict=True) if first in names]
        lists = [getattr(provider_of("person", locale), f"last_names_{gender}", ()) for gender in genders]
        family |= set().union(*lists) or last
        given = given.union(*([names for names in of_one if first in names] or [of_both]))
    return sorted(given), sorted(family)


@cache
def listed_names(locale: str) -> tuple[frozenset[str], ...]:
    """Return the given names of men, of women and of both, and the family names of a locale of Faker."""
    kinds = ("first_names_male",), ("first_names_female",), ("first_names",)
    families = "last_names", "last_names_male", "last_names_female"
    provider = provider_of("person", locale)
    return tuple(frozenset().union(*(getattr(provider, name, ()) for name in names)) for names in (*kinds, families))


def provider_of(kind: str, locale: str) -> Any:
    """Return Faker's lists of a kind ("person", "address", "date_time") for a locale; None if it has none."""
    from faker import Generator

    try:
        with catch_warnings():
            simplefilter("ignore")  # warnings about locales with a newer name
            return import_module(f"faker.providers.{kind}.{locale}").Provider(Generator())
    except ImportError:
        return None


def name_length(tokenizer: Any, name: str) -> int:
    """Return the number of tokens of a name within a text."""
    return len(tokenizer.encode(f" {name}"))


def control_names(
    subject: str,
    number: int,
    known: str,
    length: Callable[[str], int],
    families: Sequence[str] = (),
    seed: int = 0,
    distinct: bool = False,
) -> list[str]:
    """Sample names similar to the subject's: with as many words, in its case, and a similar number of tokens.

    An e-mail address becomes one of an invented person at the same domain. A company becomes one of the same legal form
    that is named after an invented person. A title, such as "Dr." (see `TITLES`), is kept.

    With ``families``, given names come from Faker's lists for the script, and family names are those of other persons
    of the data, which alone name nobody. Without, both come from Faker's lists for the subject's language, or for the
    script if no list has the subject. The same arguments give the same names with the same version of Faker.

    Args:
        subject: the name to replace.
        number: how many to sample.
        known: all texts of the data, see `texts_of`; names that occur there are left out.
        length: counts the tokens of a name.
        families: family names of other persons, see `family_names`; none: from the lists.
        seed: of the sampling.
        distinct: prefer names that share no word that is sampled, for questions that hold a part of the name.

    Raises:
        ValueError: there are no names of that script, or too few.
    """
    title, rest = _title(subject)
    words = len(without_particles(rest))
    own = set(name_words(rest))
    in_case = str.upper if subject.isupper() else str.lower if subject.islower() else str
    pool: dict[str, None] = {}
    missed = 0
    names = _names_for(rest, bool(title), families, f"{seed} {subject}")
    while len(pool) < number * _POOL and missed < _MOST:
        made = in_case(next(names))
        name = f"{title} {made}" if title else made
        fits = len(without_particles(made)) == len(made.split()) == words
        fits = fits and folded(name) not in known and not own & set(name_words(made))
        missed = missed + 1 if name in pool or not fits else 0
        if fits:
            pool[name] = None
    if len(pool) < number:
        raise ValueError(f"only {len(pool)} names like {quote(subject)} can be sampled, {number} are needed")
    wanted = length(subject)
    ranked = sorted(pool, key=lambda name: abs(length(name) - wanted))
    return ([*dict.fromkeys([*_distinct(ranked, families), *ranked])] if distinct else ranked)[:number]


def _names_for(rest: str, titled: bool, families: Sequence[str], seed: str) -> Iterator[str]:
    """Yield what may replace a person, company or e-mail address, without end; ``rest``: the name without title."""
    own, form = company(rest)
    words = len(without_particles(rest))
    if "@" in rest:
        return _addresses(rest, seed)
    if form:
        return _companies(own, form, seed)
    if titled and words == 1:  # a title and a family name
        return (name.split(" ", 1)[1] for name in _of_script(_script(rest), 2, (), seed))
    if families or not locales_of(rest):
        return _of_script(_script(rest), words, families, seed)
    return _of_lists(*_names_like(rest), words, seed)


def _titled(name: str) -> str:
    """Return a name in capitals, or in small letters, with capital initials, as in lists of names."""
    return name.title() if name.isupper() or name.islower() else name


def _title(name: str) -> tuple[str, str]:
    """Return the title of a name, such as "Mr." (see `TITLES`), and the rest; the title may be empty."""
    first, _, rest = name.partition(" ")
    return (first, rest) if rest and first.rstrip(".").casefold() in TITLES else ("", name)


def _distinct(names: Sequence[str], families: Sequence[str]) -> Iterator[str]:
    """Yield the names that share no word with an earlier one, but for the given family names and legal forms."""
    seen: set[str] = set()
    for name in names:
        words = set(company(name)[0].split()).difference(families)
        if not seen & words:
            seen |= words
            yield name


def _script(name: str) -> str:
    """Return the script of a name, a key of `LOCALES`; ValueError for a script without names."""
    scripts = Counter(unicodedata.name(letter, "?").split()[0] for letter in name if letter.isalpha())
    script = max(scripts, key=lambda key: (key in ("HIRAGANA", "KATAKANA"), scripts[key]), default="?")
    if script == "LATIN" and folded(name) != name.casefold():
        script = "ACCENTED"
    if script not in LOCALES:
        raise ValueError(f"there are no names to put in place of {quote(name)} (script: {script.lower()})")
    return script


def _of_lists(given: Sequence[str], families: Sequence[str], words: int, seed: str) -> Iterator[str]:
    """Yield names made from the lists, without end."""
    draw = random.Random(seed)
    while True:
        yield " ".join([*(draw.choice(given) for _ in range(words - 1)), draw.choice(families)])


def _of_script(script: str, words: int, families: Sequence[str], seed: str) -> Iterator[str]:
    """Yield names without end: given names and a family name; for one word, a given name, or both in one word."""
    draw = random.Random(seed)
    fakers = [_faker(locale) for locale in LOCALES[script]]
    for faker in fakers:
        faker.seed_instance(draw.getrandbits(32))
    while True:
        faker, gender = draw.choice(fakers), draw.choice(_GENDERS)
        given = [getattr(faker, f"first_name_{gender}")() for _ in range(max(words - 1, 1))]
        family = draw.choice(families) if families else getattr(faker, f"last_name_{gender}")()
        if script in _FAMILY_FIRST:
            name = ("" if words == 1 else " ").join([family, *given])
        else:
            name = " ".join([*given, family][:words])
        if script != "ACCENTED" or folded(name) != name.casefold():
            yield name


def _companies(own: str, form: str, seed: str) -> Iterator[str]:
    """Yield companies of this legal form, with as many words as their ``own`` name has, without end."""
    for name in _of_script(_script(own), len(own.split()) + 1, (), seed):
        yield f"{name.split(' ', 1)[1]} {form}"


def _addresses(subject: str, seed: str) -> Iterator[str]:
    """Yield e-mail addresses at the subject's domain, without end; with digits if the subject has some."""
    box, domain = subject.split("@", 1)
    draw = random.Random(seed)
    for name in _of_script("LATIN", 2, (), seed):
        number = re.sub(r"\d", lambda _: str(draw.randrange(10)), "".join(re.findall(r"\d", box)))
        yield f"{name.lower().replace(' ', '.' if '.' in box else '')}{number}@{domain}"


@cache
def _faker(locale: str) -> Any:
    from faker import Faker

    return Faker(locale, use_weighting=False)
