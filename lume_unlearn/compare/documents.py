"""Divide data by document: tuning documents, and final documents, which tuning does not use."""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from lume_tasks.data.rows import SIDES, Row, completion_texts
from lume_tasks.data.source import Data
from lume_tasks.errors import DataError
from lume_unlearn.errors import ConfigError


@dataclass(frozen=True)
class Parts:
    """The data of a comparison."""

    whole: Data
    """What the final runs unlearn."""
    tuning: Data
    """The tuning documents, which trials unlearn and are judged on."""
    final: Data
    """The other documents, which final runs are scored on."""


def divided(data: Data, share: float, seed: int) -> Parts:
    """Divide data into tuning data and final data, all rows of a document into the same part.

    For each side and task, ``share`` of the documents are for tuning, at least one if there are two; at least one is
    final. A member document belongs to the part whose forget rows contain it; members that are no forget row are left
    out, since no run unlearns them. Non-members are divided in the same proportion, in their order. Tuning has no MMLU.

    Raises:
        ConfigError: the share is not between 0 and 1.
        DataError: a side has no task with two documents.
    """
    if not 0 < share < 1:
        raise ConfigError(
            f"--tuning_share {share}: must be above 0 and below 1, such as 0.25: tuning and scoring need documents"
        )
    order = random.Random(seed)
    chosen = {row for side in SIDES for row in _tuning_rows(side, data.rows[side], share, order)}
    tuning = data.changed(lambda rows: [row for row in rows if row in chosen])
    final = data.changed(lambda rows: [row for row in rows if row not in chosen])
    texts = [completion_texts(part.forget) for part in (tuning, final)]
    members = [[text for text in data.members if text.strip() in own] for own in texts]
    total = sum(map(len, members))
    cut = round(len(data.nonmembers) * len(members[0]) / total) if total else 0
    tuning = replace(tuning, members=members[0], nonmembers=data.nonmembers[:cut], mmlu=None)
    return Parts(data, tuning, replace(final, members=members[1], nonmembers=data.nonmembers[cut:]))


def _tuning_rows(side: str, rows: Sequence[Row], share: float, order: random.Random) -> set[Row]:
    chosen: set[tuple[str, str]] = set()
    for task in sorted({row.task for row in rows}):
        stems = sorted({row.stem for row in rows if row.task == task})
        order.shuffle(stems)
        count = min(max(1, round(share * len(stems))), len(stems) - 1)
        chosen |= {(task, stem) for stem in stems[:count]}
    if not chosen:
        raise DataError(f"compare needs two {side} documents of one task: one for tuning, one for the final scores")
    return {row for row in rows if (row.task, row.stem) in chosen}


def digest(parts: Parts, alternatives: Mapping[str, Sequence[str]] | None) -> str:
    """Compute the SHA-256 (hexadecimal) of rows, documents, their division and the alternatives, but not of MMLU."""
    found = [asdict(replace(part, mmlu=None)) for part in (parts.whole, parts.tuning)]
    content = json.dumps([*found, alternatives and dict(alternatives)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
