"""The final runs: train with the best setting on all rows, then score, judge and probe the result."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from typing import Any

from transformers import TrainerCallback

from lume_tasks.data.source import Data
from lume_tasks.tasks.results import row_scores
from lume_unlearn.audit.probes import run_probes
from lume_unlearn.compare.judge import numbers, tasks_of
from lume_unlearn.scoring.score import memorization_tasks, score, tasks_for

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
    model: Any, tokenizer: Any, data: Data, *, chat: bool, batch_size: int, probes: Sequence[str] = (), **more: Any
) -> Result:
    """Score a model with the tasks that there is data for, judge it, and probe it.

    Args:
        model: causal language model, on the device to score on.
        tokenizer: its tokenizer.
        data: the final documents.
        chat: ask questions of your own tasks through the chat template.
        batch_size: prompts of one batch.
        probes: names of `run_probes`; here they are judged without generating text (`judge.tasks_of`).
        more: further options of `run_probes`.

    Returns:
        ``scores`` ("TASK METRIC" to value), ``rows`` (`RowScores` as a dictionary), ``judged`` (see `judge.numbers`),
        and ``audits`` (probe to numbers) if there are probes.
    """
    options: dict[str, Any] = {"chat": chat, "batch_size": batch_size}
    tasks = [*memorization_tasks(data), *tasks_for(data)]
    scores = score(model, tokenizer, data, tasks=tasks, log_samples=True, **options)
    flat = {
        f"{task} {key.removesuffix(',none')}": float(value)
        for task, found in scores.results["results"].items()
        for key, value in found.items()
        if key.endswith(",none") and isinstance(value, (int, float)) and isfinite(value)
    }
    result: Result = {"scores": flat, "rows": asdict(row_scores(scores.results)), "judged": numbers(scores)}
    if probes:
        found = run_probes(model, tokenizer, data, probes, tasks=tasks_of(data), **options, **more)
        result["audits"] = {name: numbers(probed) for name, probed in found.items()}
    return result
