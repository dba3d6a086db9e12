"""What a comparison found, as one JSON object: settings, trials, and the means and ranges over the seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from lume_unlearn.compare import final, judge, tuning
from lume_unlearn.compare.options import CompareConfig
from lume_unlearn.compare.queue import Queue
from lume_unlearn.config import RunConfig
from lume_unlearn.evaluation.harness import MEANS

Contestant = tuple[str, str]
"""Method and tuning."""

COLUMNS = {
    "distance": "distance",
    **{name: f"lume_score {name}" for name in MEANS},
    "task_aggregate": "lume_score task_aggregate",
    "loss_auc": "lume_mia loss_auc",
    "min_k_plus_plus_auc": "lume_mia min_k_plus_plus_auc",
    "mmlu": "lume_score mmlu",
    "seconds": "seconds",
}
"""Column of the table to where a result has it."""


def contents(
    config: CompareConfig,
    runs: Mapping[Contestant, RunConfig],
    queues: Mapping[Contestant, Queue],
    best: Mapping[Contestant, Mapping[str, float] | None],
    finals: Queue,
) -> dict[str, Any]:
    """Gather everything that the page shows."""
    done = finals.results()
    results = {slot: trial.user_attrs["result"] for slot, trial in done.items() if "result" in trial.user_attrs}
    retrained = results.get("retrained")
    models = {name: [results[name]] for name in ("target", "retrained") if name in results}
    for method, tuned in runs:
        models[f"{method} {tuned}"] = [
            results[slot]
            for slot, trial in sorted(done.items())  # seed 0 first
            if slot in results and trial.user_attrs.get("contestant") == [method, tuned]
        ]
    attack = any("lume_mia loss_auc" in result["scores"] for result in results.values())
    return {
        "options": asdict(config),
        "objective": judge.words(config.retrained is not None, attack),
        "settings": {
            " ".join(key): {"default": tuning.default_setting(run), "best": best[key]} for key, run in runs.items()
        },
        "trials": {queue.name: [_trial(*found) for found in queue.results().items()] for queue in queues.values()},
        "failures": {slot: trial.user_attrs["reason"] for slot, trial in done.items() if "reason" in trial.user_attrs},
        "table": {name: row(found, retrained) for name, found in models.items() if found},
        "audits": {name: found[0]["audits"] for name, found in models.items() if found and "audits" in found[0]},
        "judged": {name: found[0]["judged"] for name, found in models.items() if found},
        "curves": {name: found[0]["curve"] for name, found in models.items() if found and "curve" in found[0]},
    }


def row(results: Sequence[final.Result], retrained: final.Result | None) -> dict[str, list[float]]:
    """Return each column's mean, lowest and highest value over the seeds; without columns that have no value."""
    found: dict[str, list[float]] = {}
    for column, where in COLUMNS.items():
        values = [_value(result, where, retrained) for result in results]
        there = [value for value in values if value is not None]
        if there:
            found[column] = [fmean(there), min(there), max(there)]
    return found


def _value(result: final.Result, where: str, retrained: final.Result | None) -> float | None:
    if where == "distance":
        return final.final_distance(result, retrained)
    value = result.get(where) if where == "seconds" else result["scores"].get(where)
    return None if value is None else float(value)


def _trial(slot: int, trial: Any) -> dict[str, Any]:
    """Return one trial: its setting, value (None if it failed) and state."""
    state, reason = trial.state.name.lower(), trial.user_attrs.get("reason")
    return {"slot": slot, "setting": trial.params, "value": trial.value, "state": state, "reason": reason}
