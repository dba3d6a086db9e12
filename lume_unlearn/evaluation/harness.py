"""Score models from Python, with the same tasks as `lm_eval`."""

import json
import logging
import math
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lume_tasks.data import locate
from lume_tasks.data.rows import task_name
from lume_tasks.paths import task_dir
from lume_unlearn.config import RunConfig
from lume_unlearn.data.inputs import named_directory

NO_SEEDS = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"))
"""Greedy scoring draws no random numbers, and must not change the random state of a training that it interrupts."""
MEAN = "mean of the task scores"
ROW_TASKS = ("lume_task1", "lume_task2", "lume_task3", "lume_rows")
ATTACKS = ("loss_auc", "min_k_plus_plus_auc")
"""Metrics of `lume_mia` by which a changed model is judged."""
MEANS = ("forget_regurgitation", "forget_knowledge", "retain_regurgitation", "retain_knowledge")


def tasks_for(directory: Path, split: str = "all") -> list[str]:
    """Return the tasks of the `lume` group that a data directory has data for, in the group's order.

    ``lume_task1`` to ``lume_task3`` need rows of that task in the split, ``lume_rows`` rows of another one,
    ``lume_mia`` needs ``mia_data``, ``lume_mmlu`` needs a local copy (``mmlu`` in the directory, or LUME_MMLU_PATH),
    ``lume_score`` needs nothing.

    Raises:
        DataError: the split is absent, or the rows have faults.
    """
    rows = locate.load_rows(directory, split)
    present = {task_name(row.task) for side in rows.values() for row in side}
    tasks = [name for name in ROW_TASKS if name in present]
    if (directory / "mia_data").is_dir():
        tasks.append("lume_mia")
    if locate.mmlu_source(None, directory) != locate.MMLU_HUB_ID:
        tasks.append("lume_mmlu")
    return [*tasks, "lume_score"]


def scoring_command(config: RunConfig) -> str:
    """Return the command that scores the result of a run on its rows, with the tasks that the data has rows for."""
    model = f"pretrained={config.model},peft=" if config.tuning == "lora" else "pretrained="
    model += f"{config.output},trust_remote_code=True" if config.trust_remote_code else config.output
    tasks, metadata = "lume", dict[str, Any]()
    if config.forget:  # the tasks read a directory
        metadata["lume_data_dir"] = "FOLDER OF forget.jsonl AND retain.jsonl"
    else:
        found = tasks_for(named_directory(config.data), config.split)
        # With all of these the final score is possible: the harness finds MMLU, if need be on the hub.
        lume = set(found) - {"lume_mmlu", "lume_score"} == {*ROW_TASKS[:3], "lume_mia"}
        tasks = "lume" if lume else ",".join(found)
    if config.data:
        metadata["lume_data_dir"] = config.data
    if config.split != "all":
        metadata["lume_split"] = config.split
    if not config.chat:
        metadata["lume_chat"] = False
    words = ["lm_eval", "--model", "lume-hf", "--model_args", model, "--tasks", tasks, "--batch_size", "64"]
    words += ["--metadata", json.dumps(metadata, ensure_ascii=False)] if metadata else []
    return shlex.join([*words, "--output_path", "results", "--log_samples"])


def data_metadata(data: Path, split: str = "all") -> dict[str, Any]:
    """Return metadata that points all tasks to one data directory, whatever the environment variables say."""
    return {"lume_data_dir": str(data), "lume_mmlu_path": str(data / "mmlu"), "lume_split": split}


def wrap(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """Return a loaded model as an LM of the harness, as `--model lume-hf`."""
    from lume_tasks.models.hf import LumeHF

    # The harness warns that the model is not given by name, which is intended here.
    warnings = ("`pretrained` model kwarg is not of type `str`", "Passed an already-initialized model")
    with without_messages("lm_eval.models.huggingface", *warnings):
        return LumeHF(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


def score(
    model: Any, metadata: dict[str, Any], tasks: tuple[str, ...] = ("lume",), all_tasks: bool = False, **options: Any
) -> dict[str, Any]:
    """Return the results of the harness's `simple_evaluate` for one model.

    Args:
        model: model arguments of the harness's `hf` backend (``{"pretrained": ..., ...}``), or an LM object.
        metadata: for the data functions: ``lume_data_dir``, ``lume_split``, ...; ``tokenizer`` with an LM object.
        tasks: LUME tasks or groups.
        all_tasks: look for tasks among all those of the harness, too, which takes a while.
        **options: of `simple_evaluate`: ``device``, ``batch_size``, ``limit``, ``gen_kwargs``, ...
    """
    from lm_eval import evaluator

    arguments = model if isinstance(model, dict) else {}
    if "gen_kwargs" in options:
        metadata = metadata | {"lume_gen_kwargs": True}  # else the tasks refuse what is not the protocol's generation
    manager = task_manager(arguments | metadata, all_tasks)
    get_commit = evaluator.get_git_commit_hash
    evaluator.get_git_commit_hash = lambda: None  # outside a repository git prints an error
    try:
        results = evaluator.simple_evaluate(
            model="hf" if arguments else model,
            model_args={"softmax_dtype": "float32"} | arguments if arguments else None,
            tasks=list(tasks),
            task_manager=manager,
            bootstrap_iters=0,
            **{"log_samples": False} | NO_SEEDS | options,
        )
    finally:
        evaluator.get_git_commit_hash = get_commit
    assert results is not None, "one process only"
    return dict(results)


def task_manager(metadata: dict[str, Any], all_tasks: bool = False) -> Any:
    """Return a task manager of the harness that knows the tasks of LUME alone (indexing all takes long), or all."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(task_dir()), include_defaults=all_tasks, metadata=metadata)


def metric(results: dict[str, Any], task: str, name: str) -> float | None:
    """Return one metric of the harness's results, or None if it is missing or NaN."""
    value = results["results"].get(task, {}).get(f"{name},none")
    return None if value is None or math.isnan(value) else float(value)


def headline(results: dict[str, Any]) -> dict[str, float]:
    """Return the scores to print in one line, without those that have no value.

    The four overall means, the task aggregate, the AUC of the attack, and the mean of the twelve task scores (or those
    that have a value), forget scores as 1 - score. The aggregate, their harmonic mean, is 0 if one score is 0; the mean
    still ranks such models.
    """
    found = {name.replace("_", " "): metric(results, "lume_score", name) for name in (*MEANS, "task_aggregate")}
    scores = {(task, name): metric(results, task, name) for task in ROW_TASKS for name in MEANS}
    goods = [1 - v if name.startswith("forget") else v for (_, name), v in scores.items() if v is not None]
    found |= {MEAN: sum(goods) / len(goods) if goods else None, "attack AUC": metric(results, "lume_mia", "loss_auc")}
    return {name: value for name, value in found.items() if value is not None}


@contextmanager
def without_messages(logger: str, *beginnings: str) -> Iterator[None]:
    """Drop the messages of one logger that begin with one of these texts."""

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(beginnings)

    logging.getLogger(logger).addFilter(keep)
    try:
        yield
    finally:
        logging.getLogger(logger).removeFilter(keep)
