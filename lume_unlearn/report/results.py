"""Read results files of the harness, and find out which of them belong to one model or one training run."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

from lume_tasks.data.files import read_text
from lume_tasks.errors import DataError
from lume_tasks.tasks.results import numbers, read_results, read_samples, samples_file
from lume_unlearn.report.glossary import TASKS

Sample = dict[str, Any]

RECORD = "unlearning.json"
_SCORES_FOLDER = re.compile(r"/scores/checkpoint-(\d+)\Z")
_CHECKPOINT = re.compile(r"(?P<run>.+)/checkpoint-(?P<step>\d+)/?\Z")
_LOCATIONS = ("pretrained", "peft", "path", "model")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One results file: its path and its content."""

    path: Path
    content: dict[str, Any]

    @cached_property
    def scores(self) -> dict[str, dict[str, float]]:
        """LUME task -> metric -> value; finite numbers only, without standard errors."""
        return {
            task: {
                name: float(value)
                for name, value in metrics.items()
                if math.isfinite(value) and not name.endswith("_stderr")
            }
            for task, metrics in numbers(self.content).items()
            if task.startswith("lume")
        }

    @property
    def model(self) -> str:
        """The model's folder or hub name (an adapter's, if there is one).

        Scores taken during training name no model. They are in ``<run>/scores/checkpoint-<step>``, and the model is
        taken to be ``<run>/checkpoint-<step>``.
        """
        folder = _SCORES_FOLDER.sub(r"/checkpoint-\1", self.path.parent.as_posix())
        return str(self.content.get("model_name") or folder)

    @property
    def split(self) -> str:
        """The rows that were scored: all, train, validation or test."""
        splits = [self.metadata(task).get("lume_split") for task in self.scores]
        return str(next((split for split in splits if split), "all"))

    @property
    def rows(self) -> str:
        """The split, and the limit if there was one."""
        limit = self.section("config").get("limit")
        return f"split {self.split}" + (f", limit {limit}" if limit else "")

    @property
    def settings(self) -> str:
        """The rows, and all model arguments other than where the model is."""
        args = self.section("config").get("model_args") or {}
        if isinstance(args, str):
            args = dict(pair.partition("=")[::2] for pair in args.split(","))
        others = sorted(f"{key}={value}" for key, value in args.items() if key not in _LOCATIONS)
        return ", ".join([self.rows, *others])

    @property
    def date(self) -> float:
        """Seconds since 1970; 0 if unknown."""
        return float(self.content.get("date") or 0)

    @property
    def made(self) -> str:
        """When and with what the scores were made."""
        date = f"{datetime.fromtimestamp(self.date, timezone.utc):%Y-%m-%d %H:%M} UTC" if self.date else "unknown date"
        version, backend = (self.content.get(name, "unknown") for name in ("lm_eval_version", "model_source"))
        return f"{date}, lm-eval {version}, backend {backend}"

    @property
    def missing(self) -> str:
        """The tasks without which there is no final score, and why, as the harness's results name them."""
        return str(self.content["results"].get("lume_score", {}).get("missing,none", ""))

    def section(self, name: str) -> dict[str, Any]:
        """A part of the file, such as ``config``; empty if it is absent."""
        return self.content.get(name) or {}

    def metadata(self, task: str) -> dict[str, Any]:
        """The metadata that the task was configured with."""
        return self.section("configs").get(task, {}).get("metadata") or {}

    def version(self, task: str) -> str:
        """The version of the task's YAML; scores of different versions are not comparable."""
        return str(self.section("versions").get(task, "unknown"))

    def count(self, task: str) -> int | None:
        """Number of documents of a task that were scored; None for a group."""
        count: int | None = self.section("n-samples").get(task, {}).get("effective")
        return count

    def samples(self, task: str) -> list[Sample] | None:
        """The logged documents of one task; None if they were not logged.

        Raises:
            DataError: a line is not what the harness writes.
        """
        path = samples_file(self.path, task)
        return read_samples(path) if path.is_file() else None

    def fingerprint(self, task: str) -> str | None:
        """Short hash of a task's prompts and targets, independent of their order; None if they were not logged."""
        hashes = sorted(f"{sample['prompt_hash']}{sample['target_hash']}" for sample in self.samples(task) or [])
        return hashlib.sha256("".join(hashes).encode()).hexdigest()[:8] if hashes else None


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
        """The newest evaluation that has scores of this task."""
        return next((one for one in self.evaluations if one.scores.get(task)), None)

    def score(self, task: str, metric: str) -> float | None:
        """The newest score; None if it has no value."""
        found = self.evaluation(task)
        return found.scores[task].get(metric) if found else None

    def interval(self, task: str, metric: str) -> tuple[float, float] | None:
        """The ends of the 95 % interval, if the results have one."""
        low, high = (self.score(task, f"{metric}_{end}") for end in ("low", "high"))
        return None if low is None or high is None else (low, high)

    def samples(self, task: str) -> list[Sample] | None:
        """The newest logged documents of this task; None if there are none."""
        logged = (one.samples(task) for one in self.evaluations if one.scores.get(task))
        return next((samples for samples in logged if samples), None)


@dataclass(frozen=True)
class Run:
    """The checkpoints of one training run in order, as (place on the axis, model); ``unit`` names the axis."""

    name: str
    unit: str
    points: tuple[tuple[float, Model], ...]


def read_models(paths: Iterable[str]) -> list[Model]:
    """Read results files, or all in and below folders: one `Model` for each model and setting, in the order given.

    Raises:
        DataError: names every path that is missing or has no results of LUME.
    """
    groups: dict[tuple[str, str], list[Evaluation]] = {}
    faults: list[str] = []
    for path in dict.fromkeys(_results_files(map(Path, paths), faults)):
        try:
            evaluation = _read_evaluation(path)
        except DataError as error:
            faults.append(str(error))
        else:
            groups.setdefault((evaluation.model, evaluation.settings), []).append(evaluation)
    if faults:
        raise DataError("\n".join(faults))
    newest_first = [tuple(sorted(group, key=lambda one: -one.date)) for group in groups.values()]
    return [Model(name, group) for name, group in zip(_names(list(groups)), newest_first, strict=True)]


def _read_evaluation(path: Path) -> Evaluation:
    evaluation = Evaluation(path, read_results(path))
    if not any(evaluation.scores.values()):
        raise DataError(f"{path} has no score of a LUME task (its tasks: {', '.join(evaluation.content['results'])})")
    return evaluation


def find_runs(models: Sequence[Model]) -> list[Run]:
    """Return the training runs of which at least two checkpoints (``<run>/checkpoint-<step>``) are among the models.

    If the run's `unlearning.json` can be read, the axis counts epochs, and the reference model and the finished model
    are points of the run if they are among the models.
    """
    steps: dict[str, dict[Model, float]] = {}
    for model in models:
        found = _CHECKPOINT.match(model.path)
        if found:
            steps.setdefault(_absolute(found["run"]), {})[model] = float(found["step"])
    runs = [_run(path, places, models) for path, places in steps.items()]
    return [run for run in runs if len(run.points) > 1]


def _run(path: str, places: dict[Model, float], models: Sequence[Model]) -> Run:
    unit, scale = "optimiser step", 1.0
    try:
        record = json.loads(read_text(Path(path) / RECORD))
        last = record["history"][-1]
        unit, scale = "epoch", last["epoch"] / last["step"]
        ends = {_absolute(record["config"]["model"]): 0.0, _absolute(path): float(last["step"])}
        places = {m: ends[_absolute(m.path)] for m in models if _absolute(m.path) in ends} | places
    except (OSError, ValueError, LookupError):
        pass  # without a record, as if the results were copied from elsewhere, only the steps are known
    ordered = sorted(places.items(), key=lambda item: item[1])
    return Run(path.rsplit("/", 1)[-1], unit, tuple((step * scale, model) for model, step in ordered))


def comparability(models: Sequence[Model]) -> list[str]:
    """Return why the models cannot be compared: other splits, task versions or rows; one line each."""
    faults = [_differ("The rows are of different splits", {m.name: m.evaluations[0].split for m in models})]
    for task in dict.fromkeys(task for model in models for one in model.evaluations for task in one.scores):
        found = {model.name: one for model in models if (one := model.evaluation(task))}
        versions = {name: one.version(task) for name, one in found.items()}
        counts = {name: one.count(task) for name, one in found.items()}
        texts = {name: one.fingerprint(task) for name, one in found.items()} if task in TASKS else {}
        faults.append(_differ(f"{task} was scored in different versions", versions))
        faults.append(
            _differ(f"{task} was scored on different numbers of rows", counts)
            or _differ(f"{task} was scored on different rows, by the hash of their texts", texts)
        )
    return [fault for fault in faults if fault]


def _differ(what: str, values: dict[str, Any]) -> str | None:
    """Return a line that names the models by value, if there is more than one value; None is no value."""
    models: dict[Any, list[str]] = {}
    for name, value in values.items():
        if value is not None:
            models.setdefault(value, []).append(name)
    groups = "; ".join(f"{value}: {', '.join(names)}" for value, names in models.items())
    return f"{what}. {groups}." if len(models) > 1 else None


def _results_files(paths: Iterable[Path], faults: list[str]) -> Iterator[Path]:
    for path in paths:
        if path.is_file():
            yield path
        elif not path.is_dir():
            faults.append(f"{path}: does not exist")
        elif found := sorted(path.rglob("results_*.json"), key=_natural_order):
            yield from found
        else:
            faults.append(f"{path}: no results_*.json in or below it; give the folder of lm_eval's --output_path")


def _names(keys: Sequence[tuple[str, str]]) -> list[str]:
    """Return the shortest unambiguous names of (model, settings): last part of the path, path, path and settings."""
    last_parts = [_last_part(model) for model, _ in keys]
    paths = [model for model, _ in keys]
    names = []
    for short, (model, settings) in zip(last_parts, keys, strict=True):
        if last_parts.count(short) == 1:
            names.append(short)
        else:
            names.append(model if paths.count(model) == 1 else f"{model} ({settings})")
    return names


def _last_part(model: str) -> str:
    """``npo`` of ``/out/npo``, ``npo/checkpoint-5`` of ``/out/npo/checkpoint-5``."""
    parts = model.rstrip("/").split("/")
    return "/".join(parts[-2:] if parts[-1].startswith("checkpoint-") else parts[-1:])


def _natural_order(path: Path) -> list[Any]:
    """Sort key by which checkpoint-10 follows checkpoint-9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]


def _absolute(path: str) -> str:
    return str(Path(path).resolve())
