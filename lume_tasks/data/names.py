"""Find names of persons in the user's rows, to warn of retain rows about the person to forget."""

import re
from collections import Counter
from itertools import groupby

from lume_tasks.data.items import Item
from lume_tasks.data.text import MARKS, UNSPACED, WORD, folded

_TOKEN = re.compile(rf"{WORD.pattern}(?:['\u2019-]\w[\w{MARKS}]+)*|[^\w\s]")
_UNSPACED = re.compile(f"[{UNSPACED}]")
_PART = 3  # least letters of a single first or last name


def names_in(text: str) -> set[str]:
    """Return runs of capitalised words, each also without its first word, which may only begin a sentence."""
    runs = [list(run) for capital, run in groupby(_TOKEN.findall(text), lambda token: token[0].isupper()) if capital]
    return {" ".join(run[start:]) for run in runs for start in (0, 1) if len(run) - start > 1}


def shared_names(forget: list[Item], retain: list[Item]) -> tuple[list[str], list[str]]:
    """List the retain items that contain a name of the forget items, and those that perhaps do.

    Names are the values of the fields for subject and document, and runs of capitalised words in several forget items.
    Case and accents are ignored. One word of a name counts as "perhaps" if it is capitalised and, unlike a common word,
    never written in lower case.
    """
    names = _names(forget)
    # A common word in capitals is no name: names of one word must be capitalised.
    whole = {folded(name): name for name in names if " " in name or _caseless(name)}
    single = {folded(name): name for name in names - set(whole.values())}
    texts = [f"{item.document} . {item.subject} . {_all_text(item)}" for item in retain]
    common = {word for text in [*texts, *map(_all_text, forget)] for word in _TOKEN.findall(text) if word.islower()}
    common = {folded(word) for word in common}
    parts = {folded(part): part for name in names if " " in name for part in name.split() if len(part) >= _PART}
    parts = {plain: part for plain, part in parts.items() if plain not in common}
    certain, perhaps = [], []
    for item, text in zip(retain, texts, strict=True):
        words = {folded(word): word for word in _TOKEN.findall(text) if word[0].isupper() or _caseless(word)}
        name = _held(text, whole) or next((single[word] for word in words if word in single), None)
        part = next((parts[word] for word in words if word in parts), None)
        if name:
            certain.append(f"{item.place}: {name}")
        elif part:
            perhaps.append(f"{item.place}: {part}")
    return certain, perhaps


def _names(items: list[Item]) -> set[str]:
    """Return the names of forget items, with a space between all tokens."""
    found = Counter(name for item in items for name in names_in(item.text))
    # "Did Ada Byron" is less frequent than "Ada Byron", so "Did" only begins sentences.
    names = {name for name, number in found.items() if number > 1 and number >= found[name.partition(" ")[2]]}
    values = {item.subject for item in items}
    values |= {item.document for item in items if item.document[:1].isupper() and len(item.document) > 2}
    values |= {item.document for item in items if len(item.document) > 1 and _caseless(item.document)}
    return names | {" ".join(_TOKEN.findall(value)) for value in values if value}


def _held(text: str, names: dict[str, str]) -> str | None:
    """Return the first name that a text contains as whole words; names of more words are tried first."""
    words = [folded(word) for word in _TOKEN.findall(text)]
    sizes = sorted({name.count(" ") + 1 for name in names}, reverse=True)
    runs = (" ".join(words[i : i + size]) for size in sizes for i in range(len(words)))
    name = next((names[run] for run in runs if run in names), None)
    unspaced = (shown for shown in names.values() if _UNSPACED.search(shown) and shown in text)
    return name or next(unspaced, None)


def _all_text(item: Item) -> str:
    return " ".join([*(content for _, content in item.turns), item.text])


def _caseless(text: str) -> bool:
    """Return whether a text has letters, all of a script without capitals."""
    letters = [char for char in text if char.isalpha()]
    return bool(letters) and all(char.lower() == char.upper() for char in letters)
