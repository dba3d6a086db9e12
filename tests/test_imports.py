"""Imports point one way, and the command line starts without torch."""

import ast
from pathlib import Path

import pytest

import lume_tasks
import lume_unlearn

FLOORS = {
    "lume_tasks": [("errors", "paths"), ("data", "metrics"), ("tasks", "models"), ("_startup", "cli")],
    "lume_unlearn": [
        ("errors", "files"),
        ("methods",),
        ("config", "faults"),
        ("data",),
        ("model",),
        ("training", "evaluation", "report"),
        ("quickstart", "compare"),
        ("__init__", "cli", "__main__"),
    ],
}
ROOTS = {
    name: Path(package.__file__).parent
    for name, package in (("lume_tasks", lume_tasks), ("lume_unlearn", lume_unlearn))
}


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", FLOORS)
def test_imports_point_one_way(package: str) -> None:
    floor = {part: number for number, parts in enumerate(FLOORS[package]) for part in parts}
    wrong = []
    for path in sorted(ROOTS[package].rglob("*.py")):
        own = path.relative_to(ROOTS[package]).with_suffix("").parts[0]
        for name in imported(path):
            if name.startswith(f"{package}.") and own not in ("__init__", "__main__"):
                other = name.split(".")[1]
                if other in floor and floor[other] > floor[own]:
                    wrong.append(f"{path}: {name}")
    assert not wrong


def test_tasks_do_not_import_trainers() -> None:
    for path in ROOTS["lume_tasks"].rglob("*.py"):
        assert not [name for name in imported(path) if name.startswith("lume_unlearn")], path


def test_the_report_names_every_attack() -> None:
    from lume_tasks.tasks.mia import ATTACKS
    from lume_unlearn.report import glossary

    assert set(glossary.ATTACKS) == set(ATTACKS)
