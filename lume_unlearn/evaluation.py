"""Scores while training, through the same tasks as afterwards, and the best weights so far."""

import json
import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lume_tasks import data as lume_data
from lume_unlearn import scoring
from lume_unlearn.checkpoints import fresh_partial, writing
from lume_unlearn.config import RunConfig
from lume_unlearn.forward import evaluating
from lume_unlearn.whole import write_text

_log = logging.getLogger("lume_unlearn")

SCORES = "scores"
BEST = "best"
ASIDE = "best.old"
RESULTS = "results_lume.json"


class Evaluation(TrainerCallback):
    """After each epoch: the harness's scores in ``scores/checkpoint-<step>/``, and the best weights in ``best/``.

    One process scores and the others wait; each of them must hold the whole model, as it does on one device and under
    DDP. The results files are the harness's own, so that `lume-unlearn report` shows the scores over time.
    """

    def __init__(self, config: RunConfig, tokenizer: Any) -> None:
        """Take the tasks and the metric from the configuration, which has checked them."""
        self.config, self.tokenizer = config, tokenizer
        self.task, _, self.metric = config.best_metric.partition(".")
        self.best: dict[str, Any] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """A resumed run goes on from the best weights so far, and scores first where it ended before it could."""
        output = Path(self.config.output)
        # It may have ended between moving the old ones aside and taking them away.
        if state.is_world_process_zero and (aside := output / ASIDE).is_dir():
            if (output / BEST).exists():
                shutil.rmtree(aside)
            else:
                os.replace(aside, output / BEST)
        if state.global_step and (kept := output / BEST / "best.json").is_file():
            self.best = json.loads(kept.read_text(encoding="utf-8"))
        if state.global_step and float(state.epoch or 0).is_integer():
            self._score_and_keep(model, state.global_step, again=False)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Score on the main process."""
        self._score_and_keep(model, state.global_step)

    def _score_and_keep(self, model: Any, step: int, again: bool = True) -> None:
        processes = PartialState()
        done = (Path(self.config.output) / SCORES / f"checkpoint-{step}" / RESULTS).is_file()
        if processes.is_main_process and (again or not done):
            unwrapped = getattr(model, "module", model)
            with evaluating(unwrapped):
                results = self._score(unwrapped)
            self._keep(results, unwrapped, step)
        processes.wait_for_everyone()

    def _score(self, model: Any) -> dict[str, Any]:
        from lm_eval.models.huggingface import HFLM

        lm = HFLM(pretrained=model, tokenizer=self.tokenizer, batch_size=self.config.evaluate_batch_size)
        directory = lume_data.data_dir(self.config.data)
        metadata = scoring.data_metadata(directory, self.config.split) | {"tokenizer": self.tokenizer}
        # No seeds: scoring draws nothing, and the training's own random state must go on as it is.
        seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"))
        return scoring.score(lm, metadata, tuple(self.config.scored_tasks), limit=self.config.evaluate_limit, **seeds)

    def _keep(self, results: dict[str, Any], model: Any, step: int) -> None:
        """Keep the weights if they are the best, then the scores: with those a step counts as done."""
        value = results["results"].get(self.task, {}).get(f"{self.metric},none")
        if value is None or math.isnan(value):
            _log.warning("step %d: %s has no value, so it cannot be the best", step, self.config.best_metric)
        elif self.best is None or self._better(results, value, self.best["value"]):
            self.best = {"metric": self.config.best_metric, "value": float(value), "step": step}
            self._keep_weights(model)
        output = Path(self.config.output)
        folder = output / SCORES / f"checkpoint-{step}"
        with writing(output):
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / RESULTS, json.dumps(results, indent=1, default=str) + "\n")

    def _keep_weights(self, model: Any) -> None:
        output = Path(self.config.output)
        with writing(output):
            best = fresh_partial(output)
            model.save_pretrained(best)
            self.tokenizer.save_pretrained(best)
            (best / "best.json").write_text(json.dumps(self.best, indent=1) + "\n", encoding="utf-8")
            shutil.rmtree(output / ASIDE, ignore_errors=True)
            if (output / BEST).exists():
                os.replace(output / BEST, output / ASIDE)
            os.replace(best, output / BEST)
            shutil.rmtree(output / ASIDE, ignore_errors=True)

    def _better(self, results: dict[str, Any], value: float, than: float) -> bool:
        """By the task's own word; `lume_score`, which has none, wants only its forget scores low."""
        default = not self.metric.startswith("forget_")
        higher = results["higher_is_better"].get(self.task, {}).get(self.metric, default)
        return value > than if higher else value < than
