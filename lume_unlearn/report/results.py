"""Read what the harness wrote: results files, the samples beside them, and which of them belong to one model or run."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lume_tasks.data.files import read_text
from lume_tasks.errors import DataError, describe
from lume_tasks.tasks.results import read_samples
from lume_unlearn.report.glossary import TASKS

Sample = dict[str, Any]

_DATE = re.compile(r"\d{4}-\d\d-\d\dT[\d.-]+\Z")  # how the harness ends the names of the files of one evaluation
_SCORES = re.compile(r"/scores/checkpoint-(\d+)\Z")
_CHECKPOINT = re.compile(r"(?P<run>.+)/checkpoint-(?P<step>\d+)/?\Z")
_LOCATIONS = ("pretrained", "peft", "path", "model")
_YEAR_9999 = 253_370_764_800.0  # in seconds since 1970; no date can be shown from there on
RECORD = "unlearning.json"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One results file.

    Attributes:
        path: the file.
        content: what it holds.
    """

    path: Path
    content: dict[str, Any]

    @cached_property
    def scores(self) -> dict[str, dict[str, float]]:
        """LUME task -> metric -> value, finite numbers only."""
        return {
            task: {key.removesuffix(",none"): float(value) for key, value in metrics.items() if _is_score(key, value)}
            for task, metrics in self.content["results"].items()
            if task.startswith("lume")
        }

    @property
    def model(self) -> str:
        """The model's folder or name (an adapter's, where there is one).

        Where the results do not tell, as those of `lume-unlearn run --evaluate_every`, it is the folder of the file,
        without the ``scores`` that such a run puts between its own folder and the checkpoint's.
        """
        folder = _SCORES.sub(r"/checkpoint-\1", self.path.parent.as_posix())
        return str(self.content.get("model_name") or folder)

    @property
    def model_args(self) -> dict[str, str]:
        """The harness's model arguments."""
        given = self._section("config").get("model_args") or {}
        pairs = given.items() if isinstance(given, dict) else (pair.partition("=")[::2] for pair in given.split(","))
        return {str(key): str(value) for key, value in pairs}

    @property
    def split(self) -> str:
        """The rows that were asked for: all, train, validation or test."""
        metadata: dict[str, Any] = {}
        for task, config in self._section("configs").items():
            if task.startswith("lume"):
                metadata |= config.get("metadata") or {}
        return str(metadata.get("lume_split", "all"))

    @property
    def sample(self) -> str:
        """Which rows were asked for, for people: the split, and a limit if there was one."""
        limit = self._section("config").get("limit")
        return f"split {self.split}" + (f", limit {limit}" if limit else "")

    @property
    def settings(self) -> str:
        """What was asked for besides the model's place, for people: the rows, and further model arguments."""
        others = sorted(f"{key}={value}" for key, value in self.model_args.items() if key not in _LOCATIONS)
        return ", ".join([self.sample, *others])

    @property
    def date(self) -> float:
        """When it was made, in seconds since 1970."""
        return float(self.content.get("date") or 0)

    @property
    def missing(self) -> str:
        """The tasks without which there is no final score, as the harness's results name them."""
        return str(self.content["results"].get("lume_score", {}).get("missing,none", ""))

    def version(self, task: str) -> str:
        """The version of a task's YAML; scores of different versions are not comparable."""
        return str(self._section("versions").get(task, "unknown"))

    def count(self, task: str) -> int | None:
        """How many rows of a task were scored; None for a group."""
        count: int | None = self._section("n-samples").get(task, {}).get("effective")
        return count

    def fingerprint(self, task: str) -> str | None:
        """A short hash of the prompts and targets of a task, whatever their order; None where they were not logged."""
        hashes = sorted(f"{sample['prompt_hash']}{sample['target_hash']}" for sample in self.samples(task) or [])
        return hashlib.sha256("".join(hashes).encode(errors="backslashreplace")).hexdigest()[:8] if hashes else None

    def _section(self, name: str) -> dict[str, Any]:
        return self.content.get(name) or {}

    def samples(self, task: str) -> list[Sample] | None:
        """The documents of one task as logged; None where they were not.

        Raises:
            DataError: a line is not what the harness writes.
        """
        date = _DATE.search(self.path.stem)
        path = self.path.parent / f"samples_{task}_{date.group() if date else ''}.jsonl"
        if not path.is_file():
            return None
        samples = read_samples(path)
        for line, sample in enumerate(samples, 1):
            if task in TASKS and (fault := _row_fault(sample)):
                raise DataError(f"{path}:{line}: not a sample of {task} ({fault})")
        return samples


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
        """The newest score; None where it has no value."""
        found = self.evaluation(task)
        return found.scores[task].get(metric) if found else None

    def interval(self, task: str, metric: str) -> tuple[float, float] | None:
        """The ends of the 95 % interval, where the harness gave one."""
        low, high = (self.score(task, f"{metric}_{end}") for end in ("low", "high"))
        return None if low is None or high is None else (low, high)

    def samples(self, task: str) -> list[Sample] | None:
        """The newest logged documents of this task; None where there are none."""
        logged = (one.samples(task) for one in self.evaluations if one.scores.get(task))
        return next((samples for samples in logged if samples), None)


@dataclass(frozen=True)
class Run:
    """The checkpoints of one training run in order, from (place on the axis, model); ``unit`` names the axis."""

    name: str
    unit: str
    points: tuple[tuple[float, Model], ...]


def read_models(paths: Iterable[str]) -> list[Model]:
    """Read results files, or all in and below folders, one `Model` for each model and setting, in the order given.

    Raises:
        DataError: names every path that is missing or holds no results of LUME.
    """
    evaluations: list[Evaluation] = []
    faults: list[str] = []
    for path in dict.fromkeys(_results_files(map(Path, paths), faults)):
        try:
            evaluations.append(read_evaluation(path))
        except DataError as error:
            faults.append(str(error))
    if faults:
        raise DataError("\n".join(faults))
    groups: dict[tuple[str, str], list[Evaluation]] = {}
    for evaluation in evaluations:
        groups.setdefault((evaluation.model, evaluation.settings), []).append(evaluation)
    newest_first = [tuple(sorted(group, key=lambda one: -one.date)) for group in groups.values()]
    return [Model(name, group) for name, group in zip(_names(list(groups)), newest_first, strict=True)]


def read_evaluation(path: Path) -> Evaluation:
    """Read one results file.

    Raises:
        DataError: it cannot be read, or is no results file with scores of LUME.
    """
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a results file of lm-eval (it cannot be read as JSON: {error})") from error
    if not _is_results(content):
        raise DataError(f"{path}: not a results file of lm-eval (no `results` by task in it)")
    if part := _odd_part(content):
        raise DataError(f"{path}: not a results file of lm-eval (its {part} is not what the harness writes)")
    evaluation = Evaluation(path, content)
    if not any(evaluation.scores.values()):
        raise DataError(f"{path}: has no score of a LUME task (it has: {', '.join(content['results'])})")
    return evaluation


def find_runs(models: Sequence[Model]) -> list[Run]:
    """Which models are checkpoints of one run, by folders named ``checkpoint-<step>``; at least two.

    Where the run's `unlearning.json` can be read, the axis counts epochs, and the finished model and the one before
    unlearning take part if they are among the models.
    """
    steps: dict[str, dict[Model, float]] = {}
    for model in models:
        if found := _CHECKPOINT.match(model.path):
            steps.setdefault(_normal(found["run"]), {})[model] = float(found["step"])
    runs = [_run(path, places, models) for path, places in steps.items()]
    return [run for run in runs if len(run.points) > 1]


def _run(path: str, places: dict[Model, float], models: Sequence[Model]) -> Run:
    unit, scale = "optimiser step", 1.0
    try:
        record = json.loads(read_text(Path(path) / RECORD))
        last = record["history"][-1]
        unit, scale = "epoch", last["epoch"] / last["step"]
        ends = {_normal(record["config"]["model"]): 0.0, _normal(path): float(last["step"])}
        places = {m: ends[_normal(m.path)] for m in models if _normal(m.path) in ends} | places
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
        pass  # no record, as where the results were copied from elsewhere: steps are all there is to know
    ordered = sorted(places.items(), key=lambda item: item[1])
    return Run(path.rsplit("/", 1)[-1], unit, tuple((step * scale, model) for model, step in ordered))


def comparability(models: Sequence[Model]) -> list[str]:
    """What keeps the models from being compared: other splits, task versions or rows; one line each."""
    faults = [_differ("The rows are of different splits", {m.name: m.evaluations[0].split for m in models})]
    for task in dict.fromkeys(task for model in models for one in model.evaluations for task in one.scores):
        found = {model.name: one for model in models if (one := model.evaluation(task))}
        counts = {name: one.count(task) for name, one in found.items()}
        texts = {name: one.fingerprint(task) for name, one in found.items()} if task in TASKS else {}
        faults += [
            _differ(
                f"{task} was scored in different versions", {name: one.version(task) for name, one in found.items()}
            ),
            _differ(f"{task} was scored on different numbers of rows", counts)
            or _differ(f"{task} was scored on different rows, by the hash of their texts", texts),
        ]
    return [fault for fault in faults if fault]


def _differ(what: str, values: dict[str, Any]) -> str | None:
    """A line that names the models by value, if they have more than one; None counts as no value."""
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
        elif found := sorted(path.rglob("results_*.json"), key=_natural):
            yield from found
        else:
            faults.append(f"{path}: no results_*.json in or below it; name what lm_eval's --output_path named")


def _names(keys: Sequence[tuple[str, str]]) -> list[str]:
    """The shortest unambiguous names of (model, settings): last part of the path, whole path, both with settings."""

    def short(model: str) -> str:
        parts = model.rstrip("/").split("/")
        return "/".join(parts[-2:] if re.fullmatch(r"checkpoint-\d+", parts[-1]) else parts[-1:])

    forms = [[short(model), model, f"{model} ({settings})"] for model, settings in keys]
    taken = [[form[level] for form in forms] for level in range(3)]
    return [next((f for f, all_ in zip(form, taken, strict=True) if all_.count(f) == 1), form[-1]) for form in forms]


def _is_results(content: object) -> bool:
    """Whether the parts that are read here have the shape that the harness gives them."""
    if not isinstance(content, dict) or not content.get("results"):
        return False
    by_task = [content.get(name) or {} for name in ("results", "configs", "n-samples")]
    others = [content.get(name) or {} for name in ("config", "versions", "task_hashes")]
    if not all(isinstance(part, dict) for part in by_task + others):
        return False
    return all(isinstance(entry, dict) for part in by_task for entry in part.values())


def _odd_part(content: dict[str, Any]) -> str | None:
    """Name a part that has another type than the harness gives it."""
    configs, counts = ((content.get(name) or {}).values() for name in ("configs", "n-samples"))
    right = {
        "date": content.get("date") is None or 0 <= number(content["date"]) < _YEAR_9999,
        "config.model_args": isinstance((content.get("config") or {}).get("model_args") or {}, (dict, str)),
        "configs.<task>.metadata": all(isinstance(config.get("metadata") or {}, dict) for config in configs),
        "n-samples.<task>.effective": all(isinstance(count.get("effective"), (int, type(None))) for count in counts),
    }
    return next((name for name, is_right in right.items() if not is_right), None)


def number(value: object) -> float:
    """A number of a JSON file as float; NaN for anything else, and for integers that no float can hold."""
    try:
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.nan


def _row_fault(sample: Sample) -> str | None:
    """Say what a logged row has not as the harness writes it, of all that is read here."""
    doc, answers = sample["doc"], sample.get("filtered_resps")
    texts = {f"doc.{name}": doc.get(name) for name in ("id", "input", "output")}
    texts |= {name: sample.get(name) for name in ("prompt_hash", "target_hash")}
    texts["filtered_resps[0]"] = answers[0] if isinstance(answers, list) and answers else None
    for name, text in texts.items():
        if not isinstance(text, str):
            return f"{name} is {describe(text)}, not a string"
    scores = [sample.get(f"forget_{kind}") for kind in ("regurgitation", "knowledge")]
    if not all(score is None or math.isfinite(number(score)) for score in scores):
        return "its score is no number"
    return None if isinstance(sample.get("doc_id"), int) else "doc_id is no whole number"


def _is_score(key: str, value: object) -> bool:
    return key.endswith(",none") and "_stderr" not in key and math.isfinite(number(value))


def _natural(path: Path) -> list[Any]:
    """Sort key under which checkpoint-10 follows checkpoint-9."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else part) for part in re.split(r"(\d+)", str(path))]


def _normal(path: str) -> str:
    try:
        return str(Path(path).resolve())
    except (OSError, RuntimeError, ValueError):  # links in a circle, NUL characters: a name like any other
        return path
