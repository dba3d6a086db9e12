"""The task YAMLs hold names and plain values; what they name is there."""

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from lume_tasks.paths import task_dir
from lume_tasks.tasks import mia
from lume_tasks.tasks.base import LumeTask
from lume_tasks.tasks.generation import INTERVAL_METRICS, MAIN_METRICS, ROUGE1_METRICS, GenerationTask
from lume_tasks.tasks.memorization import MemorizationTask

FILES = sorted(path for path in task_dir().iterdir() if path.is_file() and path.suffix != ".md")
LEADERBOARD = ["lume_mia", "lume_mmlu", "lume_score", "lume_task1", "lume_task2", "lume_task3"]
MEMORIZATION = [f"lume_memorization_task{number}" for number in (1, 2, 3)]
GROUPS = ["lume", "lume_memorization"]
TASKS = sorted([*LEADERBOARD, *MEMORIZATION, "lume_pii"])


class Function(str):
    """The dotted name behind ``!function``."""


class Loader(yaml.SafeLoader):
    pass


Loader.add_constructor("!function", lambda loader, node: Function(loader.construct_scalar(node)))


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def test_the_folder_holds_the_promised_tasks_and_nothing_else() -> None:
    manager = TaskManager(include_path=task_dir(), include_defaults=False)
    assert manager.all_subtasks == TASKS
    assert manager.all_groups == GROUPS
    assert manager.all_tags == []
    templates = {"_generation_template_yaml", "_memorization_template_yaml"}
    assert {path.name for path in FILES} == {f"{name}.yaml" for name in GROUPS + TASKS} | templates


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_file_is_plain(path: Path) -> None:
    raw = yaml.load(path.read_text(encoding="utf-8"), Loader)
    assert "tag" not in raw  # stock tags stay as they are
    assert "include" not in raw or (task_dir() / raw["include"]).is_file()
    for leaf in leaves(raw):
        assert leaf is None or isinstance(leaf, (str, int, float, bool))
        if isinstance(leaf, Function):
            module, _, name = leaf.rpartition(".")
            assert module.startswith("lume_tasks.")
            target = getattr(importlib.import_module(module), name)
            assert inspect.isfunction(target) or inspect.isclass(target)
            assert target.__module__ == module
        elif isinstance(leaf, str):
            assert "{{" not in leaf
            assert "{%" not in leaf


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_file_loads_with_a_version(path: Path) -> None:
    config = load_yaml(path, resolve_func=True)
    assert isinstance(config["metadata"]["version"], float)
    name = config["group"] if path.stem in GROUPS else config.get("task")
    assert name == (path.stem if path.suffix else None)


def better(task: type[LumeTask]) -> dict[str, bool | None]:
    return {name: higher for name, (_, higher) in task.metrics.items()}


def test_generation_tasks_name_every_metric_and_its_direction() -> None:
    against_reference = {f"distance_{name}": False for name in MAIN_METRICS} | {"forget_quality": True}
    own = {name: name.startswith("retain") for name in MAIN_METRICS + ROUGE1_METRICS + INTERVAL_METRICS}
    assert better(GenerationTask) == own | against_reference


def test_memorization_names_every_metric_and_its_direction() -> None:
    names = ("exact_memorization", "extraction_strength", "probability", "probability_geometric", "loss")
    wanted = {
        f"{side}_{name}": (side == "retain") != (name == "loss") for side in ("forget", "retain") for name in names
    }
    assert better(MemorizationTask) == wanted | {"forget_quality": True}


def test_mia_names_every_metric_and_its_direction() -> None:
    attacks = {f"{attack}_{summary}": False for attack in mia.ATTACKS for summary in mia.SUMMARIES}
    assert better(mia.MiaTask) == attacks | {
        "mia_score": True,
        "members_unlearned": None,
        "mia_gap": None,
        "privleak": None,
    }


def test_the_score_comes_last_in_the_group() -> None:
    tasks = load_yaml(task_dir() / "lume.yaml")["task"]
    assert sorted(tasks) == LEADERBOARD
    assert tasks[-1] == "lume_score"
