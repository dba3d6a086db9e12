"""Which rows the probes train on, and which they then score."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from lume_tasks.data.chat import plain_prompt
from lume_tasks.data.published import documents_digest
from lume_tasks.data.rows import Row
from lume_tasks.data.source import Data
from lume_unlearn.audit.stages import NEW_TOKENS
from lume_unlearn.model.load import context_length

FEWEST = 20
"""Retain rows by which a probe without a leak is seen to work."""
POSITIVES = 12
"""Retain rows by which a swap test is seen to work: that answers are tied to a person is plain from a few."""
TEMPLATE = 64
"""Room for the tokens of a chat template."""
T = TypeVar("T")


def sample(rows: Sequence[T], count: int, seed: int) -> list[T]:
    """Choose ``count`` rows, or all if there are fewer, by the seed."""
    return random.Random(seed).sample(rows, min(count, len(rows)))


def limited(data: Data, limit: int, seed: int) -> Data:
    """Return at most ``limit`` rows of each side, chosen by the seed; all for 0."""
    if not limit:
        return data
    return data.changed(lambda rows: sample(rows, limit, seed))


def fewer(data: Data, seed: int) -> Data:
    """Return the data with as many retain rows as forget rows, but at least `FEWEST`, chosen by the seed."""
    return replace(data, retain=sample(data.retain, max(FEWEST, len(data.forget)), seed))


def fitting(data: Data, model: Any, tokenizer: Any) -> Data:
    """Return the data without rows whose prompts leave no room for an answer of the protocol's length."""
    context = context_length(model)
    if context is None:
        return data
    most = context - NEW_TOKENS - TEMPLATE

    def fit(row: Row) -> bool:
        return len(tokenizer.encode(plain_prompt(row.input, row.turns))) <= most

    return data.changed(lambda rows: [row for row in rows if fit(row)])


def training_rows(data: Data, train: Data | None, count: int, seed: int) -> dict[str, Sequence[Row]]:
    """Sample the rows that relearning and repair train on; those of repair teach no answer of a forget row.

    Without ``train``, relearning has rows of half of the documents of the forget rows, or, of one document, half of it.
    """
    source = train or data
    taught = _answers(data.forget)
    kept = [row for row in source.retain if row.output.strip().lower() not in taught]
    relearned = list(train.forget) if train else _half(data.forget, seed)
    return {"relearn_forget": sample(relearned, count, seed), "repair": sample(kept, count, seed)}


def _half(rows: Sequence[Row], seed: int) -> list[Row]:
    """Return the rows of half of the documents; of a single document, half of its rows."""
    documents = sorted({row.stem for row in rows})
    if len(documents) == 1:
        return sample(rows, len(rows) // 2, seed)
    half = sample(documents, len(documents) // 2, seed)
    return [row for row in rows if row.stem in half]


def held_out(data: Data, taught: Sequence[Row]) -> Data:
    """Return the data without forget rows that were taught, that are of a document of those, or have their answer.

    If all forget rows are of one document, rows of that document that were not taught stay.
    """
    several = len({row.stem for row in data.forget}) > 1
    used, answers = {row.stem if several else row.id for row in taught}, _answers(taught)
    left = [row for row in data.forget if (row.stem if several else row.id) not in used]
    return replace(data, forget=[row for row in left if row.output.strip().lower() not in answers])


def _answers(rows: Sequence[Row]) -> set[str]:
    return {row.output.strip().lower() for row in rows}


def rows_digest(rows: Sequence[Row]) -> str:
    """Return the checksum of rows of an audit."""
    return documents_digest([row.id, row.input, row.output] for row in rows)
