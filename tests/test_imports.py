"""The shape of the packages: imports point one way, files and functions are short, light commands need no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = {
    "lume_tasks": [("errors", "paths"), ("data", "metrics"), ("tasks", "models"), ("_startup", "cli")],
    "lume_unlearn": [
        ("errors", "files", "checks", "recipes"),
        ("report",),
        ("methods",),
        ("data",),
        ("model",),
        ("scoring",),
        ("training",),
        ("audit",),
        ("compare", "forget", "quickstart"),
        ("cli",),
    ],
}
"""Parts of each package. A part imports only from its own layer and from earlier ones, and all from lume_tasks."""
FILE_LINES, FUNCTION_LINES = 350, 50


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", LAYERS)
def test_imports_point_one_way(package):
    layer = {part: number for number, parts in enumerate(LAYERS[package]) for part in parts}
    wrong = []
    for path in sorted((ROOT / package).rglob("*.py")):
        own = path.relative_to(ROOT / package).with_suffix("").parts[0]
        if own in ("__init__", "__main__"):
            continue
        for top, _, rest in (name.partition(".") for name in imported(path)):
            # A public name of the package itself may come from anywhere, so it counts as the last layer.
            needed = layer.get(rest.partition(".")[0], len(layer)) if top == package else 0
            if needed > layer.get(own, -1) or (package, top) == ("lume_tasks", "lume_unlearn"):
                wrong.append(f"{path.relative_to(ROOT)}: {top}.{rest}")
    assert not wrong


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    nodes = [function, *(function.body[:1] if ast.get_docstring(function) else [])]
    own, *docstring = ((node.end_lineno or 0) - node.lineno + 1 for node in nodes)
    return own - sum(docstring)


def test_files_and_functions_are_short():
    long = []
    for path in (path for folder in (*LAYERS, "tests") for path in sorted((ROOT / folder).rglob("*.py"))):
        name, count = path.relative_to(ROOT), len(path.read_text(encoding="utf-8").splitlines())
        functions = [
            node for node in ast.walk(tree_of(path)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        ]
        long += [f"{name}: {count} lines"] if count > FILE_LINES else []
        long += [f"{name}: {one.name}: {lines_of(one)} lines" for one in functions if lines_of(one) > FUNCTION_LINES]
    assert not long


LIGHT = """
import sys
from lume_unlearn.cli.main import COMMANDS, main
light = [[name, "--help"] for name in COMMANDS if name not in ("run", "finetune", "compare")]
for words in [["--help"], ["path"], ["methods"], *light]:
    try:
        assert not main(words)
    except SystemExit as leaving:
        assert not leaving.code
heavy = {"torch", "transformers", "lm_eval", "peft", "pandas", "accelerate", "datasets", "numpy"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
import lume_unlearn.report.card, lume_unlearn.report.page
assert not {"torch", "transformers"} & sys.modules.keys()
"""


def test_help_path_and_report_start_without_torch():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
