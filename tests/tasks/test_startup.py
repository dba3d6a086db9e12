"""The start-up hook, against a stand-in for the harness (tests/install runs it against the real one)."""

import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from lume_tasks import _startup
from lume_tasks.paths import task_dir

PACKAGES = Path(_startup.__file__).resolve().parents[1]  # the checkout, or site-packages where a wheel was installed
PTH = PACKAGES / "lume_tasks_autoload.pth"
if not PTH.exists():
    PTH = PACKAGES / "lume_tasks" / "lume_tasks_autoload.pth"
FOLDER = str(task_dir())

MANAGER = """
from pathlib import Path


class TaskManager:
    def __init__(self, verbosity=None, include_path=None, include_defaults=True, metadata=None):
        self.metadata = metadata
        given = include_path if isinstance(include_path, (list, tuple)) else [include_path] if include_path else []
        self.searched = [str(path) for path in given]
        self.all_tasks = sorted(file.stem for folder in self.searched for file in Path(folder).glob("**/*.yaml"))
"""
MODELS = """
from lm_eval.api.registry import model_registry

assert len(model_registry) == 0
model_registry.register("hf", target="lm_eval.models.huggingface:HFLM")
"""
REGISTRY = """
class Registry(dict):
    def register(self, name, *, target):
        self[name] = target


model_registry = Registry()
"""


def forget_harness():
    for name in [name for name in sys.modules if name == "lm_eval" or name.startswith("lm_eval.")]:
        del sys.modules[name]


@pytest.fixture
def harness(tmp_path, monkeypatch):
    """Put a stand-in for lm_eval first on the path; the value is the file of its TaskManager."""
    tasks = tmp_path / "site" / "lm_eval" / "tasks"
    tasks.mkdir(parents=True)
    (tasks.parent / "__init__.py").touch()
    (tasks / "__init__.py").write_text("from lm_eval.tasks.manager import TaskManager\n")
    (tasks / "manager.py").write_text(MANAGER)
    for name, content in (("models", MODELS), ("api", ""), ("api/registry", REGISTRY)):
        file = tasks.parent / f"{name}.py" if "/" in name else tasks.parent / name / "__init__.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(content)
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if type(f).__name__ != "HarnessFinder"])
    monkeypatch.delenv("LUME_TASKS_AUTOLOAD", raising=False)
    monkeypatch.syspath_prepend(tasks.parents[1])
    real = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "lm_eval"}
    forget_harness()
    yield tasks / "manager.py"
    forget_harness()
    sys.modules.update(real)


def import_manager():
    return importlib.import_module("lm_eval.tasks").TaskManager


def import_registry():
    importlib.import_module("lm_eval.models")
    return importlib.import_module("lm_eval.api.registry").model_registry


@pytest.mark.parametrize("loaded_before", [True, False])
def test_finds_the_tasks_and_registers_the_models_with_no_argument(harness, loaded_before):
    if loaded_before:
        import_manager(), import_registry()
    _startup.install()
    manager = import_manager()()
    assert manager.searched == [FOLDER]
    assert {"lume_task1", "lume_mmlu"} <= set(manager.all_tasks)
    assert import_registry() == {"hf": "lm_eval.models.huggingface:HFLM"} | _startup.MODELS


@pytest.mark.parametrize("wrap", [str, Path, lambda p: [p]])
@pytest.mark.parametrize("positional", [True, False])
def test_a_users_folders_come_after_ours_and_win(harness, tmp_path, wrap, positional):
    _startup.install()
    given = wrap(str(tmp_path))
    manager = import_manager()("INFO", given) if positional else import_manager()(include_path=given, metadata={"a": 1})
    assert manager.searched == [FOLDER, str(tmp_path)]
    assert manager.metadata == (None if positional else {"a": 1})


@pytest.mark.parametrize("given", [[task_dir()], FOLDER + "/../yaml_tasks/", str(task_dir().parent)])
def test_our_folder_is_not_searched_twice(harness, given):
    _startup.install()
    manager = import_manager()(include_path=given)
    assert len(manager.searched) == 1
    assert manager.all_tasks.count("lume_task1") == 1


@pytest.mark.parametrize("value", ["0", "Off"])
def test_off_switch(harness, monkeypatch, value):
    monkeypatch.setenv("LUME_TASKS_AUTOLOAD", value)
    before = list(sys.meta_path)
    _startup.install()
    assert sys.meta_path == before
    assert import_manager()().searched == []


def test_finding_the_module_does_not_import_it_and_the_loader_ends_as_it_was(harness):
    importlib.import_module("lm_eval")
    expected = importlib.machinery.PathFinder.find_spec("lm_eval.tasks", sys.modules["lm_eval"].__path__)
    _startup.install()
    spec = importlib.util.find_spec("lm_eval.tasks")
    assert (spec.origin, spec.submodule_search_locations) == (expected.origin, expected.submodule_search_locations)
    assert "lm_eval.tasks" not in sys.modules
    import_manager()
    assert vars(sys.modules["lm_eval.tasks"].__spec__.loader) == vars(expected.loader)


def test_a_changed_harness_is_left_alone_with_one_warning(harness, caplog):
    harness.write_text("class TaskManager:\n    def __init__(self, folders=()):\n        self.folders = folders\n")
    _startup.install()
    with caplog.at_level(logging.WARNING):
        managers = [import_manager()(("a",)), import_manager()()]
    assert [manager.folders for manager in managers] == [("a",), ()]
    assert [record.name for record in caplog.records] == ["lume_tasks"]
    assert '--include_path "$(lume-tasks path)"' in caplog.text


def test_entry_points_name_the_models_that_the_hook_registers():
    entries = importlib.metadata.distribution("lume-unlearning").entry_points.select(group="lm_eval.models")
    assert {entry.name: entry.value for entry in entries} == _startup.MODELS


def test_the_hook_loads_nothing_else():
    """In an interpreter without site-packages."""
    code = (
        f"import os, sys; sys.path.insert(0, {str(PACKAGES)!r}); before = set(sys.modules); exec({PTH.read_text()!r})"
    )
    code += "; print(sorted(set(sys.modules) - before), type(sys.meta_path[0]).__name__)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['lume_tasks', 'lume_tasks._startup'] HarnessFinder"
