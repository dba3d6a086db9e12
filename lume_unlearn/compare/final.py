"""The final runs: train with the best setting on all rows, then score, judge and probe the result."""

import time
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any

from transformers import TrainerCallback

from lume_tasks.data.source import Data
from lume_unlearn.compare.judge import judged, numbers
from lume_unlearn.scoring.score import MEANS, Scores, memorization_tasks, score, tasks_for

CURVE_QUESTIONS = 2
"""MMLU questions of each subject for the curves."""

Result = dict[str, Any]


class Curve(TrainerCallback):
    """Judges the model at the start and after each epoch, in the arithmetic of training."""

    def __init__(self, judge: Callable[[Any], Mapping[str, float]]) -> None:
        """Take a function from the model to its numbers."""
        self.judge = judge
        self.points: list[dict[str, float]] = []
        self.seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Judge the target."""
        self.add(model, 0.0)

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Judge the model in training."""
        self.add(model, float(state.epoch))

    def add(self, model: Any, epoch: float) -> None:
        """Add a point to the curve."""
        started = time.perf_counter()
        self.points.append({"epoch": epoch, **self.judge(model)})
        self.seconds += time.perf_counter() - started


def results_of(
    model: Any, tokenizer: Any, data: Data, *, chat: bool, batch_size: int, probes: Sequence[str] = (), seed: int = 0
) -> Result:
    """Score a model with the tasks that there is data for, judge it, and probe it.

    Args:
        model: causal language model, on the device to score on.
        tokenizer: its tokenizer.
        data: the final documents.
        chat: ask questions of your own tasks through the chat template.
        batch_size: prompts of one batch.
        probes: names of `audit.probes`; a probe is the same here as in `lume-unlearn audit`.
        seed: of the probes.

    Returns:
        ``scores`` ("TASK METRIC" to value), ``rows`` (metric to the score of each row or document, for the distance),
        ``judged`` (see `judge.numbers`), and ``audits`` (probe to `Scores.means`) if there are probes.
    """
    scores = score(
        model, tokenizer, data, tasks=[*memorization_tasks(data), *tasks_for(data)], chat=chat, batch_size=batch_size
    )
    flat = {
        f"{task} {key.removesuffix(',none')}": float(value)
        for task, found in scores.results["results"].items()
        for key, value in found.items()
        if key.endswith(",none") and isinstance(value, (int, float)) and isfinite(value)
    }
    result: Result = {"scores": flat, "rows": row_scores(scores), "judged": numbers(scores)}
    if probes:
        if hasattr(model, "merge_and_unload"):
            model = model.merge_and_unload()
        found = run_probes(model, tokenizer, data, probes, chat=chat, batch_size=batch_size, seed=seed)
        result["audits"] = {name: scores.means for name, scores in found.items()}
    return result


def row_scores(scores: Scores) -> dict[str, dict[str, float]]:
    """Return the scores that the distance to the retrained model compares, with six digits, for the storage."""
    return {
        name: {row: round(value, 6) for row, value in scores.rows[name].items()}
        for name in (*MEANS, "loss_auc")
        if name in scores.rows
    }
