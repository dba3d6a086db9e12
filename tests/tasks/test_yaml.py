"""The task YAMLs hold names and plain values; what they name is there."""

from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from lume_tasks.paths import task_dir

LEADERBOARD = ["lume_mia", "lume_mmlu", "lume_score", "lume_task1", "lume_task2", "lume_task3"]
MEMORIZATION = [f"lume_memorization_task{number}" for number in (1, 2, 3)]
GROUPS = ["lume", "lume_memorization"]
TASKS = sorted([*LEADERBOARD, *MEMORIZATION, "lume_memorization_rows", "lume_pii", "lume_rows", "lume_swap"])


def test_the_folder_holds_the_promised_tasks_and_nothing_else() -> None:
    manager = TaskManager(include_path=task_dir(), include_defaults=False)
    assert (manager.all_subtasks, manager.all_groups, manager.all_tags) == (TASKS, GROUPS, [])
    files = {path.name for path in task_dir().iterdir() if path.is_file() and path.suffix != ".md"}
    assert files == {f"{name}.yaml" for name in GROUPS + TASKS} | {
        "_generation_template_yaml",
        "_memorization_template_yaml",
    }
    for name in files:
        config = load_yaml(task_dir() / name, resolve_func=True)
        assert isinstance(config["metadata"]["version"], float)
    tasks = load_yaml(task_dir() / "lume.yaml")["task"]
    assert sorted(tasks) == LEADERBOARD
    assert tasks[-1] == "lume_score"  # it reads what the others measured
