"""Decide from a model's answers which rows it knows."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain

from lume_tasks.data.rows import SIDES, Row
from lume_tasks.data.text import plain
from lume_tasks.metrics.matching import FEW, is_guess, is_known, words_of


class Matcher:
    """Decides which answers give a row of the data away (see `is_known`).

    The words of a row's prompt and of retain rows of other documents say nothing about the row.
    """

    common: dict[str, frozenset[str]]
    """Row id to the words that say nothing about the row."""

    def __init__(self, rows: Mapping[str, Sequence[Row]], retain: Iterable[Row] | None = None) -> None:
        """Collect the words of both sides; ``retain``: all retain rows, if ``rows`` has only some of them."""
        self._rows, self._retain = rows, list(rows["retain"] if retain is None else retain)
        self._answers: dict[str, set[str]] = defaultdict(set)  # answer of a retain row to the documents that have it
        documents: dict[str, set[str]] = defaultdict(set)  # word of the retain rows to the documents that have it
        for row in self._retain:
            self._answers[plain(row.output)].add(row.stem)
            for word in _words(row.input) | _words(row.output):
                documents[word].add(row.stem)
        self.common = {row.id: _common(row, documents) for row in chain(*rows.values(), self._retain)}

    def known(self, answers: Mapping[str, str]) -> dict[str, set[str]]:
        """Return the ids of the rows on each side whose answer gives the truth away.

        Args:
            answers: row id to generated text; rows without one do not count as known.
        """
        return {side: {row.id for row in self._rows[side] if self._is_known(row, answers)} for side in SIDES}

    def guesses(self) -> dict[str, set[str]]:
        """Return the ids of the questions on each side whose answer may be right by chance.

        That is, `is_guess` is true, a retain row of another document has the same answer, or the row's own prompt has
        all words of it, as in "Does she live in Bonn or in Rome?" or after a system prompt with her phone number.
        """
        return {
            side: {row.id for row in self._rows[side] if row.kind == "qa" and self._is_guess(row)} for side in SIDES
        }

    def of_others(self, answers: Mapping[str, str]) -> set[str]:
        """Return the ids of the forget rows whose generated answer gives a retain row away, and not the truth.

        Such an answer says about one person what is true of another one. Retain rows that can be guessed do not count.
        """
        others: dict[str, list[Row]] = defaultdict(list)  # word to the retain rows whose answer has it as an own word
        for row in self._retain:
            if not self._is_guess(row):
                for word in _words(row.output) - self.common[row.id]:
                    others[word].append(row)
        found = set()
        for row in self._rows["forget"]:
            text = answers.get(row.id, "")
            near = {other.id: other for word in _words(text) for other in others[word]} if text else {}
            told = any(is_known(other.kind, other.output, text, self.common[other.id]) for other in near.values())
            if told and not self._is_known(row, answers):
                found.add(row.id)
        return found

    def telling(self) -> set[str]:
        """Return the ids of the forget rows for which completing a begun answer shows knowledge of the row.

        Their answers have at least `FEW` own words, or one with a digit. Any model that has seen a few words about
        somebody, such as an occupation, or words of the texts about others, can complete them from their beginning.
        """
        own = {row.id: _words(row.output) - self.common[row.id] for row in self._rows["forget"]}
        return {row for row, words in own.items() if len(words) >= FEW or any(map(str.isdecimal, "".join(words)))}

    def _is_guess(self, row: Row) -> bool:
        elsewhere = self._answers.get(plain(row.output), set()) - {row.stem}
        return bool(elsewhere) or is_guess(row.output, self.common[row.id]) or _words(row.output) <= _prompt(row)

    def _is_known(self, row: Row, answers: Mapping[str, str]) -> bool:
        return row.id in answers and is_known(row.kind, row.output, answers[row.id], self.common[row.id])


@lru_cache(maxsize=100_000)
def _words(text: str) -> frozenset[str]:
    """Return `words_of` a text, cached: training scores the same rows after each epoch."""
    return words_of(text)


def _common(row: Row, documents: Mapping[str, set[str]]) -> frozenset[str]:
    elsewhere = (word for word in _words(row.output) if documents.get(word, set()) - {row.stem})
    return _prompt(row).union(elsewhere)


def _prompt(row: Row) -> frozenset[str]:
    return _words(row.input).union(*(_words(text) for _, text in row.turns))
