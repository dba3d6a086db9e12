"""Parts of LUME that a comparison draws: the same each time, and disjoint where one names the other."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lume_tasks.data.locate import load_mia, load_rows
from lume_tasks.data.rows import SIDES

SCRIPT = Path(__file__).parent / "benchmarks/part_of_lume.py"


def write_jsonl(path: Path, objects: list[dict[str, str]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(obj) + "\n" for obj in objects))


@pytest.fixture
def lume(tmp_path: Path) -> Path:
    for side in SIDES:
        ids = [(f"Task{task}", f"{side}{task}{n}") for task in (1, 2, 3) for n in range(12)]
        rows = [{"id": f"{stem}sc1", "input": stem, "output": "known", "task": task} for task, stem in ids]
        write_jsonl(tmp_path / f"train/{side}.jsonl", rows)
    members = [{"document": f"forget3{n} known"} for n in range(12)]
    write_jsonl(tmp_path / "mia_data/member.jsonl", members)
    write_jsonl(tmp_path / "mia_data/nonmember.jsonl", [{"document": f"unseen {n}"} for n in range(12)])
    return tmp_path


def drawn(lume: Path, name: str, *options: str) -> dict[str, set[str]]:
    """Texts of the sides, members and non-members of a part."""
    command = [sys.executable, SCRIPT, lume, lume / name, "--documents", "4", "4", "4", "--nonmembers", "4", *options]
    subprocess.run(command, check=True)
    members, nonmembers = load_mia(lume / name)
    sides = {side: {row.input for row in rows} for side, rows in load_rows(lume / name).items()}
    return sides | {"members": set(members), "nonmembers": set(nonmembers)}


def test_parts_are_disjoint_and_drawn_again_alike(lume: Path) -> None:
    first = drawn(lume, "first")
    assert drawn(lume, "again") == first != drawn(lume, "seeded", "--seed", "1")
    second = drawn(lume, "second", "--other_than", str(lume / "first"))
    third = drawn(lume, "third", "--other_than", str(lume / "first"), str(lume / "second"))
    for kind, texts in first.items():
        sizes = len(texts), len(second[kind]), len(third[kind])
        assert sizes == ((4,) * 3 if "members" in kind else (12,) * 3)
        assert len(texts | second[kind] | third[kind]) == sum(sizes)
