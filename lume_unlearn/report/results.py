"""Read results files of the harness, and group them by model."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lume_tasks.data.published import DIGEST
from lume_tasks.data.rows import ROW_TASKS
from lume_tasks.errors import DataError
from lume_tasks.metrics.unlearning import RowScores
from lume_tasks.tasks.results import numbers, read_results, read_samples, row_scores, samples_file

Sample = dict[str, Any]

_SCORES_FOLDER = re.compile(r"/scores/checkpoint-(\d+)\Z")
_LOCATIONS = ("pretrained", "peft", "path", "model")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One results file.

    Attributes:
        path: path of the file.
        content: content of the file.
        scores: LUME task -> metric -> value; finite numbers only, without standard errors.
        model: folder or hub name of the model (the adapter's, if there is one).
        split: rows that were scored: all, train, validation or test.
        limit: the harness's limit on the documents of each task, if there was one.
        settings: the split, the limit, and all model arguments other than where the model is.
        date: seconds since 1970; 0 if unknown.
    """

    path: Path
    content: dict[str, Any]
    scores: dict[str, dict[str, float]]
    model: str
    split: str
    limit: float | None
    settings: str
    date: float

    def version(self, task: str) -> str:
        """Return the version of the task's YAML."""
        return str(self.content.get("versions", {}).get(task, "unknown"))

    def digest(self, task: str) -> str:
        """Return the SHA-256 of a task's documents before any limit; empty in results of earlier versions."""
        return str(_metadata(self.content, task).get(DIGEST, ""))

    def count(self, task: str) -> int | None:
        """Return the number of documents of a task that were scored; None for a group."""
        count: int | None = self.content.get("n-samples", {}).get(task, {}).get("effective")
        return count


@dataclass(frozen=True, eq=False)
class Model:
    """All evaluations of one model with the same settings, newest first; ``name`` is unique in a report."""

    name: str
    evaluations: tuple[Evaluation, ...]

    @property
    def path(self) -> str:
        """The model's folder or name on the hub."""
        return self.evaluations[0].model

    def evaluation(self, task: str) -> Evaluation | None:
        """Return the newest evaluation that has scores of this task; None if there is none."""
        return next((one for one in self.evaluations if one.scores.get(task)), None)

    def score(self, task: str, metric: str) -> float | None:
        """Return the newest score; None if it has no value."""
        found = self.evaluation(task)
        return found.scores[task].get(metric) if found else None

    def interval(self, task: str, metric: str) -> tuple[float, float] | None:
        """Return the ends of the 95 % interval; None if the results have none."""
        low, high = (self.score(task, f"{metric}_{end}") for end in ("low", "high"))
        return None if low is None or high is None else (low, high)

    def samples(self, task: str) -> list[Sample]:
        """Return the logged documents of the newest evaluation of this task; empty if they were not logged."""
        one = self.evaluation(task)
        path = samples_file(one.path, task) if one else None
        return read_samples(path) if path and path.is_file() else []

    def row_scores(self) -> RowScores:
        """Return each row's scores, for the distance to the retrained model; empty if no rows were logged."""
        samples = {task: self.samples(task) for task in ROW_TASKS}
        if not any(samples.values()):
            return RowScores()
        samples["lume_mia"] = self.samples("lume_mia")
        return row_scores({"results": {"lume_mmlu": {"acc,none": self.score("lume_mmlu", "acc")}}, "samples": samples})


def read_models(paths: Iterable[str]) -> list[Model]:
    """Read results files, or all in and below folders, and return a `Model` for each model and setting, in their order.

    A model is named by the last part of its path, or by path and settings if another one has the same last part.

    Raises:
        DataError: names a path that is missing or has no results of LUME.
    """
    groups: dict[tuple[str, str], list[Evaluation]] = {}
    files = [file for path in paths for file in _results_files(Path(path))]
    for path in dict.fromkeys(files):
        one = _read_evaluation(path)
        groups.setdefault((one.model, one.settings), []).append(one)
    last_parts = [_last_part(model) for model, _ in groups]
    models = []
    for (model, settings), group in groups.items():
        name = _last_part(model)
        if last_parts.count(name) > 1:
            name = f"{model} ({settings})"
        models.append(Model(name, tuple(sorted(group, key=lambda one: -one.date))))
    return models


def _read_evaluation(path: Path) -> Evaluation:
    content = read_results(path)
    scores = {
        task: {name: value for name, value in metrics.items() if math.isfinite(value) and not name.endswith("_stderr")}
        for task, metrics in numbers(content).items()
        if task.startswith("lume")
    }
    if not any(scores.values()):
        raise DataError(
            f"{path} has no score of a LUME task; score the model with --tasks lume (its tasks: "
            f"{', '.join(content['results'])})"
        )
    # Scores taken during training name no model; they are in <run>/scores/checkpoint-<step>.
    model = content.get("model_name") or _SCORES_FOLDER.sub(r"/checkpoint-\1", path.parent.as_posix())
    config = content.get("config") or {}
    splits = (_metadata(content, task).get("lume_split") for task in scores)
    split = str(next(filter(None, splits), "all"))
    limit = config.get("limit")
    args = config.get("model_args") or {}
    if isinstance(args, str):
        args = dict(pair.partition("=")[::2] for pair in args.split(","))
    settings = sorted(f"{key}={value}" for key, value in args.items() if key not in _LOCATIONS)
    settings = [f"split {split}", *([f"limit {limit}"] if limit else []), *settings]
    date = float(content.get("date") or 0)
    name = Path(str(model)).as_posix()  # "out/" and "out" are one model
    return Evaluation(path, content, scores, name, split, limit, ", ".join(settings), date)


def _metadata(content: dict[str, Any], task: str) -> dict[str, Any]:
    return content.get("configs", {}).get(task, {}).get("metadata") or {}


def _results_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: does not exist")
    found = sorted(path.rglob("results_*.json"), key=_natural_order)
    if not found:
        raise DataError(f"{path}: no results_*.json in or below it; give the folder of lm_eval's --output_path")
    return found


def comparability(models: Sequence[Model]) -> list[str]:
    """Return why the models cannot be compared: other splits, task versions or rows; one line each."""
    values = {"The rows belong to different splits": {model.name: model.evaluations[0].split for model in models}}
    for task in dict.fromkeys(task for model in models for one in model.evaluations for task in one.scores):
        values[f"{task} was scored in different versions or on different rows"] = {
            m.name: f"version {one.version(task)}, {one.count(task)} rows, SHA-256 {one.digest(task)[:8] or 'unknown'}"
            for m in models
            if (one := m.evaluation(task))
        }
    faults = []
    for what, described in values.items():
        groups = [f"{value}: {', '.join(names)}" for value, names in names_by_value(described).items()]
        if len(groups) > 1:
            faults.append(f"{what}. {'; '.join(groups)}.")
    return faults


def names_by_value(values: dict[str, Any]) -> dict[Any, list[str]]:
    """Group names by their value; names whose value is None are left out."""
    names: dict[Any, list[str]] = {}
    for name, value in values.items():
        if value is not None:
            names.setdefault(value, []).append(name)
    return names


def _last_part(model: str) -> str:
    """Return ``npo`` for ``/out/npo``, and ``npo/checkpoint-5`` for ``/out/npo/checkpoint-5``."""
    parts = model.rstrip("/").split("/")
    return "/".join(parts[-2:] if parts[-1].startswith("checkpoint-") else parts[-1:])


def _natural_order(path: Path) -> list[Any]:
    """Return a sort key by which checkpoint-10 follows checkpoint-9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]
