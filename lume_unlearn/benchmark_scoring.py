"""Scoring timed side by side: the harness's `hf` one prompt at a time, and `lume-hf` with the batch size it finds."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lume_unlearn import unlearning
from lume_unlearn.benchmark_training import free_memory
from lume_unlearn.config import RunConfig
from lume_unlearn.scoring import data_metadata, score


class Generations:
    """Notes what a model object of the harness generates, and how long that takes."""

    def __init__(self, lm: Any) -> None:
        """``lm``: its `generate_until` is replaced by one that takes notes."""
        self.lm, self._generate = lm, lm.generate_until
        self.seconds = 0.0
        self.answers: dict[str, str] = {}
        """By prompt."""
        lm.generate_until = self._noted

    def _noted(self, requests: Sequence[Any], **kwargs: Any) -> list[str]:
        start = time.perf_counter()
        answers: list[str] = self._generate(requests, **kwargs)
        self.seconds = time.perf_counter() - start
        self.answers = {request.args[0]: answer for request, answer in zip(requests, answers, strict=True)}
        return answers


def compare_scoring(
    model: str, data: Path, tasks: Sequence[str], prompts: dict[str, int], options: dict[str, Any]
) -> dict[str, Any]:
    """Generate the answers to the same prompts both ways (or to fewer of them the usual way), through the tasks.

    Only generation is timed: reading the rows and computing the scores take the same time either way.

    Args:
        model: folder or hub name.
        data: data directory.
        tasks: those of which the directory has rows.
        prompts: how many each way, the first ones of each task in equal shares.
        options: of both models: ``dtype``, ``device``.

    Returns:
        ``ratio`` (of the prompts a second, ours to usual), ``same_answers`` (share of the prompts of both ways that
        were answered alike; rounding differs between batch sizes), and for each way ``prompts``, ``seconds`` and
        ``prompts_per_second``.
    """
    ways = {way: _generated(way, model, data, tasks, prompts[way], options) for way in ("usual", "ours")}
    usual, ours = (found.answers for found in ways.values())
    figures = {
        way: {
            "prompts": len(found.answers),
            "seconds": found.seconds,
            "prompts_per_second": len(found.answers) / found.seconds,
        }
        for way, found in ways.items()
    }
    return {
        "ratio": figures["ours"]["prompts_per_second"] / figures["usual"]["prompts_per_second"],
        "same_answers": sum(ours[prompt] == answer for prompt, answer in usual.items()) / len(usual),
        **figures,
    }


def time_whole(run: RunConfig, tasks: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
    """A whole run, from rows to the saved model, and then the scoring of all prompts of the tasks; wall-clock seconds.

    Args:
        run: with its data directory.
        tasks: those of which the directory has rows.
        options: of the scored model: ``dtype``, ``device``.

    Returns:
        ``method``, ``tuning``, ``run_seconds``, ``prompts``, ``generation_seconds``, and ``scoring_seconds``, the same
        with loading, reading rows and computing scores.
    """
    from lume_tasks.lume_hf import LumeHF

    assert run.data is not None
    start = time.perf_counter()
    unlearning.run(run)
    trained = time.perf_counter()
    free_memory()
    model = {"pretrained": run.model, "peft": run.output} if run.tuning == "lora" else {"pretrained": run.output}
    found = Generations(LumeHF(batch_size="auto", **(options | model)))
    score(found.lm, data_metadata(Path(run.data)), tuple(tasks), limit=None)
    return {
        "method": run.method,
        "tuning": run.tuning,
        "run_seconds": trained - start,
        "prompts": len(found.answers),
        "generation_seconds": found.seconds,
        "scoring_seconds": time.perf_counter() - trained,
    }


def _generated(
    way: str, model: str, data: Path, tasks: Sequence[str], prompts: int, options: dict[str, Any]
) -> Generations:
    """One way's answers, after a first prompt of each task that does not count."""
    from lm_eval.models.huggingface import HFLM

    from lume_tasks.lume_hf import LumeHF

    if way == "usual":
        lm = HFLM(pretrained=model, batch_size=1, **options)
    else:
        lm = LumeHF(pretrained=model, batch_size="auto", **options)
    found = Generations(lm)
    for limit in (1, -(-prompts // len(tasks))):
        score(lm, data_metadata(data), tuple(tasks), limit=limit)
    found.lm = None
    free_memory()
    return found
