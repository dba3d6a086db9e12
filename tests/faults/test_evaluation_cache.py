"""An interrupted evaluation continues from its cache and gives the scores of an uninterrupted one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from lume_tasks.models.hf import LumeHF
from lume_tasks.paths import task_dir

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]

MODELS = {"hf": (HFLM, ["lume"]), "lume-hf": (LumeHF, ["lume", "lume_memorization_task1"])}


class CutOff(BaseException):
    """Ends an evaluation as a pressed key does: nothing on the way catches it."""


def cut() -> None:
    raise CutOff


def evaluate(model: str, folders: tuple[Path, Path], cache: Path | None, calls: int, stop: Callable[[], None]) -> Any:
    """Score a model of a folder on a data directory; ``stop`` is called when the model was called so many times.

    Returns:
        The scores and samples as JSON, and how often the model was called. The batch size is 1: a model's numbers
        depend on their batch in the last digits, and after a cut the batches are others.
    """
    make, tasks = MODELS[model]
    model_dir, data_dir = folders
    lm = make(pretrained=str(model_dir), device="cpu", batch_size=1, dtype="float32")
    done, forward = 0, lm.model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal done
        if done == calls:
            stop()
        done += 1
        return forward(*args, **kwargs)

    lm.model.forward = counted
    metadata = {"lume_data_dir": str(data_dir), "lume_mmlu_path": str(data_dir / "mmlu"), "tokenizer": str(model_dir)}
    metadata["lume_gen_kwargs"] = True  # type: ignore[assignment]
    results = simple_evaluate(
        lm,
        tasks=tasks,
        task_manager=TaskManager(include_path=str(task_dir()), include_defaults=False, metadata=metadata),
        bootstrap_iters=0,
        use_cache=str(cache) if cache else None,
        gen_kwargs="max_gen_toks=6",
    )
    return json.dumps([results["results"], results["samples"]], default=str, sort_keys=True), done


@pytest.fixture(scope="module")
def whole(model_dir: Path, data_dir: Path) -> dict[str, tuple[str, int]]:
    """What an uninterrupted evaluation gives, without a cache."""
    return {model: evaluate(model, (model_dir, data_dir), None, -1, cut) for model in MODELS}


@pytest.mark.parametrize("model", MODELS)
def test_an_interrupted_evaluation_continues_to_the_same_scores(
    model: str, model_dir: Path, data_dir: Path, tmp_path: Path, whole: dict[str, tuple[str, int]]
) -> None:
    """Cut among the generations, and among the log-likelihoods."""
    folders, (scores, calls) = (model_dir, data_dir), whole[model]
    for at in (calls // 4, calls - 20):
        cache = tmp_path / f"cache{at}"
        with pytest.raises(CutOff):
            evaluate(model, folders, cache, at, cut)
        again, rest = evaluate(model, folders, cache, -1, cut)
        assert again == scores
        assert calls - at <= rest <= calls - at + 6  # of a row that was cut, all tokens are generated again
        assert evaluate(model, folders, cache, 0, cut) == (scores, 0)  # all is there
