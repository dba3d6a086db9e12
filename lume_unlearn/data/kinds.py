"""The kind of thing that words name (date, place, woman, man), by the lists of Faker; and random numbers."""

import calendar
import random
import re
from collections.abc import Iterable
from functools import cache
from itertools import pairwise

from lume_tasks.data.invented import LOCALES, listed_names, provider_of
from lume_tasks.data.text import MARKS

_PLACES = ("cities", "city_names", "states", "regions", "provinces", "departments", "prefectures", "countries")
_DATES = ("MONTH_NAMES", "DAY_NAMES")
_QUESTION = re.compile(rf"(?:\A|[?!\n\u00bf])\s*((?:[^\W\d_][{MARKS}]*)+) ([^.?!:\n\u00bf]+)(?=\?)")
_GERMAN = re.compile(
    r"(?i)\b(?:der|die|das|ist|hat|wird|wurde|und|von|kann|können|ich|sie|wann|wer|wie|wo|welche[mnrs]?|bitte)\b"
)
_CAPITAL = "[^\\W\\d_a-zäöü]"
_NOUN = re.compile(
    r"(?<!v[ao]n )\b(?i:d(?:er|ie|as|em)|[mdsk]?eine?[mnrs]?|ihre?[mnrs]?|(?:welch|dies)e[mnrs]?|zu[mr]|vom|beim|im) "
    rf"({_CAPITAL}[\w{MARKS}-]*[\w{MARKS}])(?![\w{MARKS}-]| {_CAPITAL})"
)
"""A German noun after an article or a similar word, unless another capitalised word follows: "die Deutsche Bank"."""
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


def common_words(text: str) -> set[str]:
    """Return words of a text that are capitalised, but no names, in lower case; some of them may be names.

    These are the first word of a question in which a name or noun follows a word in lower case ("Wann wurde Ana Roe"),
    and in German the polite forms and a noun right after an article or a similar word ("Welche Adresse hat").
    """
    found = set()
    for first, rest in _QUESTION.findall(text):
        if any(word.islower() and other[0].isupper() for word, other in pairwise(rest.split())):
            found.add(first)
    if len({word.lower() for word in _GERMAN.findall(text)}) > 1:
        found |= {*_NOUN.findall(text), "Sie", "Ihnen", "Ihr", "Ihre"}
    return {word.lower() for word in found if not kind_of(word) and word not in dates()}


def other_number(digits: str, chooser: random.Random, alone: bool = False) -> str:
    """Return a random number of as many digits.

    A date stays a date: two digits become another number up to 12, and a year keeps its century. Two digits ``alone``
    may be an age or a floor: from 10 on, they stay within 10 to 23 (also a day or an hour), 32 to 59, or 60 to 99.
    """
    if len(digits) == 2:
        value = int(digits) if alone else 0
        least, most = (60, 99) if value > 59 else (32, 59) if value > 31 else (10, 23) if value > 9 else (1, 12)
        two_digits = (f"{number:02}" for number in range(least, most + 1))
        return chooser.choice([other for other in two_digits if other != digits])
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
