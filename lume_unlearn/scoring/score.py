"""`score`: score a model with the same tasks as `lm_eval`; no other function does so."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch.utils import collect_env
from tqdm import tqdm

from lume_tasks.data.rows import ROW_TASKS, SIDES, task_name
from lume_tasks.data.source import Data, load_data
from lume_tasks.paths import task_dir
from lume_unlearn.checks import listed, require_list, require_loaded, require_tokenizer
from lume_unlearn.data.rows import both_sides
from lume_unlearn.errors import ConfigError
from lume_unlearn.model.forward import evaluating

MEANS = ("forget_regurgitation", "forget_knowledge", "retain_regurgitation", "retain_knowledge")
MEMORIZATION = ("exact_memorization", "extraction_strength", "probability")
"""Metrics of the memorisation tasks, each for forget and retain rows."""
ATTACKS = ("loss_auc", "min_k_plus_plus_auc")
"""Metrics of `lume_mia` that are in `Scores.means`."""
SWAP = ("forget_leak_p", "forget_avoided_p")
"""Metrics of `lume_swap` that are in `Scores.means`."""
MEAN = "mean of the task scores"
NO_SEEDS = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"))
"""Greedy scoring uses no random numbers, and must not change the random state of a training that it interrupts."""
BARS = ("lm_eval.api.task", "lm_eval.api.model", "lm_eval.models.huggingface", "lume_tasks.models.hf")
"""Modules that show progress bars."""
_environment = cache(collect_env.get_pretty_env_info)
"""Describes the machine and the installed packages; cached, since it takes longer than scoring a few rows."""


@dataclass(frozen=True, repr=False)
class Scores:
    """The scores of a model."""

    results: dict[str, Any] = field(default_factory=dict)
    """The harness's results, as `simple_evaluate` returns them; ``samples`` only with ``log_samples``."""
    means: dict[str, float] = field(default_factory=dict)
    """`MEANS` of all rows, ``TASK MEAN`` of each task, `ATTACKS` and `SWAP`; those without a value are left out."""
    answers: dict[str, str] = field(default_factory=dict)
    """Row id to the generated text."""
    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    """Metric to {row id: score}, for metrics that are means over rows (of `lume_task1` to `lume_task3`, `lume_rows`,
    `lume_memorization`, `lume_pii`, and the ranks of `lume_swap`); attack ("loss_auc", ...) to
    {"member document 1": score}."""

    def __repr__(self) -> str:
        """Return the means."""
        return f"Scores({', '.join(f'{name}={value:.3f}' for name, value in self.means.items())})"

    def metric(self, task: str, name: str) -> float | None:
        """Return one metric of a task; None if it is missing or NaN."""
        value = self.results.get("results", {}).get(task, {}).get(f"{name},none")
        return None if value is None or math.isnan(value) else float(value)

    def headline(self) -> dict[str, float]:
        """Return the scores to print in one line, without those that have no value.

        They are the four overall means, the task aggregate, the AUC of the attack, and the mean of the twelve task
        scores (or those that have a value), with 1 - score for forget scores. The aggregate, their harmonic mean, is 0
        if one of them is 0; the mean still ranks such models.
        """
        found = {name.replace("_", " "): self.metric("lume_score", name) for name in (*MEANS, "task_aggregate")}
        scores = {(task, name): self.metric(task, name) for task in ROW_TASKS for name in MEANS}
        goods = [1 - v if name.startswith("forget") else v for (_, name), v in scores.items() if v is not None]
        mean = sum(goods) / len(goods) if goods else None
        found |= {MEAN: mean, "attack AUC": self.metric("lume_mia", "loss_auc")}
        return {name: value for name, value in found.items() if value is not None}


def score(
    model: Any,
    tokenizer: Any,
    data: Data | Mapping[str, Any] | str | Path,
    *,
    tasks: Sequence[str] | None = None,
    split: str = "all",
    chat: bool = True,
    batch_size: int = 64,
    limit: int | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    seed: int | None = None,
    log_samples: bool = False,
    metadata: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Scores:
    """Score a model with tasks of the harness, as ``lm_eval --model lume-hf`` does; the model is not changed.

    Args:
        model: a causal language model of transformers, or a PEFT model, on the device to score on.
        tokenizer: its tokenizer.
        data: what to score: a `Data`; a data directory; or ``{"forget": rows, "retain": rows}`` and, if wanted,
            ``members``, ``nonmembers`` (lists of texts) and ``mmlu`` (a folder). Rows are what `as_rows` takes.
        tasks: names of tasks or groups, also the harness's other ones. Default: all that there is data for (see
            `tasks_for`).
        split: split of a data directory to use: all, train, validation or test.
        chat: ask questions of your own tasks (not Task1 to Task3) through the chat template, if there is one.
        batch_size: prompts of one batch.
        limit: documents of each task to score; 0 or None for all.
        gen_kwargs: generation options instead of the protocol's (greedy, 256 new tokens, until EOS), such as
            ``{"max_gen_toks": 64, "do_sample": True}``; the scores are then not comparable with the benchmark's.
        seed: seeds the sampling that ``gen_kwargs`` asks for. Default: the random state is not touched.
        log_samples: keep the documents, requests and answers in ``results["samples"]``.
        metadata: further metadata of the tasks, such as ``{"lume_mmlu_limit": 2}``.
        quiet: show no progress bars, for a caller that has its own.

    Raises:
        ConfigError: there is no such task, ``data`` is none of the above, or there is no tokenizer.
        DataError: the data has faults, has nothing for a task, or does not fit the model.
    """
    from lume_tasks.models.hf import LumeHF

    require_loaded(model)
    require_tokenizer(tokenizer)
    data = as_data(data, split)
    tasks = tasks_for(data) if tasks is None else listed(tasks)
    changed = {"lume_gen_kwargs": True} if gen_kwargs else {}  # else the tasks refuse other generation options
    manager = task_manager(tokenizer, data, tasks, chat, changed | dict(metadata or {}))
    options: dict[str, Any] = NO_SEEDS | ({} if seed is None else {"torch_random_seed": seed})
    if gen_kwargs:
        options["gen_kwargs"] = dict(gen_kwargs)
    wrapped = ("`pretrained` model kwarg is not of type `str`", "Passed an already-initialized model")
    with (
        evaluating(model),
        same_padding(tokenizer),
        # It is intended that the model is not given by name.
        without_messages("lm_eval.models.huggingface", *wrapped),
        # The results name what is missing for a final score; other generation options are intended.
        without_messages("lume_tasks", "lume_score: no final score"),
        without_messages("lm_eval.evaluator", "generation_kwargs: "),
        without_bars() if quiet else nullcontext(),
    ):
        lm = LumeHF(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        results = evaluate(lm, tasks, manager, limit=limit or None, **options)
    samples = results["samples"] if log_samples else results.pop("samples")
    own = [sample for task in ROW_TASKS for sample in samples.get(task, [])]
    answers = {sample["doc"]["id"]: sample["filtered_resps"][0] for sample in own}
    scores = Scores(results, {}, answers, _row_scores(samples))
    values = {mean: scores.metric("lume_score", mean) for mean in MEANS}
    values |= {f"{task} {mean}": scores.metric(task, mean) for task in ROW_TASKS for mean in MEANS}
    values |= {name: scores.metric("lume_mia", name) for name in ATTACKS}
    values |= {name: scores.metric("lume_swap", name) for name in SWAP}
    scores.means.update({name: value for name, value in values.items() if value is not None})
    return scores


@contextmanager
def same_padding(tokenizer: Any) -> Iterator[None]:
    """Restore the tokenizer's padding token after the block: the harness sets one if there is none."""
    token = tokenizer.pad_token
    try:
        yield
    finally:
        tokenizer.pad_token = token


def as_data(data: Data | Mapping[str, Any] | str | Path, split: str = "all") -> Data:
    """Convert the argument ``data`` of `score` to a `Data`.

    Raises:
        ConfigError: it is neither a directory nor a dictionary of the known parts.
        DataError: rows or documents have faults.
    """
    if isinstance(data, Data):
        return data
    if isinstance(data, Mapping):
        unknown = set(data) - {field.name for field in fields(Data)}
        if unknown or "forget" not in data:
            fault = f"unknown parts {', '.join(map(str, unknown))}" if unknown else "forget is missing"
            raise ConfigError(
                f"data: {fault}; give forget and retain, and members, nonmembers and mmlu if you have them"
            )
        others = {name: part for name, part in data.items() if name not in SIDES}
        for name in ("members", "nonmembers"):
            require_list(f"data, {name}", others.get(name))
        return Data(*both_sides(data["forget"], data.get("retain")), **others)
    if not isinstance(data, str | Path):
        raise ConfigError(f'data: give a directory or {{"forget": rows, "retain": rows}}, not {type(data).__name__}')
    directory = Path(data).expanduser()
    if not directory.is_dir():
        raise ConfigError(f"data {data}: is not a directory")
    return load_data(directory, split)


def tasks_for(data: Data) -> list[str]:
    """Return the tasks of the `lume` group that there is data for, in the group's order.

    ``lume_task1`` to ``lume_task3`` need rows of that task, ``lume_rows`` rows of another one, ``lume_mia`` members and
    non-members, ``lume_mmlu`` a copy of MMLU, ``lume_score`` nothing.
    """
    present = {task_name(row.task) for side in data.rows.values() for row in side}
    tasks = [name for name in ROW_TASKS if name in present]
    tasks += ["lume_mia"] * bool(data.members and data.nonmembers)
    tasks += ["lume_mmlu"] * (data.mmlu is not None)
    return [*tasks, "lume_score"]


def memorization_tasks(data: Data) -> list[str]:
    """Return the tasks of the group `lume_memorization` that there are rows for."""
    return [task.replace("lume_", "lume_memorization_") for task in tasks_for(data) if task in ROW_TASKS]


def task_manager(
    tokenizer: Any, data: Data, tasks: Sequence[str], chat: bool = True, metadata: Mapping[str, Any] | None = None
) -> Any:
    """Return a task manager of the harness with the tasks of LUME, and with all others only if ``tasks`` names one.

    Raises:
        ConfigError: there is no such task.
    """
    from lm_eval.tasks import TaskManager

    given = {"lume_data": data, "lume_split": data.split, "tokenizer": tokenizer, "lume_chat": chat}
    given |= metadata or {}
    for everything in (False, True):
        manager = TaskManager(include_path=str(task_dir()), include_defaults=everything, metadata=given)
        unknown = [name for name in tasks if name not in manager.all_tasks]
        if not unknown:
            return manager
        if all(name.startswith("lume") for name in unknown):  # indexing all tasks of the harness takes long
            break
    raise ConfigError(f"tasks {', '.join(unknown)}: there is no such task; `lm_eval ls tasks` lists them")


def evaluate(lm: Any, tasks: Sequence[str], manager: Any, **options: Any) -> dict[str, Any]:
    """Call the harness's `simple_evaluate`, with logged samples and without its bootstrap."""
    from lm_eval import evaluator

    options |= {"tasks": list(tasks), "task_manager": manager, "bootstrap_iters": 0, "log_samples": True}
    with (
        patch.object(evaluator, "get_git_commit_hash", lambda: None),  # outside a repository git prints an error
        patch.object(collect_env, "get_pretty_env_info", _environment),
    ):
        results: Any = evaluator.simple_evaluate(lm, **options)
    return dict(results)


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide the progress bars of the harness, which has no option for that, and of `LumeHF`."""

    def hidden(*args: Any, **options: Any) -> Any:
        return tqdm(*args, **options | {"disable": True})

    with ExitStack() as patches:
        for module in BARS:
            patches.enter_context(patch(f"{module}.tqdm", hidden, create=True))
        yield


def save_results(scores: Scores, output: Path, name: str) -> None:
    """Write results as ``lm_eval --output_path OUTPUT --log_samples`` does, for `lume-unlearn report` and `card`.

    Args:
        scores: result of `score` with ``log_samples``.
        output: folder.
        name: the model's folder or hub name.
    """
    from lm_eval.loggers import EvaluationTracker

    arguments = {"pretrained": name}
    tracker = EvaluationTracker(output_path=str(output))
    tracker.general_config_tracker.log_experiment_args("lume-hf", arguments, None, None, False)
    results = scores.results | {"config": scores.results["config"] | {"model": "lume-hf", "model_args": arguments}}
    samples = results.pop("samples")
    tracker.save_results_aggregated(results, samples)
    for task in results["configs"]:
        tracker.save_results_samples(task, samples[task])


def _row_scores(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """Return `Scores.rows` from the samples that the harness logged."""
    from lume_tasks.tasks.reference import document_name

    found: dict[str, dict[str, float]] = {}
    for task, logged in samples.items():
        if task.startswith("lume_") and not task.startswith("lume_mmlu"):
            for sample in logged:
                row = sample["doc"].get("id") or document_name(sample["doc"])
                for name in sample["metrics"]:
                    value = sample[name]
                    if task == "lume_mia" and name.endswith("_auc"):
                        value = value[1]  # of (member, score)
                    if isinstance(value, (int, float)):
                        found.setdefault(name, {})[row] = float(value)
    return found


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
