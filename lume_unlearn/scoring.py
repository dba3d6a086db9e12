"""Scoring from Python, through the same tasks as the command line's."""

from pathlib import Path
from typing import Any

from lume_tasks import data as lume_data
from lume_tasks.paths import task_dir
from lume_tasks.rows import TASKS

GENERATION_TASKS = ("lume_task1", "lume_task2", "lume_task3", "lume_score")


def tasks_for(directory: Path, split: str = "all") -> list[str]:
    """Return the tasks of the `lume` group that a data directory has data for, in the group's order.

    ``lume_task1`` to ``lume_task3`` need rows of that task in the split, ``lume_mia`` needs ``mia_data``, ``lume_mmlu``
    needs a local copy (``mmlu`` in the directory, or LUME_MMLU_PATH), ``lume_score`` needs nothing.

    Raises:
        DataError: the split is absent, or the rows have faults.
    """
    rows = lume_data.load_rows(directory, split)
    present = {row.task for side in rows.values() for row in side}
    tasks = [f"lume_{task.lower()}" for task in TASKS if task in present]
    tasks += ["lume_mia"] if (directory / "mia_data").is_dir() else []
    tasks += ["lume_mmlu"] if lume_data.mmlu_source(None, directory) != lume_data.MMLU_HUB_ID else []
    return [*tasks, "lume_score"]


def score(
    model: Any,
    metadata: dict[str, Any],
    tasks: tuple[str, ...] = ("lume",),
    **options: Any,
) -> dict[str, Any]:
    """What `simple_evaluate` returns for one model.

    Args:
        model: model arguments of the harness's `hf` backend (``{"pretrained": ..., ...}``), or an LM object.
        metadata: for the data functions: ``lume_data_dir``, ``lume_split``, ...; ``tokenizer`` with an LM object.
        tasks: LUME tasks or groups.
        **options: of `simple_evaluate`: ``device``, ``batch_size``, ``limit``, ``gen_kwargs``, ...
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    arguments = model if isinstance(model, dict) else {}
    # Our folder alone: indexing the harness's own fourteen thousand tasks takes longer than scoring a small model.
    manager = TaskManager(include_path=str(task_dir()), include_defaults=False, metadata=arguments | metadata)
    results = simple_evaluate(
        model="hf" if arguments else model,
        model_args=arguments or None,
        tasks=list(tasks),
        task_manager=manager,
        bootstrap_iters=0,
        **{"log_samples": False} | options,
    )
    assert results is not None, "one process only"
    return dict(results)


def overall(results: dict[str, Any]) -> dict[str, float]:
    """The four overall means of `lume_score`, those that have a value."""
    names = [f"{side}_{kind}" for side in ("forget", "retain") for kind in ("regurgitation", "knowledge")]
    scores = results["results"]["lume_score"]
    return {name: scores[f"{name},none"] for name in names if f"{name},none" in scores}


def data_metadata(data: Path, split: str = "all") -> dict[str, Any]:
    """Metadata that points every data function at one data directory, whatever the environment says."""
    return {"lume_data_dir": str(data), "lume_mmlu_path": str(data / "mmlu"), "lume_split": split}
