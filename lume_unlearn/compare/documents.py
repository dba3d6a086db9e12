"""Divide a data directory by document: tuning documents, and final documents, on which tuning has no influence."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from lume_tasks.data import locate
from lume_tasks.data.rows import SIDES, TASKS, Row, completion_texts
from lume_tasks.errors import DataError
from lume_unlearn.files import write_text, writing

Sides = dict[str, list[Row]]
PARTS = ("tuning", "final")


def divided(rows: Mapping[str, Sequence[Row]], share: float, seed: int) -> dict[str, Sides]:
    """Divide the rows of both sides into "tuning" and "final", all rows of a document into the same part.

    Of each side and task, ``share`` of the documents are for tuning, at least one; one at least stays.

    Raises:
        DataError: a side has no task with two documents.
    """
    parts: dict[str, Sides] = {part: {side: [] for side in SIDES} for part in PARTS}
    order = random.Random(seed)
    for side in SIDES:
        for task in TASKS:
            own = [row for row in rows[side] if row.task == task]
            stems = sorted({row.stem for row in own})
            order.shuffle(stems)
            count = min(max(1, round(share * len(stems))), len(stems) - 1)
            chosen = set(stems[:count]) if len(stems) > 1 else set()
            for row in own:
                parts["tuning" if row.stem in chosen else "final"][side].append(row)
        if not parts["tuning"][side]:
            raise DataError(f"compare needs two {side} documents of one task: one for tuning, one for the final scores")
    return parts


def divided_attack(
    members: Sequence[str], nonmembers: Sequence[str], tuning: Sequence[Row], final: Sequence[Row]
) -> dict[str, tuple[list[str], list[str]]]:
    """Divide the documents of the membership attack into (members, non-members) of each part.

    A member belongs to the part whose forget rows hold it; members that are no forget row are left out, since no run
    unlearns them. Non-members are divided in the same proportion, in their order.
    """
    texts = {part: completion_texts(rows) for part, rows in (("tuning", tuning), ("final", final))}
    inside = {part: [text for text in members if text.strip() in texts[part]] for part in PARTS}
    total = sum(map(len, inside.values()))
    cut = round(len(nonmembers) * len(inside["tuning"]) / total) if total else 0
    return {"tuning": (inside["tuning"], list(nonmembers[:cut])), "final": (inside["final"], list(nonmembers[cut:]))}


def write_parts(data: Path, split: str, output: Path, share: float, seed: int) -> dict[str, Path]:
    """Write both parts as data directories ``tuning`` and ``final`` below ``output``, and return their folders.

    Raises:
        ConfigError: they cannot be written.
        DataError: faulty or too few rows.
    """
    parts = divided(locate.load_rows(data, split), share, seed)
    attack = {}
    if (data / "mia_data").is_dir():
        attack = divided_attack(*locate.load_mia(data), *(parts[part]["forget"] for part in PARTS))
    with writing(output):
        for part, sides in parts.items():
            for side, rows in sides.items():
                _write(output / part / f"{side}.jsonl", [vars(row) for row in rows])
            members, nonmembers = attack.get(part, ([], []))
            if members and nonmembers:
                _write(output / part / "mia_data" / "member.jsonl", [{"document": text} for text in members])
                _write(output / part / "mia_data" / "nonmember.jsonl", [{"document": text} for text in nonmembers])
    return {part: output / part for part in PARTS}


def _write(path: Path, objects: Sequence[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(obj, ensure_ascii=False) + "\n" for obj in objects))
