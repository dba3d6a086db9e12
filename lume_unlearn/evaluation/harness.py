"""Scoring from Python, through the same tasks as the command line's."""

import math
from pathlib import Path
from typing import Any

from lume_tasks.data import locate
from lume_tasks.data.rows import TASKS
from lume_tasks.paths import task_dir
from lume_unlearn.evaluation.quiet import without_git

MEAN = "mean of the task scores"
ROW_TASKS = tuple(f"lume_{task.lower()}" for task in TASKS)
GENERATION_TASKS = (*ROW_TASKS, "lume_score")
_MEANS = ("forget_regurgitation", "forget_knowledge", "retain_regurgitation", "retain_knowledge")


def tasks_for(directory: Path, split: str = "all") -> list[str]:
    """Return the tasks of the `lume` group that a data directory has data for, in the group's order.

    ``lume_task1`` to ``lume_task3`` need rows of that task in the split, ``lume_mia`` needs ``mia_data``, ``lume_mmlu``
    needs a local copy (``mmlu`` in the directory, or LUME_MMLU_PATH), ``lume_score`` needs nothing.

    Raises:
        DataError: the split is absent, or the rows have faults.
    """
    rows = locate.load_rows(directory, split)
    present = {row.task for side in rows.values() for row in side}
    tasks = [name for name, task in zip(ROW_TASKS, TASKS, strict=True) if task in present]
    tasks += ["lume_mia"] if (directory / "mia_data").is_dir() else []
    tasks += ["lume_mmlu"] if locate.mmlu_source(None, directory) != locate.MMLU_HUB_ID else []
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

    arguments = model if isinstance(model, dict) else {}
    if "gen_kwargs" in options:
        metadata = metadata | {"lume_gen_kwargs": True}  # else the tasks refuse what is not the protocol's generation
    manager = _manager(arguments | metadata)
    with without_git():
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


def require_loadable(metadata: dict[str, Any], tasks: tuple[str, ...]) -> None:
    """Load the tasks with their data, as scoring will, so that what is missing is found before anything is trained.

    Raises:
        DataError: the data of a task is missing or faulty.
        KeyError: there is no task of that name.
    """
    manager = _manager(metadata)
    if unknown := [name for name in tasks if name not in manager.all_tasks]:
        raise KeyError(", ".join(unknown))
    manager.load(list(tasks))


def _manager(metadata: dict[str, Any]) -> Any:
    from lm_eval.tasks import TaskManager

    # Our folder alone: indexing the harness's own fourteen thousand tasks takes longer than scoring a small model.
    return TaskManager(include_path=str(task_dir()), include_defaults=False, metadata=metadata)


def headline(results: dict[str, Any]) -> dict[str, float]:
    """Return the scores of one evaluation that fit in a line, those that have a value.

    The four overall means, the task aggregate, `mean_score` and the attack's AUC.
    """
    score = results["results"].get("lume_score", {})
    found = {name.replace("_", " "): score.get(f"{name},none") for name in (*_MEANS, "task_aggregate")}
    found[MEAN] = mean_score(results)
    found["attack AUC"] = results["results"].get("lume_mia", {}).get("loss_auc,none")
    return {label: float(value) for label, value in found.items() if _is_number(value)}


def mean_score(results: dict[str, Any]) -> float | None:
    """Return the mean of the twelve task scores (or those that have a value), forget scores as 1 - score.

    The task aggregate is their harmonic mean, which is 0 where one of them is 0; this mean still orders such models.
    """
    goods = []
    for task in ROW_TASKS:
        for name in _MEANS:
            value = results["results"].get(task, {}).get(f"{name},none")
            if _is_number(value):
                goods.append(1 - value if name.startswith("forget") else value)
    return sum(goods) / len(goods) if goods else None


def _is_number(value: Any) -> bool:
    return value is not None and not math.isnan(value)


def overall(results: dict[str, Any]) -> dict[str, float]:
    """The four overall means of `lume_score`, those that have a value."""
    scores = results["results"]["lume_score"]
    return {name: scores[f"{name},none"] for name in _MEANS if f"{name},none" in scores}


def data_metadata(data: Path, split: str = "all") -> dict[str, Any]:
    """Metadata that points every data function at one data directory, whatever the environment says."""
    return {"lume_data_dir": str(data), "lume_mmlu_path": str(data / "mmlu"), "lume_split": split}
