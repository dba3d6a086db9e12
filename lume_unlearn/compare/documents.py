"""Divide a data directory by document: tuning documents, and final documents, on which tuning has no influence."""

import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lume_tasks.data import locate
from lume_tasks.data.rows import SIDES, Row, completion_texts
from lume_tasks.errors import DataError
from lume_unlearn.data.alternatives import read_alternatives
from lume_unlearn.files import write_text, writing

Sides = dict[str, list[Row]]
PARTS = ("tuning", "final")
ALTERNATIVES = "alternatives.jsonl"


def divided(rows: Mapping[str, Sequence[Row]], share: float, seed: int) -> dict[str, Sides]:
    """Divide the rows of both sides into "tuning" and "final", all rows of a document into the same part.

    Of each side and task, ``share`` of the documents are for tuning, at least one; one at least stays.

    Raises:
        DataError: a side has no task with two documents.
    """
    parts: dict[str, Sides] = {part: {side: [] for side in SIDES} for part in PARTS}
    order = random.Random(seed)
    for side in SIDES:
        for task in sorted({row.task for row in rows[side]}):
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


def division(data: Path, split: str, alternatives: str | None, share: float, seed: int) -> dict[str, str]:
    """Return the files of two data directories, ``tuning`` and ``final``: path to content.

    Raises:
        DataError: faulty or too few rows.
    """
    rows = locate.load_rows(data, split)
    parts = divided(rows, share, seed)
    files = {f"{part}/{side}.jsonl": _lines(map(vars, parts[part][side])) for part in PARTS for side in SIDES}
    if (data / "mia_data").is_dir():
        attack = divided_attack(*locate.load_mia(data), *(parts[part]["forget"] for part in PARTS))
        for part, (members, nonmembers) in attack.items():
            if members and nonmembers:
                files[f"{part}/mia_data/member.jsonl"] = _lines({"document": text} for text in members)
                files[f"{part}/mia_data/nonmember.jsonl"] = _lines({"document": text} for text in nonmembers)
    if alternatives is not None:
        found = read_alternatives(Path(alternatives), rows["forget"])
        own = [(row.id, text) for row in parts["tuning"]["forget"] for text in found[row.id]]
        files[f"tuning/{ALTERNATIVES}"] = _lines({"id": row_id, "alternative": text} for row_id, text in own)
    return files


def digest(files: Mapping[str, str]) -> str:
    """SHA-256 (hexadecimal) of paths and contents."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def write_division(files: Mapping[str, str], output: Path) -> dict[str, Path]:
    """Write the files below ``output``, and return the two data directories.

    Raises:
        ConfigError: they cannot be written.
    """
    with writing(output):
        for name, content in files.items():
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            write_text(output / name, content)
    return {part: output / part for part in PARTS}


def _lines(objects: Iterable[Mapping[str, object]]) -> str:
    return "".join(json.dumps(dict(obj), ensure_ascii=False) + "\n" for obj in objects)
