"""What a comparison found, as one JSON object: settings, trials, and the means and ranges over the seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from lume_tasks.metrics.unlearning import distance
from lume_unlearn.compare import judge, tuning
from lume_unlearn.compare.final import Result
from lume_unlearn.compare.options import CompareConfig
from lume_unlearn.compare.queue import Queue
from lume_unlearn.config import RunConfig
from lume_unlearn.errors import ConfigError
from lume_unlearn.evaluation.harness import MEANS

Contestant = tuple[str, str]
"""Method and tuning."""
MODELS = ("target", "retrained")
COLUMNS = {
    **{name: f"lume_score {name}" for name in MEANS},
    "task_aggregate": "lume_score task_aggregate",
    "loss_auc": "lume_mia loss_auc",
    "min_k_plus_plus_auc": "lume_mia min_k_plus_plus_auc",
    "mmlu": "lume_score mmlu",
}
"""Column of the table to the score that it shows."""


def contents(
    config: CompareConfig,
    runs: Mapping[Contestant, RunConfig],
    queues: Mapping[Contestant, Queue],
    best: Mapping[Contestant, Mapping[str, float] | None],
    finals: Queue,
    attack: bool,
) -> dict[str, Any]:
    """Gather everything that the page shows; ``attack``: trials were also judged by the attack.

    Raises:
        ConfigError: the target or the retrained model could not be scored.
    """
    done = {slot: trial.user_attrs for slot, trial in finals.results().items() if slot in finals.slots}
    failures = {slot: found["reason"] for slot, found in done.items() if "reason" in found}
    for name in MODELS:
        if name in failures:
            raise ConfigError(f"the {name} model could not be scored: {failures[name]}")
    models: dict[str, list[Result]] = {}
    for slot in finals.slots:  # seed 0 first
        if "result" in done[slot]:
            models.setdefault(slot.partition(", seed")[0], []).append(done[slot]["result"])
    retrained = models["retrained"][0] if config.retrained else None
    return {
        "options": asdict(config),
        "objective": judge.words(config.retrained is not None, attack),
        "settings": {
            " ".join(key): {"default": tuning.default_setting(run), "best": best[key]} for key, run in runs.items()
        },
        "trials": {queue.name: [_trial(*found) for found in queue.results().items()] for queue in queues.values()},
        "failures": failures,
        "table": {name: row(found, retrained) for name, found in models.items()},
        "audits": {name: found[0]["audits"] for name, found in models.items() if "audits" in found[0]},
        "requests": {name: found[0]["requests"] for name, found in models.items() if "requests" in found[0]},
        "depth": {name: found[0]["depth"] for name, found in models.items() if "depth" in found[0]},
        "judged": {name: found[0]["judged"] for name, found in models.items()},
        "curves": {name: found[0]["curve"] for name, found in models.items() if "curve" in found[0]},
    }


def row(results: Sequence[Result], retrained: Result | None) -> dict[str, list[float]]:
    """Return each column's mean, lowest and highest value over the seeds; without columns that have no value.

    The first column is the distance to the retrained model's scores, without such a model the shortfall.
    """
    if retrained is None:
        columns = {"distance": [judge.shortfall(result["judged"]) for result in results]}
    else:
        goal = retrained["scores"]
        columns = {"distance": [distance(result["scores"], goal) for result in results]}
    for column, where in COLUMNS.items():
        columns[column] = [result["scores"][where] for result in results if where in result["scores"]]
    columns["depth"] = [result["depth"]["score"] for result in results if "depth" in result]
    columns["seconds"] = [result["seconds"] for result in results if "seconds" in result]
    return {name: [fmean(values), min(values), max(values)] for name, values in columns.items() if values}


def _trial(slot: int, trial: Any) -> dict[str, Any]:
    """Return one trial: its setting, its state, and its value if it was judged."""
    reason = trial.user_attrs.get("reason")
    state = "failed" if reason else trial.state.name.lower()
    value = trial.value if state == "complete" else None
    return {"trial": slot + 1, "setting": trial.params, "value": value, "state": state, "reason": reason}
