"""Scores while training, with the same tasks as after it, and keeps the best weights."""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback

from lume_tasks.data import locate
from lume_unlearn.config import SCORED, RunConfig
from lume_unlearn.data.inputs import named_directory
from lume_unlearn.errors import ConfigError
from lume_unlearn.evaluation import harness
from lume_unlearn.files import fresh_partial, write_text, writing
from lume_unlearn.model import load
from lume_unlearn.model.forward import evaluating
from lume_unlearn.model.masters import float32_weights

_log = logging.getLogger("lume_unlearn")

SCORES = "scores"
BEST = "best"
RESULTS = "results_lume.json"
DEFAULT_METRIC = "lume_score.task_aggregate"
"""It has no value where the data lacks a task; then the mean of the task scores decides alone."""


class Evaluation(TrainerCallback):
    """After each epoch, writes the harness's scores to ``scores/checkpoint-<step>/`` and the best weights to ``best/``.

    One process scores and the others wait, so each process must hold the whole model (one device, or DDP).
    `lume-unlearn report` shows the scores over time.
    """

    def __init__(self, config: RunConfig) -> None:
        """Choose the tasks and load them once, to find what cannot be scored before training.

        Raises:
            ConfigError: a task is unknown, or the data has nothing for it.
            DataError: the data of a task is faulty.
        """
        self.config = config
        self.tokenizer = load.load_tokenizer(config.model, config.trust_remote_code)
        self.output = Path(config.output)
        self.task, _, self.metric = config.best_metric.partition(".")
        self.best: dict[str, Any] | None = None
        self.directory = named_directory(config.data)
        mmlu = locate.mmlu_source(None, self.directory)
        self.metadata = harness.data_metadata(self.directory, config.split)
        self.metadata |= {"lume_mmlu_path": mmlu, "tokenizer": self.tokenizer, "lume_chat": config.chat}
        self.tasks = self._chosen_tasks()
        manager = harness.task_manager(self.metadata)
        unknown = [name for name in self.tasks if name not in manager.all_tasks]
        if unknown:
            raise ConfigError(f"--evaluate_tasks {', '.join(unknown)}: there is no such task")
        manager.load(list(self.tasks))

    def _chosen_tasks(self) -> tuple[str, ...]:
        """Return the named tasks, or those default tasks that the data has rows for.

        Raises:
            ConfigError: the data has nothing for a task that was named.
        """
        there = harness.tasks_for(self.directory, self.config.split)
        lacking = [name for name in self.config.scored_tasks if name in (*SCORED, "lume_mmlu") and name not in there]
        chosen = [name for name in self.config.scored_tasks if name not in lacking]
        option = "evaluate_tasks" if self.config.evaluate_tasks else "best_metric"
        if lacking and (self.config.evaluate_tasks or self.task not in chosen):
            raise ConfigError(
                f"--{option} {getattr(self.config, option)}: {self.directory} has no data for {', '.join(lacking)} in "
                f"split {self.config.split}; it has data for {', '.join(there)}"
            )
        return tuple(chosen)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Restore the best scores of a resumed run, and score an epoch that it ended without scoring."""
        best = self.output / BEST / "best.json"
        if state.global_step and best.is_file():
            self.best = json.loads(best.read_text(encoding="utf-8"))
        if state.global_step and float(state.epoch or 0).is_integer():
            self._score_in_first_process(model, state.global_step, again=False)

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Score in the first process."""
        self._score_in_first_process(model, state.global_step)

    def _score_in_first_process(self, model: Any, step: int, again: bool = True) -> None:
        processes = PartialState()
        done = (self._folder(step) / RESULTS).is_file()
        if processes.is_main_process and (again or not done):
            self._score_and_keep(getattr(model, "module", model), step)
        processes.wait_for_everyone()

    def _score_and_keep(self, model: Any, step: int) -> None:
        """Score, print and keep the scores. A failure is a warning: it must not cost the run its result."""
        try:
            with evaluating(model):
                results = self._score(model)
        except Exception as error:  # of the harness, a task or the GPU: training can continue
            advice = "training continues and the model will be saved: score it afterwards"
            _log.warning("step %d: scoring failed (%s: %s); %s", step, type(error).__name__, error, advice)
            return
        found = self._found(results, step)
        print(f"step {step}: {_line(found['scores'])}", flush=True)
        try:
            with writing(self.output):
                self._keep(results, found, model)
        except ConfigError as error:
            _log.warning("step %d: its scores could not be kept; training continues: %s", step, error)

    def _score(self, model: Any) -> dict[str, Any]:
        lm = harness.wrap(model, self.tokenizer, self.config.evaluate_batch_size)
        return harness.score(lm, self.metadata, self.tasks, limit=self.config.evaluate_limit)

    def _keep(self, results: dict[str, Any], found: dict[str, Any], model: Any) -> None:
        """Keep the weights if they are the best, then the scores, which mark the step as done."""
        by_mean = self.config.best_metric == DEFAULT_METRIC and harness.MEAN in found["scores"]
        if found["value"] is None and not by_mean:
            _log.warning("step %d: %s has no value, so it cannot be the best", found["step"], self.config.best_metric)
        elif self.best is None or self._rank(results, found) >= self._rank(results, self.best):
            self._keep_weights(model, found)
            self.best = found
        folder = self._folder(found["step"])
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / RESULTS, json.dumps(results, indent=1, default=str) + "\n")

    def _keep_weights(self, model: Any, found: dict[str, Any]) -> None:
        """Replace ``best/``; a process that dies meanwhile leaves the old one, the new one, or none."""
        partial = fresh_partial(self.output)
        with float32_weights(model):
            model.save_pretrained(partial / BEST)
        self.tokenizer.save_pretrained(partial / BEST)
        write_text(partial / BEST / "best.json", json.dumps(found, indent=1) + "\n")
        if (self.output / BEST).exists():
            os.replace(self.output / BEST, partial / "replaced")
        os.replace(partial / BEST, self.output / BEST)
        shutil.rmtree(partial)

    def _folder(self, step: int) -> Path:
        return self.output / SCORES / f"checkpoint-{step}"

    def _found(self, results: dict[str, Any], step: int) -> dict[str, Any]:
        """Return the content of ``best.json``; ``value`` is None if the metric has none."""
        value = harness.metric(results, self.task, self.metric)
        scores = harness.headline(results)
        if value is not None and self.config.best_metric != DEFAULT_METRIC:
            scores = {self.config.best_metric: value} | scores
        return {"metric": self.config.best_metric, "value": value, "step": step, "scores": scores}

    def _rank(self, results: dict[str, Any], found: dict[str, Any]) -> tuple[float, float]:
        """Return a key that is higher for better scores: metric, then the mean of the task scores."""
        default = not self.metric.startswith("forget_")
        higher = results["higher_is_better"].get(self.task, {}).get(self.metric, default)
        value = found["value"] or 0.0
        return (value if higher else -value), found.get("scores", {}).get(harness.MEAN, 0.0)


def best_line(output: Path) -> str | None:
    """Return a line about ``best/`` for the end of a run; None if the run was not scored while training."""
    path = output / BEST / "best.json"
    if not path.is_file():
        return None
    best = json.loads(path.read_text(encoding="utf-8"))
    return f"Best scores: step {best['step']}, kept in {output / BEST} ({_line(best['scores'])})."


def _line(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
