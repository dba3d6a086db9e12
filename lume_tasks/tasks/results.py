"""Read results files and sample logs that the harness wrote."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lume_tasks.errors import DataError, first_line
from lume_tasks.metrics.unlearning import RowScores

_DATE = re.compile(r"_(\d{4}-\d\d-\d\dT[\d.-]+)\.json\Z")  # results_<date>.json, or <name>_<date>.json


def find_results(path: str) -> Path:
    """Return the results file ``path``, or the only one in the folder ``path``; DataError if none or several."""
    named = Path(path).expanduser()
    if named.is_file():
        return named
    if not named.is_dir():
        raise DataError(f"{named} does not exist; it has to be a results_*.json or the folder of one")
    found = sorted(file for file in named.rglob("*.json") if _DATE.search(file.name))
    if len(found) != 1:
        listed = "".join(f"\n  {file}" for file in found)
        fault = f"several results files; name one of them:{listed}" if found else "no results_*.json in it"
        raise DataError(f"{named} has {fault}")
    return found[0]


def read_results(path: Path) -> dict[str, Any]:
    """Load a results file of the harness; DataError if it is not one."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a results file of the harness ({first_line(error)})") from error
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise DataError(f"{path} is not a results file of the harness (it has no `results` by task)")
    return content


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
    """Return the file where the harness logs a task's samples, next to the results file of the same evaluation."""
    date = _DATE.search(results.name)
    return results.with_name(f"samples_{task}_{date.group(1) if date else ''}.jsonl")


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Load a sample file of the harness: one object with a ``doc`` per line; DataError names a faulty line."""
    samples = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):  # bytes: no Unicode separator ends a line
        try:
            sample = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not JSON; was the evaluation cut off? ({error})") from error
        if not isinstance(sample, dict) or not isinstance(sample.get("doc"), dict):
            raise DataError(f"{path}:{number}: not a sample of lm-eval (no object with a `doc`)")
        samples.append(sample)
    return samples


def row_scores(results: Mapping[str, Any], kinds: Sequence[str] = ("regurgitation", "knowledge")) -> RowScores:
    """Return the scores of each row, for the distance to a retrained model, from results with logged samples.

    Args:
        results: what `simple_evaluate(..., log_samples=True)` returned: ``results`` and ``samples`` by task.
        kinds: row metrics without the side, such as ``("exact_memorization", ...)`` for `lume_memorization`.
    """
    rows: dict[str, dict[str, float]] = {}
    losses: dict[str, dict[str, float]] = {}
    for task, samples in results.get("samples", {}).items():
        for sample in samples:
            doc = sample["doc"]
            if task == "lume_mia":
                member, score = sample["loss_auc"]
                losses.setdefault("member" if member else "nonmember", {})[str(doc["number"])] = -float(score)
            for name in (f"{doc['side']}_{kind}" for kind in kinds) if "side" in doc else ():
                if sample.get(name) is not None:
                    rows.setdefault(f"{doc['side']} {task} {name}", {})[doc["id"]] = float(sample[name])
    return RowScores(rows, losses, results["results"].get("lume_mmlu", {}).get("acc,none"))
