"""The final runs: train with the best setting on all rows, then score, judge and audit the result."""

import copy
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from lume_tasks.data import locate
from lume_unlearn.compare.judge import distance, judged, locate_mmlu, shortfall
from lume_unlearn.compare.options import CompareConfig
from lume_unlearn.config import RunConfig
from lume_unlearn.data.encode import encode_rows
from lume_unlearn.evaluation import harness
from lume_unlearn.evaluation.quantisation import rounded_copy
from lume_unlearn.model import load
from lume_unlearn.model.forward import evaluating, use_packing
from lume_unlearn.training.monitor import Monitor
from lume_unlearn.training.relearning import fine_tune
from lume_unlearn.training.run import unlearned

CURVE_QUESTIONS = 2
"""MMLU questions of each subject for the curves."""
TWELVE = {
    "forget": tuple(f"{task} {name}" for task in harness.ROW_TASKS for name in harness.MEANS[:2]),
    "retain": tuple(f"{task} {name}" for task in harness.ROW_TASKS for name in harness.MEANS[2:]),
    "attack": ("lume_mia loss_auc",),
}
"""The numbers of the final distance, in groups of equal weight."""

Result = dict[str, Any]


class Curve(TrainerCallback):
    """Judges the model before training and after each epoch."""

    def __init__(self, tokenizer: Any, data: Path, mmlu: str | None, batch_size: int) -> None:
        """``data``: directory of the final rows; ``mmlu``: a local copy, or None."""
        self.tokenizer, self.data, self.mmlu, self.batch_size = tokenizer, data, mmlu, batch_size
        self.points: list[dict[str, float]] = []
        self.seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Judge the target."""
        self._judge(model, 0.0)

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Judge the model in training."""
        self._judge(model, float(state.epoch))

    def _judge(self, model: Any, epoch: float) -> None:
        started = time.perf_counter()
        with evaluating(model):
            point = {"epoch": epoch, **judged(model, self.tokenizer, self.data, self.batch_size)}
            if self.mmlu is not None:
                lm = harness.wrap(model, self.tokenizer, self.batch_size)
                metadata = {"lume_mmlu_path": self.mmlu, "lume_mmlu_limit": CURVE_QUESTIONS}
                point["mmlu"] = harness.metric(harness.score(lm, metadata, ("lume_mmlu",)), "lume_mmlu", "acc") or 0.0
        self.points.append(point)
        self.seconds += time.perf_counter() - started


def final_run(config: CompareConfig, run: RunConfig, folders: Mapping[str, Path], seed: int) -> Result:
    """Train with one seed on all rows, and return the scores, the curve, the seconds and, for seed 0, the audits."""
    curves: list[Curve] = []
    mmlu = locate_mmlu(Path(config.data)) if config.data else None

    def callbacks(monitor: Monitor) -> list[TrainerCallback]:
        tokenizer = load.load_tokenizer(config.model, config.trust_remote_code)
        curves.append(Curve(tokenizer, folders["final"], mmlu, config.evaluate_batch_size))
        return [*curves]

    started = time.perf_counter()
    model, tokenizer = unlearned(replace(run, seed=seed), callbacks)
    seconds = time.perf_counter() - started - curves[0].seconds
    result = scored(config, model, tokenizer, folders["final"])
    result |= {"seconds": seconds, "curve": curves[0].points}
    if config.audits and seed == 0:
        result["audits"] = audited(config, model, tokenizer, folders)
    return result


def judged_model(config: CompareConfig, name: str, data: Path) -> dict[str, float]:
    """Load and judge a model."""
    model = load.load_for_scoring(name, config.trust_remote_code)
    tokenizer = load.load_tokenizer(name, config.trust_remote_code)
    return judged(model, tokenizer, data, config.evaluate_batch_size)


def named_model(config: CompareConfig, name: str, folders: Mapping[str, Path]) -> Result:
    """Return the scores and audits of the target or of the retrained model."""
    tokenizer = load.load_tokenizer(name, config.trust_remote_code)
    model = load.load_for_scoring(name, config.trust_remote_code)
    result = scored(config, model, tokenizer, folders["final"])
    if config.audits:
        result["audits"] = audited(config, model, tokenizer, folders)
    return result


def scored(config: CompareConfig, model: Any, tokenizer: Any, data: Path) -> Result:
    """Score a loaded model with the tasks of the `lume` group that the data has, and judge it."""
    mmlu = locate_mmlu(Path(config.data)) if config.data else None
    metadata = harness.data_metadata(data) | {"tokenizer": tokenizer, "lume_partial": True}
    tasks = [task for task in harness.tasks_for(data) if task != "lume_mmlu"]
    if mmlu is not None:
        metadata["lume_mmlu_path"] = mmlu
        tasks.insert(-1, "lume_mmlu")
    lm = harness.wrap(model, tokenizer, config.evaluate_batch_size)
    with harness.without_messages("lume_tasks", "lume_score: no final score"):
        results = harness.score(lm, metadata, tuple(tasks))
    scores = {
        f"{task} {key.removesuffix(',none')}": float(value)
        for task, metrics in results["results"].items()
        if task in tasks
        for key, value in metrics.items()
        if key.endswith(",none") and isinstance(value, (int, float))
    }
    return {"scores": scores, "judged": judged(model, tokenizer, data, config.evaluate_batch_size)}


def final_distance(result: Result, retrained: Result | None) -> float:
    """Compute how far a result is from the retrained model's scores (`judge.distance` over `TWELVE`); 0 is ideal.

    Without a retrained model: `judge.shortfall` of the judged numbers.
    """
    if retrained is None:
        return shortfall(result["judged"])
    return distance(result["scores"], retrained["scores"], TWELVE)


def audited(config: CompareConfig, model: Any, tokenizer: Any, folders: Mapping[str, Path]) -> dict[str, Any]:
    """Judge a model again after rounding its weights, and after training it on rows that are not judged.

    "repair" trains on retain rows, "relearning" on forget rows, both of the tuning documents, with the loss on whole
    texts, four epochs.
    """
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    batch_size, found = config.evaluate_batch_size, {}
    for bits in (8, 4):
        found[f"{bits}-bit"] = judged(rounded_copy(model, bits), tokenizer, folders["final"], batch_size)
    rows = locate.load_rows(folders["tuning"])
    for name, side in (("repair", "retain"), ("relearning", "forget")):
        chosen = random.Random(config.seed).sample(rows[side], min(config.audit_rows, len(rows[side])))
        trained = copy.deepcopy(model)
        use_packing(trained)
        texts = encode_rows(tokenizer, chosen, "text", None, load.context_length(trained))
        fine_tune(trained, texts, 4, config.audit_rate, batch_size=8, seed=config.seed)
        found[name] = judged(trained, tokenizer, folders["final"], batch_size)
    return found


def best_setting(trials: Sequence[Any]) -> dict[str, float] | None:
    """Return the setting of the complete trial with the lowest value; None if none is complete."""
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    return dict(min(complete, key=lambda trial: trial.value).params) if complete else None
