"""Choose the rows that the probes train on, and the rows that they score afterwards."""

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from lume_tasks.data.chat import chat_prompt, plain_prompt, through_template
from lume_tasks.data.published import documents_digest
from lume_tasks.data.rows import Row, completion_texts
from lume_tasks.data.source import Data
from lume_tasks.data.subjects import find_subjects
from lume_tasks.data.text import ATTACHED, plain, whole
from lume_tasks.errors import DataError
from lume_tasks.metrics.matching import is_guess, is_known
from lume_unlearn.audit.stages import NEW_TOKENS
from lume_unlearn.model.load import context_length

FEWEST = 20
"""Fewest retain rows of a probe; they show whether a probe without a leak is informative."""
POSITIVES = 12
"""Retain rows of a swap test, its positive control; a few are enough to show a tie."""
TEMPLATE = 64
"""Tokens reserved for a chat template."""
T = TypeVar("T")


def sample(rows: Sequence[T], count: int, seed: int) -> list[T]:
    """Sample ``count`` rows, or all if there are fewer, with the seed."""
    return random.Random(seed).sample(rows, min(count, len(rows)))


def limited(data: Data, limit: int, seed: int) -> Data:
    """Return at most ``limit`` rows of each side, sampled with the seed; all for 0.

    Member documents of rows that are left out are left out, too.
    """
    if not limit:
        return data
    chosen = data.changed(lambda rows: sample(rows, limit, seed))
    unused = completion_texts(data.forget) - completion_texts(chosen.forget)
    return replace(chosen, members=[text for text in data.members if text.strip() not in unused])


def fewer(data: Data, seed: int) -> Data:
    """Return the data with as many retain rows as forget rows, but at least `FEWEST`, sampled with the seed."""
    return replace(data, retain=sample(data.retain, max(FEWEST, len(data.forget)), seed))


def fitting(data: Data, model: Any, tokenizer: Any, chat: bool) -> Data:
    """Return the data without rows that cannot be asked.

    Their prompt leaves too little context for `NEW_TOKENS` new tokens, or the chat template refuses it, as some do with
    a system turn.
    """
    context = context_length(model)

    def fit(row: Row) -> bool:
        if through_template(tokenizer, row.task, row.kind, chat):
            try:
                chat_prompt(tokenizer, row.input, row.turns)
            except DataError:
                return False
        if context is None:
            return True
        return len(tokenizer.encode(plain_prompt(row.input, row.turns))) <= context - NEW_TOKENS - TEMPLATE

    return data.changed(lambda rows: [row for row in rows if fit(row)])


def training_rows(data: Data, train: Data | None, count: int, seed: int) -> dict[str, Sequence[Row]]:
    """Sample the rows that relearning and repair train on; no row for repair has the answer of a forget row.

    Without ``train``, relearning uses half of the forget documents, or half of the rows if there is one document.
    """
    source = train or data
    taught = _answers(data.forget)
    kept = [row for row in source.retain if row.output.strip().lower() not in taught]
    relearned = list(train.forget) if train else _half(data.forget, seed)
    return {"relearn_forget": sample(relearned, count, seed), "repair": sample(kept, count, seed)}


def _half(rows: Sequence[Row], seed: int) -> list[Row]:
    """Return the rows of half of the documents, or half of the rows if there is one document."""
    documents = sorted({row.stem for row in rows})
    if len(documents) == 1:
        return sample(rows, len(rows) // 2, seed)
    half = sample(documents, len(documents) // 2, seed)
    return [row for row in rows if row.stem in half]


def held_out(data: Data, taught: Sequence[Row]) -> Data:
    """Return the data without forget rows that share a document or an answer with the rows that were taught.

    If all forget rows are of one document, rows that were not taught and have other answers stay.
    """
    several = len({row.stem for row in data.forget}) > 1
    used, answers = {row.stem if several else row.id for row in taught}, _answers(taught)
    left = [row for row in data.forget if (row.stem if several else row.id) not in used]
    return replace(data, forget=[row for row in left if row.output.strip().lower() not in answers])


def _answers(rows: Sequence[Row]) -> set[str]:
    return {row.output.strip().lower() for row in rows}


def about_earlier(retain: Sequence[Row], earlier: Sequence[Row]) -> list[Row]:
    """Return the retain rows with a question of an earlier request, or about one of its persons.

    Case, accents, white space and punctuation are ignored. A row is about a person if its subject is the person's name,
    or if its question, or a turn before it, holds this name, of two words or more, or in a script without spaces. The
    longer name of somebody else does not count: a row about Ana Lima Reis, whom `find_subjects` finds, is not about
    Ana Lima.
    """
    questions = {_question(row) for row in earlier}
    persons = {plain(name) for name in find_subjects(earlier).values()}
    names = [whole(person, genitive=True) for person in persons if re.search(rf"[ {ATTACHED}]", person)]
    subjects = {row_id: plain(name) for row_id, name in find_subjects(retain).items()}

    def about(row: Row) -> bool:
        own = subjects.get(row.id, "")
        text = " ".join([*(plain(content) for _, content in row.turns), plain(row.question or row.input)])
        if any(own.startswith(person) for person in persons - {own}):
            text = whole(own, genitive=True).sub(" ", text)
        return _question(row) in questions or plain(row.subject) in persons or any(name.search(text) for name in names)

    return [row for row in retain if about(row)]


def repeating_earlier(retain: Sequence[Row], earlier: Sequence[Row]) -> list[Row]:
    """Return the rows of `about_earlier` that give an answer of the earlier request away; guesses do not count."""
    answers = [row.output for row in earlier if not is_guess(row.output)]
    found = about_earlier(retain, earlier)
    return [row for row in found if any(is_known("qa", answer, row.output) for answer in answers)]


def _question(row: Row) -> tuple[str, ...]:
    return (*(plain(content) for _, content in row.turns), plain(row.input))


def rows_digest(rows: Sequence[Row]) -> str:
    """Return the SHA-256 (hexadecimal) of rows; subject, question and turns count in rows that have any of these."""

    def fields(row: Row) -> tuple[object, ...]:
        optional = (row.subject, row.question, row.turns)
        return (row.id, row.input, row.output, *(optional if any(optional) else ()))

    return documents_digest(map(fields, rows))
