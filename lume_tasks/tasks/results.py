"""Read results that the harness wrote for another model: its numbers, and its logged samples row by row."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lume_tasks.data.files import read_text
from lume_tasks.errors import DataError, first_line

OPTION = "lume_reference_results"
_DATE = re.compile(r"_(\d{4}-\d\d-\d\dT[\d.-]+)\.json\Z")  # results_<date>.json, or <name>_<date>.json


@dataclass(frozen=True)
class ReferenceResults:
    """One results file of the harness and the sample files that belong to it.

    Attributes:
        path: the results file.
        numbers: task (or group) to its metrics, named without the filter: ``{"lume_mia": {"loss_auc": 0.5}}``.
        versions: task to the version of its YAML.
        metadata: task to what it was configured with (``lume_split``, ``lume_min_k``, ...).
    """

    path: Path
    numbers: dict[str, dict[str, float]]
    versions: dict[str, Any]
    metadata: dict[str, dict[str, Any]]

    def samples(self, task: str, version: Any = None, split: str | None = None) -> list[dict[str, Any]]:
        """Return the logged samples of a task, in the order of the file.

        Args:
            task: its name.
            version: the version that the task has to have, if given.
            split: the ``lume_split`` that the task has to have, if given.

        Raises:
            DataError: the task was not run, was run on other rows or in another version, or logged no samples.
        """
        if task not in self.numbers:
            ran = ", ".join(self.numbers)
            raise DataError(f"{OPTION}: {self.path} has no results of {task}; it has: {ran}")
        if version is not None and self.versions.get(task) != version:
            raise DataError(
                f"{OPTION}: {self.path} has {task} in version {self.versions.get(task)}, not {version}: "
                "evaluate the reference again with the installed version"
            )
        was = self.metadata.get(task, {}).get("lume_split", "all")
        if split is not None and was != split:
            raise DataError(f"{OPTION}: {self.path} is of split {was}, not {split}: evaluate the reference on that one")
        file = samples_file(self.path, task)
        if not file.is_file():
            raise DataError(
                f"{OPTION}: {file} is missing, which holds the scores of each row: evaluate the reference with "
                "--log_samples, and keep the files of its output folder together, with their names"
            )
        try:
            return read_samples(file)
        except DataError as error:
            raise DataError(f"{OPTION}: {error}") from error


def read_reference(path: str) -> ReferenceResults:
    """Read results written by ``lm_eval --log_samples --output_path ...``.

    Args:
        path: a results file, or a folder that contains exactly one (at any depth).

    Raises:
        DataError: there are no results of the harness, or several.
    """
    file = _results_file(path)
    try:
        content = read_results(file)
    except DataError as error:
        raise DataError(f"{OPTION}: {error}") from error
    metadata = {task: dict(config.get("metadata") or {}) for task, config in content.get("configs", {}).items()}
    return ReferenceResults(file, numbers(content), dict(content.get("versions", {})), metadata)


def read_results(path: Path) -> dict[str, Any]:
    """Load a results file of the harness.

    Raises:
        DataError: the file cannot be read, is not JSON, or has no results by task.
    """
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a results file of the harness ({first_line(error)})") from error
    tasks = content.get("results") if isinstance(content, dict) else None
    if not isinstance(tasks, dict) or not all(isinstance(metrics, dict) for metrics in tasks.values()):
        raise DataError(f"{path} is not a results file of the harness (it has no `results` by task)")
    return dict(content)


def numbers(content: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the numbers of a results file: task (or group) -> metric without its filter -> value."""
    return {
        task: {
            key.removesuffix(",none"): value
            for key, value in metrics.items()
            if key.endswith(",none") and isinstance(value, (int, float))
        }
        for task, metrics in content["results"].items()
    }


def samples_file(results: Path, task: str) -> Path:
    """Return where the harness logs the samples of a task, beside the results file of the same evaluation."""
    date = _DATE.search(results.name)
    return results.with_name(f"samples_{task}_{date.group(1) if date else ''}.jsonl")


def _results_file(path: str) -> Path:
    if not isinstance(path, str):
        raise DataError(f"metadata {OPTION} has to be a path, not {path!r}")
    given = Path(path).expanduser()
    if given.is_file():
        return given
    if not given.is_dir():
        raise DataError(f"{OPTION}: {given} does not exist; it has to be a results_*.json or the folder of one")
    found = sorted(file for file in given.rglob("*.json") if _DATE.search(file.name))
    if len(found) != 1:
        listed = "".join(f"\n  {file}" for file in found)
        fault = f"several results files; name one of them:{listed}" if found else "no results_*.json in it"
        raise DataError(f"{OPTION}: {given} has {fault}")
    return found[0]


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Read one sample file of the harness; each line is an object with its ``doc``.

    Raises:
        DataError: the file cannot be read, or a line is not what the harness writes.
    """
    try:
        lines = path.read_bytes().splitlines()  # bytes: text that is not UTF-8 is a fault of its line
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    samples = []
    for number, line in enumerate(lines, 1):
        try:
            sample = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not JSON; was the evaluation cut off? ({error})") from error
        if not isinstance(sample, dict) or not isinstance(sample.get("doc"), dict):
            raise DataError(f"{path}:{number}: not a sample of lm-eval (no object with a `doc`)")
        samples.append(sample)
    return samples
