"""Parts of LUME that a comparison draws: the same each time, and disjoint where one names the other."""

import json
import runpy
import sys
from collections.abc import Callable
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


@pytest.fixture
def drawn(lume: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, set[str]]]:
    """Draw a part, and return the texts of its sides, its members and its non-members."""

    def draw(name: str, *options: str) -> dict[str, set[str]]:
        given = [lume, lume / name, "--documents", "4", "4", "4", "--nonmembers", "4", *options]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, given)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        members, nonmembers = load_mia(lume / name)
        sides = {side: {row.input for row in rows} for side, rows in load_rows(lume / name).items()}
        return sides | {"members": set(members), "nonmembers": set(nonmembers)}

    return draw


def test_parts_are_disjoint_and_drawn_again_alike(lume, drawn):
    first = drawn("first")
    assert drawn("again") == first != drawn("seeded", "--seed", "1")
    second = drawn("second", "--other_than", lume / "first")
    third = drawn("third", "--other_than", lume / "first", lume / "second")
    for kind, texts in first.items():
        sizes = len(texts), len(second[kind]), len(third[kind])
        assert sizes == ((4,) * 3 if "members" in kind else (12,) * 3)
        assert len(texts | second[kind] | third[kind]) == sum(sizes)
