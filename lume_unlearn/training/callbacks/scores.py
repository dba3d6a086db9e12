"""Score the model during training, with the same `score` as afterwards, and keep the best weights."""

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from lume_unlearn.checks import names
from lume_unlearn.errors import ConfigError, log
from lume_unlearn.files import fresh_partial, write_text, writing
from lume_unlearn.model.masters import float32_weights
from lume_unlearn.scoring.score import MEAN, Scores, as_data, score, task_manager, tasks_for
from lume_unlearn.training.arguments import UnlearningArguments

if TYPE_CHECKING:
    from lume_unlearn.training.trainer import UnlearningTrainer


SCORES, BEST, RESULTS = "scores", "best", "results_lume.json"
DEFAULT_METRIC = "lume_score.task_aggregate"
"""It has no value if the data lacks a task; then the mean of the task scores decides alone."""


class BestScores(TrainerCallback):
    """Writes the harness's scores to ``scores/checkpoint-<step>/`` and the weights of the best ones to ``best/``.

    One process scores and the others wait, so each process must hold the whole model (one device, or DDP).
    `lume-unlearn report` shows the scores over time.
    """

    def __init__(
        self, trainer: "UnlearningTrainer", args: UnlearningArguments, data: Any, metric: str | None = None
    ) -> None:
        """Choose the tasks, and load them once before training, to find those that cannot be scored.

        Args:
            trainer: its model is scored.
            args: arguments of the training.
            data: see `score`.
            metric: "TASK.METRIC" that selects the best weights. Equal values are ordered by the mean of the task
                scores (forget scores as 1 - score), then by the later step.

        Raises:
            ConfigError: a task or metric is unknown, or the data has nothing for it.
            DataError: the data of a task is faulty.
        """
        self.trainer, self.data = trainer, as_data(data)
        self.metric, self.shown = metric or DEFAULT_METRIC, metric is not None
        self.best: dict[str, Any] | None = None
        there = [task for task in tasks_for(self.data) if task != "lume_mmlu"]
        self.tasks = names(args.evaluate_tasks) or there
        self.task, _, self.name = self.metric.partition(".")
        if metric is None and self.task not in self.tasks:
            raise ConfigError(
                f"--evaluate_tasks: lacks {self.task}, which selects the best weights; add it, or name another with "
                "--metric_for_best_model TASK.METRIC"
            )
        if self.task not in self.tasks or not self.name:
            raise ConfigError(
                f"--metric_for_best_model {self.metric}: must be TASK.METRIC with a task that is scored; these are "
                f"{', '.join(self.tasks)} (--evaluate_tasks)"
            )
        task_manager(trainer.encode.tokenizer, self.data, self.tasks, args.chat).load(self.tasks)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Restore the best scores of a resumed run, and score the epoch that it ended without scoring."""
        best = Path(args.output_dir) / BEST / "best.json"
        if state.global_step and best.is_file():
            self.best = json.loads(best.read_text(encoding="utf-8"))
        missed = args.eval_strategy == "epoch" and float(state.epoch or 0).is_integer()
        if state.global_step and missed and not (self._folder(state.global_step) / RESULTS).is_file():
            self.trainer._determine_best_metric(self.trainer.evaluate(), None)

    def evaluate(self, model: Any, step: int) -> dict[str, float]:
        """Score in the first process, print and keep the scores, and return the main ones.

        A failure is logged as a warning, so that training continues.
        """
        found: dict[str, float] = {}
        if PartialState().is_main_process:
            try:
                scores = self._score(getattr(model, "module", model))
            except Exception as error:  # of the harness, a task or the GPU: training can continue
                advice = "training continues and the model will be saved: score it afterwards"
                log.warning("step %d: scoring failed (%s: %s); %s", step, type(error).__name__, error, advice)
            else:
                found = self._kept(scores, model, step)
        args = self.trainer.args  # a callback of any process may end the training by the scores
        found, args.greater_is_better = broadcast_object_list([found, args.greater_is_better])
        return found

    def _score(self, model: Any) -> Scores:
        args, tokenizer = self.trainer.args, self.trainer.encode.tokenizer
        size = args.per_device_eval_batch_size
        return score(model, tokenizer, self.data, tasks=self.tasks, chat=args.chat, batch_size=size)

    def _kept(self, scores: Scores, model: Any, step: int) -> dict[str, float]:
        """Print the scores and save them, with the weights if they are the best; return the main ones."""
        value, shown = scores.metric(self.task, self.name), scores.headline()
        if value is not None and self.shown:
            shown = {self.metric: value} | shown
        self.trainer.args.greater_is_better = self._higher(scores)
        print(f"step {step}: {_line(shown)}", flush=True)
        found = {"metric": self.metric, "value": value, "step": step, "scores": shown}
        try:
            with writing(Path(str(self.trainer.args.output_dir))):
                self._keep(scores, found, model)
        except ConfigError as error:
            log.warning("step %d: its scores could not be saved; training continues: %s", step, error)
        return shown

    def _keep(self, scores: Scores, found: dict[str, Any], model: Any) -> None:
        """Save the weights if they are the best, then the scores, whose file marks the step as scored."""
        by_mean = self.metric == DEFAULT_METRIC and MEAN in found["scores"]
        if found["value"] is None and not by_mean:
            log.warning("step %d: %s has no value, so it cannot be the best", found["step"], self.metric)
        elif self.best is None or self._rank(scores, found) >= self._rank(scores, self.best):
            self._keep_weights(model, found)
            self.best = found
        folder = self._folder(found["step"])
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / RESULTS, json.dumps(scores.results, indent=1, default=str) + "\n")

    def _keep_weights(self, model: Any, found: dict[str, Any]) -> None:
        """Replace ``best/``; a process that dies meanwhile leaves the old one, the new one, or none."""
        output = Path(str(self.trainer.args.output_dir))
        partial = fresh_partial(output)
        with float32_weights(model):
            model.save_pretrained(partial / BEST)
        self.trainer.encode.tokenizer.save_pretrained(partial / BEST)
        write_text(partial / BEST / "best.json", json.dumps(found, indent=1) + "\n")
        if (output / BEST).exists():
            os.replace(output / BEST, partial / "replaced")
        os.replace(partial / BEST, output / BEST)
        shutil.rmtree(partial)

    def _folder(self, step: int) -> Path:
        return Path(str(self.trainer.args.output_dir)) / SCORES / f"checkpoint-{step}"

    def _rank(self, scores: Scores, found: dict[str, Any]) -> tuple[float, float]:
        """Return a key that is higher for better scores: metric, then the mean of the task scores."""
        value = found["value"] or 0.0
        return (value if self._higher(scores) else -value), found.get("scores", {}).get(MEAN, 0.0)

    def _higher(self, scores: Scores) -> bool:
        """Return whether higher values of the metric are better."""
        default = not self.name.startswith("forget_")
        return bool(scores.results["higher_is_better"].get(self.task, {}).get(self.name, default))


def best_line(output: Path) -> str | None:
    """Return a line about ``best/`` for the end of a run; None if the run was not scored while training."""
    path = output / BEST / "best.json"
    if not path.is_file():
        return None
    best = json.loads(path.read_text(encoding="utf-8"))
    return f"Best scores: step {best['step']}, kept in {output / BEST} ({_line(best['scores'])})."


def _line(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
