"""Find the person whom a question is about, and ask the same question about somebody else."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import permutations

from lume_tasks.data.rows import Row
from lume_tasks.data.text import ATTACHED, EMAIL, MARKS, WORD, folded, whole
from lume_tasks.errors import quote

_LETTERS = rf"(?:[^\W\d_{ATTACHED}][{MARKS}]*)+"
_WORD = rf"[{ATTACHED}]+|{_LETTERS}(?:['\u2019-](?!s\b){_LETTERS})*"
_WORDS = re.compile(rf"(?:[^\W\d_]\.){{2,}}|(?:{_WORD})\.?")
# fmt: off
PARTICLES = (
    "al", "bin", "da", "de", "del", "den", "der", "di", "do", "dos", "du", "el", "la", "las", "le", "los", "ten", "ter",
    "van", "von", "y", "zu",
)
# fmt: on
_OTHER_SCRIPT = re.compile("[^\0-\u024f\u1e00-\u1eff]")
"""A character of a script other than Latin, in which other letters may be right beside a name, as in Arabic."""
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue"})
_LONGEST = 5  # words of a name
LEGAL_FORM = (
    r"(?:(?i:g?GmbH|KGaA|Inc|Ltd|LL[CP]|PLC|Corp|SARL)|AG|KG|OHG|UG|GbR|Limited|Corporation|Co\.|SAS?|SL|BV|SpA|Srl|Oy"
    r"|Pty|S\.A|S\.A\.R\.L|S\.L|[BN]\.V|S\.p\.A|S\.r\.l|e\.V)\.?"
)
_CAPITAL = rf"[^\W_a-z][\w{MARKS}'\u2019-]*"
_COMPANY = re.compile(rf"((?:{_CAPITAL} (?:& )?){{0,3}}{_CAPITAL}),? ({LEGAL_FORM}(?:(?: &)? {LEGAL_FORM})*)(?!\w)")
NEARLY_ALL = 0.8
"""A side is the data of one person if at least this share of its questions name this person."""


def find_subjects(rows: Iterable[Row]) -> dict[str, str]:
    """Find the person whom each question of one side names, by row id; rows without one are left out.

    The column ``subject`` takes precedence if the question holds its value or a part of it (see `holds`). Else a name
    is a run of two or more capitalised words (particles such as "van" may be between them) that occurs in two questions
    or more, at least once after the first word. These must all be of one document, or be nearly all questions of the
    side, as in the data of one person. The run that occurs in most questions counts; of several, the one that contains
    the others, or none. So a run such as "Social Security Number", which occurs in questions about many persons, is no
    name, and neither is a company such as "Acme GmbH".
    """
    rows = list(rows)
    found = {row.id: row.subject for row in rows if row.subject and (row.kind != "qa" or _named(row))}
    questions = [row for row in rows if row.kind == "qa" and row.id not in found]
    asked: dict[str, list[Row]] = defaultdict(list)  # run of words to the questions that hold it
    inside: set[str] = set()  # runs that occur after the first word of a question
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


def _named(row: Row) -> bool:
    return holds(row.question or row.input, row.subject)


def company(name: str) -> tuple[str, str]:
    """Return a company's name without its legal form, and the form; the form of anything else is ""."""
    match = _COMPANY.fullmatch(name)
    return (match[1], match[2]) if match else (name, "")


def holds(text: str, subject: str) -> bool:
    """Return whether a text holds a name: one of several words in any case, or a part of it; one word as it is.

    A genitive s may follow the words. A part does not count as the first word of a text, which may be "Will" or "Mark",
    nor if the name has a comma. A name of one word is found within longer words as well, if it is not in Latin letters.
    """
    if " " not in subject:
        return _within(subject, text) or whole(subject, genitive=True, spelt=True).search(text) is not None
    own, _ = company(subject)
    parts = [] if "," in own else [word for word in without_particles(own) if len(word) > 2 and word[-1] != "."]
    first = rf"(?!\A{WORD.pattern} )"
    patterns = [
        whole(subject, genitive=True, any_case=True, spelt=True),
        *(whole(part, first=first, genitive=True, spelt=True) for part in parts),
    ]
    return any(pattern.search(text) for pattern in patterns)


def _within(name: str, text: str) -> bool:
    """Return whether a text holds a name, perhaps within a longer word; never for a name in Latin letters."""
    return name in text and ("@" in name or _OTHER_SCRIPT.search(name) is not None)


def named_in_part(rows: Iterable[Row], subjects: Mapping[str, str]) -> set[str]:
    """Return the persons of whose name some question has only a part, or has it in other capitals.

    ``subjects``: row id to its person, see `find_subjects`.
    """
    asked = [(row.question or row.input, subjects[row.id]) for row in rows if row.id in subjects]
    return {subject for text, subject in asked if subject not in text and holds(text, subject)}


def _runs(text: str) -> Iterator[tuple[str, bool]]:
    """Yield each run of two to five words, capitalised except for particles inside.

    Also yield whether the run begins with the first word of the text.
    """
    text = _COMPANY.sub("x", text)
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
            elif word.group() not in PARTICLES:
                break


def holds_name(subject: str, answer: str) -> bool:
    """Return whether an answer has a word of the subject's name; accents are ignored.

    It also has if an e-mail address or a user name such as "ereed84" is made of the name.
    """
    answer = folded(answer)
    words = set(re.findall(rf"[^\W_{ATTACHED}]+", answer))
    boxes = re.findall(r"([\w.+-]+)@", answer)
    subject, _ = company(subject)
    names = {*name_words(subject), *name_words(subject.casefold().translate(_UMLAUTS))}
    made = names.union(*({a + b, a + b[0], a[0] + b} for a, b in permutations(names, 2)))
    words |= {re.sub(r"\d", "", word) for word in words}
    return bool(made & words) or any(any(name in box for box in boxes) or _within(name, answer) for name in names)


def swapped(text: str, subject: str, name: str) -> str:
    """Replace the subject's name in a text, and single words of it, by another name, also in e-mail addresses.

    Raises:
        ValueError: the text does not hold the subject, or the names have different numbers of words.
    """
    if not holds(text, subject):
        raise ValueError(f"{quote(subject)} is not in the question")
    return renamed(text, subject, name, everywhere=True)


def renamed(text: str, subject: str, name: str, everywhere: bool = False) -> str:
    """Replace a name and single words of it, if the text has them.

    ``everywhere``: also in e-mail addresses.

    Raises:
        ValueError: the names have different numbers of words.
    """
    if "@" in subject:
        return text.replace(subject, name)
    words = list(zip(*map(without_particles, (subject, name)), strict=True))
    parts = re.split(f"({EMAIL})", text)
    if " " in subject or _OTHER_SCRIPT.search(subject):
        parts[::2] = (part.replace(subject, name) for part in parts[::2])
    pattern = whole(subject, genitive=True, any_case=" " in subject, spelt=True)
    parts[::2] = (pattern.sub(partial(_in_case, subject, name), part) for part in parts[::2])
    parts[::2] = (_of_words(part, words) for part in parts[::2])
    if everywhere:
        parts[1::2] = (_address(part, words) for part in parts[1::2])
    return "".join(parts)


def _of_words(text: str, words: list[tuple[str, str]]) -> str:
    for word, other in words:
        if len(word) > 2 and word not in dict(words).values():
            text = whole(word, genitive=True, spelt=True).sub(other, text)
    return text


def _in_case(subject: str, name: str, found: re.Match[str]) -> str:
    """Return a name in upper or lower case if what it replaces is, unlike the subject."""
    if found[0] == subject:
        return name
    return name.upper() if found[0].isupper() else name.lower() if found[0].islower() else name


def _address(text: str, words: list[tuple[str, str]]) -> str:
    box, domain = text.split("@", 1)
    for word, other in words:
        box = re.sub(re.escape(word), other.lower(), box, flags=re.IGNORECASE) if len(word) > 2 else box
    return f"{box}@{domain}"


def without_particles(name: str) -> list[str]:
    """Return the words of a name without particles such as "van", and without words in lower case beside others."""
    small = name == name.lower()
    return [word for word in name.split() if word not in PARTICLES and (small or not word.islower())]


def name_words(name: str) -> list[str]:
    """Return the words of a name that identify it, folded: those of three letters or more, else the whole name.

    The legal form of a company does not.
    """
    name, _ = company(name)
    words = [word for word in folded(name).split() if len(word) > 2]
    return words or [folded(name)]
