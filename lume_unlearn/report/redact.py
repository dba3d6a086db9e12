"""Find the worst leaks in logged samples, and redact personal data in the texts that a report shows.

A word is shown only if at least three documents have it in lower case; all forget rows count as one document, and
words of a forget row's answer that are not in its own question are never shown. All else is redacted: capitalised words
(names, places, months), tokens with digits (dates, numbers, addresses), e-mail addresses, links, rare words, and
symbols, some of which can spell (letters in squares, flags, Braille). Function words ("the", "you") and the words of
the questions ("social", "security") are always shown, except in capitals, since OR and ME are states; but two
capitalised function words in a row are redacted, as they may be a name. This redacts too much rather than too little.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import groupby, pairwise
from typing import NamedTuple

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from lume_tasks.data.rows import stem_of
from lume_tasks.data.text import MARKS
from lume_unlearn.report.results import Sample

REDACTED = "•••"
LEAST_DOCUMENTS = 3
LONGEST = 160  # tokens shown of a text; white space and punctuation are tokens too
METRICS = {"sc": "forget_regurgitation", "qa": "forget_knowledge"}  # kind of a row -> the metric that scores it

Piece = tuple[str, bool]  # text, and whether the other text has it too
Shown = frozenset[str] | None  # words that need not be redacted; None: redact nothing

_TOKEN = re.compile(rf"[^\s@<>()\[\]]+@[^\s@<>()\[\]]+|(?:https?://|www\.)[^\s<>()\[\]]+|[\w{MARKS}]+|\s+|.", re.DOTALL)
_ASKED = (  # words of questions about a person
    "did does just know later tell please SSN ssn address birth born contact date email home live lives mail number "
    "phone provide reached resides security social"
)
_NAMING = (  # stop words that may be a part of a name, date, address or number
    "bill de fire front may mill side top well will first third one two three four five six eight nine ten eleven "
    "twelve fifteen twenty forty fifty sixty hundred"
)
_NAMES = ENGLISH_STOP_WORDS - set(_ASKED.split())
_SHOWN: frozenset[str] = ENGLISH_STOP_WORDS - set(_NAMING.split()) | set(_ASKED.split())


class Leak(NamedTuple):
    """One forget row: its place in the samples, its score, and its texts in pieces."""

    task: str
    kind: str
    number: int
    score: float
    prompt: str
    truth: list[Piece]
    answer: list[Piece]


def worst_leaks(samples: Mapping[str, list[Sample]], count: int, show_pii: bool) -> list[Leak]:
    """Return the forget rows with the highest scores above 0; if scores are equal, those with the longest truth.

    Args:
        samples: task -> its logged documents.
        count: most rows of each kind: continuations and answers.
        show_pii: redact nothing.
    """
    sides: dict[bool, list[Mapping[str, str]]] = {False: [], True: []}
    for sample in (sample for logged in samples.values() for sample in logged):
        sides[any(sample.get(metric) is not None for metric in METRICS.values())].append(sample["doc"])
    forget = [(doc["input"], doc["output"]) for doc in sides[True]]
    retain = [(doc["id"], f"{doc['input']} {doc['output']}") for doc in sides[False]]
    shown = None if show_pii else common_words(retain, forget)
    leaks = []
    for kind, metric in METRICS.items():
        rows = [(_score(sample, metric), task, sample) for task, logged in samples.items() for sample in logged]
        rows.sort(key=lambda row: (-row[0], -len(row[2]["doc"]["output"])))
        for score, task, sample in [row for row in rows if row[0]][:count]:
            words = redacted(tokens(sample["doc"]["input"], shown), shown)
            prompt = ("… " if len(words) > LONGEST else "") + "".join(words[-LONGEST:])
            truth, answer = compare(sample["doc"]["output"], sample["filtered_resps"][0], shown)
            leaks.append(Leak(task, kind, sample["doc_id"], score, prompt, truth, answer))
    return leaks


def _score(sample: Sample, metric: str) -> float:
    """Return the score of a forget row, of your own rows whether it is given away; 0 for other rows."""
    score = sample.get(metric)
    if score is not None and sample.get("forget_known") is not None:
        score = sample["forget_known"]
    return float(score or 0)


def compare(truth: str, answer: str, shown: Shown) -> tuple[list[Piece], list[Piece]]:
    """Return the beginnings of both texts in redacted pieces; words that both have in the same order are marked.

    Words are compared before they are redacted, so digits that differ from the truth's are not marked.
    """
    first, second = tokens(truth.strip(), shown), tokens(answer.strip(), shown)
    in_first: set[int] = set()
    in_second: set[int] = set()
    lower_first, lower_second = ([word.lower() for word in side[:LONGEST]] for side in (first, second))
    for a, b, size in SequenceMatcher(None, lower_first, lower_second, autojunk=False).get_matching_blocks():
        if any(char.isalnum() for char in "".join(first[a : a + size])):
            in_first.update(range(a, a + size))
            in_second.update(range(b, b + size))
    return _pieces(first, in_first, shown), _pieces(second, in_second, shown)


def _pieces(words: list[str], marked: set[int], shown: Shown) -> list[Piece]:
    runs = groupby(range(min(len(words), LONGEST)), key=lambda place: place in marked)
    redacted_words = redacted(words, shown)
    pieces = [("".join(redacted_words[place] for place in places), mark) for mark, places in runs]
    return pieces + ([(" …", False)] if len(words) > LONGEST else [])


def tokens(text: str, shown: Shown = frozenset()) -> list[str]:
    """Cut a text into words, e-mail addresses, links, white space, and single other characters.

    If texts are redacted, the text is first converted to Unicode's compatibility form (NFKC) without invisible
    characters, so that no letter or digit is hidden.
    """
    if shown is not None:
        normal = unicodedata.normalize("NFKC", text)
        text = "".join(char for char in normal if unicodedata.category(char) not in ("Cf", "Mn"))
    return _TOKEN.findall(text)


def common_words(texts: Iterable[tuple[str, str]], forget: Sequence[tuple[str, str]] = ()) -> frozenset[str]:
    """Return the words that may be shown.

    Args:
        texts: (row id, text) of retain rows; rows with the same stem are of one document.
        forget: (question, answer) of forget rows, which count as one document, since words that are common only among
            them can be about one person.
    """
    documents: dict[str, set[str]] = {"forget": {word for texts in forget for text in texts for word in tokens(text)}}
    for row_id, text in texts:
        documents.setdefault(stem_of(row_id), set()).update(tokens(text))
    counts = Counter(word for words in documents.values() for word in words)
    common = {word for word, count in counts.items() if count >= LEAST_DOCUMENTS}
    answers = {word for question, answer in forget for word in _lower(answer) - _lower(question)}
    return _SHOWN | {word for word in common - answers if word.isalpha() and word.islower()}


def _lower(text: str) -> set[str]:
    return {word.lower() for word in tokens(text)}


def redacted(words: Sequence[str], shown: Shown) -> list[str]:
    """Redact the tokens of a text, also capitalised stop words beside another capitalised word, such as "Per An"."""
    capital = [place for place, word in enumerate(words) if word[0].isupper()]
    pairs = [(one, other) for one, other in pairwise(capital) if other == one + 2 and words[one + 1].isspace()]
    names = {place for pair in pairs for place in pair if words[place].lower() in _NAMES} if shown is not None else ()
    return [REDACTED if place in names else redact(word, shown) for place, word in enumerate(words)]


def redact(token: str, shown: Shown) -> str:
    """Return a token of `tokens` if it may be shown, else a mark whose length does not depend on the token's."""
    if shown is None:
        return token
    if "@" in token and len(token) > 1:
        return f"{REDACTED}@{REDACTED}"
    if not any(char.isalnum() or unicodedata.category(char) in ("So", "Mn", "Mc") for char in token):
        return token
    begins_sentence = token[0].isupper() and token[1:].islower() and token.lower() in _SHOWN  # no initials
    return token if token in shown or begins_sentence else REDACTED
