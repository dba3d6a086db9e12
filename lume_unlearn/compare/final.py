"""The final runs: train with the best setting on all rows, then score, judge and audit the result."""

import random
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from lume_tasks.data import locate
from lume_unlearn.compare.judge import judged, locate_mmlu
from lume_unlearn.compare.options import CompareConfig
from lume_unlearn.compare.requests import in_turn
from lume_unlearn.config import RunConfig
from lume_unlearn.data.encode import encode_rows
from lume_unlearn.evaluation import harness
from lume_unlearn.evaluation.depth import Depth, depth
from lume_unlearn.evaluation.quantisation import rounded_copy
from lume_unlearn.model import load
from lume_unlearn.model.forward import evaluating
from lume_unlearn.training.relearning import trained_copy
from lume_unlearn.training.run import unlearned

CURVE_QUESTIONS = 2
"""MMLU questions of each subject for the curves."""
AUDIT_EPOCHS = 4
DEPTH_ROWS = 32
"""Most forget rows for the unlearning depth score."""
DEPTH_TOKENS = 2048
"""Most tokens, with padding, in its micro-batches."""

Result = dict[str, Any]


class Curve(TrainerCallback):
    """Judges the model at the start and after each epoch, in the arithmetic of training."""

    def __init__(self, config: CompareConfig, data: Path) -> None:
        """``data``: directory of the final rows."""
        self.tokenizer = load.load_tokenizer(config.model, config.trust_remote_code)
        self.mmlu = locate_mmlu(Path(str(config.data)))
        self.data, self.batch_size = data, config.evaluate_batch_size
        self.points: list[dict[str, float]] = []
        self.seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Judge the target."""
        self.judge(model, 0.0)

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Judge the model in training."""
        self.judge(model, float(state.epoch))

    def judge(self, model: Any, epoch: float) -> None:
        """Add a point to the curve."""
        started = time.perf_counter()
        with evaluating(model):
            point = {"epoch": epoch, **judged(model, self.tokenizer, self.data, self.batch_size)}
            if self.mmlu is not None:
                lm = harness.wrap(model, self.tokenizer, self.batch_size)
                metadata = {"lume_mmlu_path": self.mmlu, "lume_mmlu_limit": CURVE_QUESTIONS}
                point["mmlu"] = float(harness.score(lm, metadata, ("lume_mmlu",))["results"]["lume_mmlu"]["acc,none"])
        self.points.append(point)
        self.seconds += time.perf_counter() - started


def final_run(config: CompareConfig, run: RunConfig, folders: Mapping[str, Path], seed: int) -> Result:
    """Train with one seed on all rows, and return the scores, the curve, the seconds and, for seed 0, the audits."""
    curve = Curve(config, folders["final"])
    started = time.perf_counter()
    # A task vector is made after training: until then the model learns the forget rows.
    model, tokenizer = unlearned(replace(run, seed=seed), lambda _: [] if run.spec.negated else [curve])
    seconds = time.perf_counter() - started - curve.seconds
    if run.spec.negated:
        curve.judge(model, run.epochs)
    result = results_of(config, model, tokenizer, folders, with_audits=seed == 0)
    if config.requests and seed == 0:
        result["requests"] = in_turn(run, folders["final"], config.requests, config.evaluate_batch_size)
    return result | {"seconds": seconds, "curve": curve.points}


def named_model(config: CompareConfig, name: str, folders: Mapping[str, Path]) -> Result:
    """Return the scores and audits of the target or of the retrained model."""
    tokenizer = load.load_tokenizer(name, config.trust_remote_code)
    model = load.load_for_scoring(name, config.trust_remote_code)
    return results_of(config, model, tokenizer, folders, with_audits=True)


def results_of(
    config: CompareConfig, model: Any, tokenizer: Any, folders: Mapping[str, Path], with_audits: bool
) -> Result:
    """Score a loaded model with the tasks of the `lume` group that the data has, judge it, and audit it.

    With ``--retrained`` also compute its unlearning depth score.
    """
    data, mmlu = folders["final"], locate_mmlu(Path(str(config.data)))
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
        for task in tasks
        for key, value in results["results"][task].items()
        if key.endswith(",none") and isinstance(value, (int, float)) and isfinite(value)
    }
    result = {"scores": scores, "judged": judged(model, tokenizer, data, config.evaluate_batch_size)}
    found = depth_of(config, model, tokenizer, data) if config.retrained else None
    if found is not None and isfinite(found.score):
        result["depth"] = asdict(found)
    if with_audits and config.audits:
        result["audits"] = audited(config, model, tokenizer, folders)
    return result


def depth_of(config: CompareConfig, model: Any, tokenizer: Any, data: Path) -> Depth | None:
    """Compute the unlearning depth score on at most `DEPTH_ROWS` random forget rows; None if it cannot be computed."""
    rows = locate.load_side(data, "forget")
    chosen = random.Random(config.seed).sample(rows, min(DEPTH_ROWS, len(rows)))
    try:
        encoded = encode_rows(tokenizer, chosen, "answer", None, load.context_length(model))
        names = (config.model, str(config.retrained))
        target, retrained = (load.load_for_scoring(name, config.trust_remote_code) for name in names)
        return depth(target, retrained, model, encoded, DEPTH_TOKENS)
    except Exception:  # out of memory, or a retrained model of another shape: the scores still count
        traceback.print_exc()
        return None


def audited(config: CompareConfig, model: Any, tokenizer: Any, folders: Mapping[str, Path]) -> dict[str, Any]:
    """Judge a model again after rounding its weights, and after training it on rows that are not judged.

    "repair" trains on retain rows, "relearning" on forget rows, both of the tuning documents, with the loss on whole
    texts. An audit that fails has no numbers.
    """
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    rows = locate.load_rows(folders["tuning"])
    audits: dict[str, Callable[[], Any]] = {f"{bits}-bit": partial(rounded_copy, model, bits) for bits in (8, 4)}
    for name, side in (("repair", "retain"), ("relearning", "forget")):
        audits[name] = partial(_trained_copy, config, model, tokenizer, rows[side])
    found: dict[str, Any] = {}
    for name, changed in audits.items():
        try:
            found[name] = judged(changed(), tokenizer, folders["final"], config.evaluate_batch_size)
        except Exception:  # out of memory, or a model that cannot be rounded: the scores still count
            traceback.print_exc()
            found[name] = {}
    return found


def _trained_copy(config: CompareConfig, model: Any, tokenizer: Any, rows: Sequence[Any]) -> Any:
    chosen = random.Random(config.seed).sample(rows, min(config.audit_rows, len(rows)))
    return trained_copy(model, tokenizer, chosen, "text", AUDIT_EPOCHS, config.audit_rate, config.seed)
