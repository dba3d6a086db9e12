"""Scoring timed side by side: the harness's `hf` one prompt at a time, and `lume-hf` with the batch size it finds."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lume_unlearn.benchmark_training import free_memory
from lume_unlearn.scoring import data_metadata, score


class Generations:
    """Notes what a model object of the harness generates, and how long that takes."""

    def __init__(self, lm: Any) -> None:
        """``lm``: its `generate_until` is replaced by one that takes notes."""
        self.lm, self._generate = lm, lm.generate_until
        self.seconds = 0.0
        self.answers: list[str] = []
        lm.generate_until = self._noted

    def _noted(self, requests: Sequence[Any], **kwargs: Any) -> list[str]:
        start = time.perf_counter()
        self.answers = self._generate(requests, **kwargs)
        self.seconds = time.perf_counter() - start
        return self.answers


def compare_scoring(
    model: str, data: Path, tasks: Sequence[str], prompts: int, options: dict[str, Any]
) -> dict[str, Any]:
    """Generate the answers to the same prompts both ways, through the tasks.

    Only generation is timed: reading the rows and computing the scores take the same time either way.

    Args:
        model: folder or hub name.
        data: data directory.
        tasks: those of which the directory has rows.
        prompts: how many, the first ones of each task in equal shares.
        options: of both models: ``dtype``, ``device``.

    Returns:
        ``prompts``, ``ratio`` (ours to usual), ``same_answers`` (share of prompts answered alike; rounding differs
        between batch sizes), and for each way ``seconds`` and ``prompts_per_second``.
    """
    ways = {way: _generated(way, model, data, tasks, prompts, options) for way in ("usual", "ours")}
    usual, ours = ways["usual"], ways["ours"]
    alike = sum(a == b for a, b in zip(usual.answers, ours.answers, strict=True)) / len(usual.answers)
    result: dict[str, Any] = {
        "prompts": len(usual.answers),
        "ratio": usual.seconds / ours.seconds,
        "same_answers": alike,
    }
    return result | {
        way: {"seconds": found.seconds, "prompts_per_second": len(found.answers) / found.seconds}
        for way, found in ways.items()
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
