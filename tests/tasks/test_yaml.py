"""The task YAMLs hold names and plain values; what they name is there."""

from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from lume_tasks.paths import task_dir

FILES = sorted(path for path in task_dir().iterdir() if path.is_file() and path.suffix != ".md")
LEADERBOARD = ["lume_mia", "lume_mmlu", "lume_score", "lume_task1", "lume_task2", "lume_task3"]
MEMORIZATION = [f"lume_memorization_task{number}" for number in (1, 2, 3)]
GROUPS = ["lume", "lume_memorization"]
TASKS = sorted([*LEADERBOARD, *MEMORIZATION, "lume_pii"])


def test_the_folder_holds_the_promised_tasks_and_nothing_else() -> None:
    manager = TaskManager(include_path=task_dir(), include_defaults=False)
    assert manager.all_subtasks == TASKS
    assert manager.all_groups == GROUPS
    assert manager.all_tags == []
    templates = {"_generation_template_yaml", "_memorization_template_yaml"}
    assert {path.name for path in FILES} == {f"{name}.yaml" for name in GROUPS + TASKS} | templates


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_file_loads_with_a_version(path: Path) -> None:
    config = load_yaml(path, resolve_func=True)
    assert isinstance(config["metadata"]["version"], float)
    name = config["group"] if path.stem in GROUPS else config.get("task")
    assert name == (path.stem if path.suffix else None)


def test_the_score_comes_last_in_the_group() -> None:
    tasks = load_yaml(task_dir() / "lume.yaml")["task"]
    assert sorted(tasks) == LEADERBOARD
    assert tasks[-1] == "lume_score"
