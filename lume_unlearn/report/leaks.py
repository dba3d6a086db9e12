"""The forget rows that a model still knows best, with what it said beside the truth."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby, pairwise

from lume_unlearn.report.redact import common_words, mask, plain, tokens
from lume_unlearn.report.results import Sample

KINDS = {"sc": "forget_regurgitation", "qa": "forget_knowledge"}  # kind of a row -> the metric that scores it
LONGEST = 160  # tokens of a text that are shown, white space and punctuation among them

Piece = tuple[str, bool]  # text, and whether the other side has it too
Shown = frozenset[str] | None  # words that need no mask; None: show everything


@dataclass(frozen=True)
class Leak:
    """One forget row: where it stands in the samples, its score, and the texts in pieces."""

    task: str
    kind: str
    number: int
    score: float
    prompt: str
    truth: tuple[Piece, ...]
    answer: tuple[Piece, ...]


def worst_leaks(samples: dict[str, list[Sample]], count: int, show_pii: bool) -> list[Leak]:
    """The forget rows with the highest scores above 0: so many continuations, so many answers; long truths first.

    Args:
        samples: task -> its logged documents.
        count: rows of each kind.
        show_pii: texts as they are, instead of masked.
    """
    shown = None if show_pii else common_words(_documents(samples.values()))
    rows = [(task, sample) for task, logged in samples.items() for sample in logged]
    leaks = []
    for kind, metric in KINDS.items():
        scored = [(sample[metric], task, sample) for task, sample in rows if sample.get(metric)]
        scored.sort(key=lambda row: (-row[0], -len(row[2]["doc"]["output"]), row[1], row[2]["doc_id"]))
        leaks += [_leak(task, kind, sample, shown) for _, task, sample in scored[:count]]
    return leaks


def _documents(samples: Iterable[list[Sample]]) -> dict[str, list[str]]:
    """The texts by document: rows whose ids differ only in kind and digit are of one."""
    documents: dict[str, list[str]] = {}
    for doc in (sample["doc"] for logged in samples for sample in logged):
        documents.setdefault(doc["id"][:-3], []).extend((doc["input"], doc["output"]))
    return documents


def _leak(task: str, kind: str, sample: Sample, shown: Shown) -> Leak:
    doc = sample["doc"]
    words = _masked(_tokens(doc["input"], shown), shown)
    prompt = "".join(words) if len(words) <= LONGEST else "… " + "".join(words[-LONGEST:])
    truth, answer = compare(doc["output"], sample["filtered_resps"][0], shown)
    return Leak(task, kind, sample["doc_id"], sample[KINDS[kind]], prompt, truth, answer)


def compare(truth: str, answer: str, shown: Shown) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """Both texts in pieces, the words marked that stand in both in the same order; masked unless ``shown`` is None.

    What is compared are the words themselves, so that a mask over other digits than the truth's is not marked.
    """
    sides = [_tokens(text.strip(), shown) for text in (truth, answer)]
    places = [[i for i, token in enumerate(side) if any(map(str.isalnum, token))] for side in sides]
    words = [[side[i].lower() for i in place] for side, place in zip(sides, places, strict=True)]
    blocks = SequenceMatcher(None, words[0], words[1], autojunk=False).get_matching_blocks()
    same = [
        {place[block[number] + i] for block in blocks for i in range(block.size)} for number, place in enumerate(places)
    ]
    first, second = (
        _pieces(_masked(side, shown), _marked(place, both))
        for side, place, both in zip(sides, places, same, strict=True)
    )
    return first, second


def _tokens(text: str, shown: Shown) -> list[str]:
    return tokens(text if shown is None else plain(text))


def _masked(words: list[str], shown: Shown) -> list[str]:
    return words if shown is None else [mask(word, shown) for word in words]


def _marked(place: list[int], same: set[int]) -> set[int]:
    """The tokens to mark: the words that are the same, and what stands between two of them that are neighbours."""
    between = (range(left, right) for left, right in pairwise(place) if left in same and right in same)
    return same.union(*between)


def _pieces(shown: list[str], marked: set[int]) -> tuple[Piece, ...]:
    groups = groupby(enumerate(shown[:LONGEST]), key=lambda item: item[0] in marked)
    pieces = [("".join(token for _, token in group), mark) for mark, group in groups]
    return (*pieces, *([(" …", False)] if len(shown) > LONGEST else []))
