"""An evaluation that was stopped continues from the harness's cache, with the scores of an uninterrupted one."""

import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM

from lume_tasks.data.source import load_data
from lume_tasks.models.hf import LumeHF
from lume_unlearn.model.load import load_tokenizer
from lume_unlearn.scoring.score import evaluate as simple_evaluate
from lume_unlearn.scoring.score import task_manager

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]


class Stopped(BaseException):
    """Stands for KeyboardInterrupt, which pytest would take for its own."""


def evaluate(
    model_class: type[HFLM],
    tasks: tuple[str, ...],
    model_dir: Path,
    data_dir: Path,
    cache: Path | None,
    stop_at: int = -1,
) -> tuple[str, int]:
    """Score a model with batch size 1; raise `Stopped` at forward pass number ``stop_at``.

    Returns:
        The scores and samples as JSON, and the number of forward passes.
    """
    lm = model_class(pretrained=str(model_dir), device="cpu", batch_size=1, dtype="float32")
    calls, forward = 0, lm.model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if calls == stop_at:
            raise Stopped
        calls += 1
        return forward(*args, **kwargs)

    lm.model.forward = counted
    tokenizer, data = load_tokenizer(str(model_dir)), load_data(data_dir)
    manager = task_manager(tokenizer, data, tasks, metadata={"lume_gen_kwargs": True})
    options = {"use_cache": str(cache) if cache else None, "gen_kwargs": "max_gen_toks=6"}
    results = simple_evaluate(lm, tasks, manager, **options)
    return json.dumps([results["results"], results["samples"]], default=str, sort_keys=True), calls


@pytest.mark.parametrize(
    ("model_class", "tasks"), [(HFLM, ("lume",)), (LumeHF, ("lume", "lume_memorization_task1"))], ids=["hf", "lume-hf"]
)
def test_stopped_evaluation_continues_to_the_same_scores(model_class, tasks, model_dir, data_dir, tmp_path):
    scores, calls = evaluate(model_class, tasks, model_dir, data_dir, None)
    for stop_at in (calls // 4, calls - 20):  # among the generations, and among the log-likelihoods
        cache = tmp_path / f"cache{stop_at}"
        with pytest.raises(Stopped):
            evaluate(model_class, tasks, model_dir, data_dir, cache, stop_at)
        resumed, rest = evaluate(model_class, tasks, model_dir, data_dir, cache)
        assert resumed == scores
        assert calls - stop_at <= rest <= calls - stop_at + 6  # the tokens of the interrupted row are generated again
