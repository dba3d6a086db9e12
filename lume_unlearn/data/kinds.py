"""The kind of thing that words name (date, place, woman, man), by the lists of Faker; and random numbers."""

import calendar
import random
import re
from collections.abc import Iterable
from functools import cache

from lume_tasks.data.invented import LOCALES, listed_names, provider_of

_PLACES = ("cities", "city_names", "states", "regions", "provinces", "departments", "prefectures", "countries")
_DATES = ("MONTH_NAMES", "DAY_NAMES")
_ALL_LOCALES = sorted({locale for locales in LOCALES.values() for locale in locales})


@cache
def dates() -> dict[str, list[str]]:
    """Return each name of a month or day of the week, mapped to the other names of its kind in the same language."""
    kinds = [list(calendar.month_name)[1:], list(calendar.day_name)]
    kinds += [_listed("date_time", locale, [name]) for locale in _ALL_LOCALES for name in _DATES]
    found: dict[str, list[str]] = {}
    for kind in kinds:
        for name in kind:
            found.setdefault(name, [other for other in kind if other != name])
    return found


def kind_of(words: str) -> str:
    """Return "place", "man", "woman", "person" (either), "capitals" with their number, or "" for anything else.

    Several words are a person if the first is a given name.
    """
    first = words.split()[0]
    if words in _places():
        return "place"
    if first in _given():
        return _given()[first]
    return f"capitals {len(words)}" if words.isupper() else ""


def other_number(digits: str, chooser: random.Random) -> str:
    """Return a random number of as many digits.

    A date stays a date: two digits become another number up to 12, and a year keeps its century.
    """
    if len(digits) == 2:
        return chooser.choice([two for two in (f"{number:02}" for number in range(1, 13)) if two != digits])
    kept = 2 if re.fullmatch("(19|20)[0-9]{2}", digits) else 0
    return digits[:kept] + "".join(str(chooser.randrange(10)) for _ in digits[kept:])


@cache
def _places() -> frozenset[str]:
    return frozenset(name for locale in _ALL_LOCALES for name in _listed("address", locale, _PLACES))


@cache
def _given() -> dict[str, str]:
    """Return each given name with "man", "woman", or "person" if it is both."""
    found: dict[str, str] = {}
    for locale in _ALL_LOCALES:
        of_men, of_women, _, _ = listed_names(locale)
        for kind, names in (("man", of_men), ("woman", of_women)):
            found |= {name: kind if found.get(name, kind) == kind else "person" for name in names}
    return found


def _listed(provider: str, locale: str, names: Iterable[str]) -> list[str]:
    """Return the words in these lists of a Faker provider for a locale; none if it has no such list."""
    lists = provider_of(provider, locale)
    found = [getattr(lists, name, ()) for name in names]
    words = [word for words in found for word in (words.values() if isinstance(words, dict) else words)]
    return list(dict.fromkeys(word if isinstance(word, str) else word[-1] for word in words))
