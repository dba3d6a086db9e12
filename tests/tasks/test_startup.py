"""The start-up hook on stand-ins (tests/install runs it on the harness itself)."""

import importlib
import importlib.metadata
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lume_tasks import _startup
from lume_tasks.paths import task_dir

PACKAGES = Path(_startup.__file__).resolve().parents[1]  # the checkout, or site-packages where a wheel was installed
PTH = PACKAGES / "lume_tasks_autoload.pth"
if not PTH.exists():
    PTH = PACKAGES / "lume_tasks" / "lume_tasks_autoload.pth"
FOLDER = str(task_dir())


@pytest.fixture
def harness(monkeypatch):
    """A module like lm_eval.tasks, whose TaskManager keeps the folders that it was given."""
    monkeypatch.delenv("LUME_TASKS_AUTOLOAD", raising=False)

    class TaskManager:
        def __init__(self, verbosity=None, include_path=None, include_defaults=True, metadata=None):
            given = include_path if isinstance(include_path, (list, tuple)) else [include_path] if include_path else []
            self.searched = [str(path) for path in given]
            self.metadata = metadata

    return SimpleNamespace(__name__="lm_eval.tasks", TaskManager=TaskManager)


@pytest.mark.parametrize("wrap", [str, Path, lambda p: [p]])
def test_our_folder_is_searched_and_a_users_folders_come_later_and_win(harness, tmp_path, wrap):
    _startup.patch(harness)
    _startup.patch(harness)
    given = wrap(str(tmp_path))
    assert harness.TaskManager().searched == [FOLDER]
    assert harness.TaskManager("INFO", given).searched == [FOLDER, str(tmp_path)]
    manager = harness.TaskManager(include_path=given, metadata={"a": 1})
    assert (manager.searched, manager.metadata) == ([FOLDER, str(tmp_path)], {"a": 1})
    assert harness.TaskManager(include_defaults=False).searched == []


@pytest.mark.parametrize("given", [[task_dir()], FOLDER + "/../yaml_tasks/", str(task_dir().parent)])
def test_our_folder_is_not_searched_twice(harness, given):
    _startup.patch(harness)
    assert len(harness.TaskManager(include_path=given).searched) == 1


@pytest.mark.parametrize("value", ["0", "Off"])
def test_off_switch(harness, monkeypatch, value):
    monkeypatch.setenv("LUME_TASKS_AUTOLOAD", value)
    _startup.patch(harness)
    assert harness.TaskManager().searched == []


def test_a_changed_harness_is_left_alone_with_one_warning(harness, caplog):
    harness.TaskManager = SimpleNamespace
    with caplog.at_level(logging.WARNING):
        _startup.patch(harness)
    assert harness.TaskManager(folders=("a",)).folders == ("a",)
    assert [record.name for record in caplog.records] == ["lume_tasks"]
    assert '--include_path "$(lume-tasks path)"' in caplog.text


def test_a_module_is_patched_after_its_import_and_its_loader_ends_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "some_module.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    patched = []
    monkeypatch.setitem(_startup.PATCHES, "some_module", (lambda module: patched.append(module.value), ""))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    _startup.install()
    expected = importlib.machinery.PathFinder.find_spec("some_module")
    assert importlib.util.find_spec("some_module").origin == expected.origin
    assert patched == []
    module = importlib.import_module("some_module")
    assert patched == [1]
    assert vars(module.__spec__.loader) == vars(expected.loader)
    del sys.modules["some_module"]


def test_entry_points_name_the_models_that_the_hook_registers():
    entries = importlib.metadata.distribution("lume-unlearning").entry_points.select(group="lm_eval.models")
    assert {entry.name: entry.value for entry in entries} == _startup.MODELS


def test_the_hook_loads_nothing_else():
    """In an interpreter without site-packages."""
    code = f"import os, sys; sys.path.insert(0, {str(PACKAGES)!r}); before = set(sys.modules); "
    code += f"exec({PTH.read_text()!r}); print(sorted(set(sys.modules) - before), type(sys.meta_path[0]).__name__)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['lume_tasks', 'lume_tasks._startup'] HarnessFinder"
