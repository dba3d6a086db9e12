"""Forget quality and distances against a reference whose results the harness itself wrote."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM
from scipy.stats import ks_2samp

from lume_tasks.data.files import read_rows
from lume_tasks.data.rows import Row
from lume_tasks.data.source import Data
from lume_tasks.errors import DataError
from lume_tasks.tasks.generation import MAIN_METRICS
from lume_tasks.tasks.reference import distance, forget_quality
from lume_unlearn.scoring.score import Scores, save_results
from tests.conftest import write_rows
from tests.tasks.conftest import FakeLM, numbers

DISTANCES = {f"distance_{name}" for name in MAIN_METRICS}
MEMORIZATION = "lume_memorization_task1"


def store(results: Any, folder: Path) -> str:
    """Write results as the command line does."""
    save_results(Scores(results), folder, "reference")
    return str(folder)


def logged(results: Any, task: str, metric: str) -> list[float]:
    """The scores of the rows in the sample log."""
    return [sample[metric] for sample in results["samples"][task] if sample[metric] is not None]


def forgetful(every: int) -> Callable[[str], str]:
    """Gives the first two words of every so manieth answer, and nothing of the others."""
    return lambda output: output.rsplit(" ", 1)[0] if int(output.split()[-1]) // 7 % every == 0 else "zzz"


def test_p_value_by_hand() -> None:
    # Of the 20 equally likely ways to mix two threes, two keep them apart altogether: p = 0.1.
    apart = [(0.1, 0.7), (0.2, 0.8), (0.3, 0.9)]
    assert forget_quality([*apart, None]) == pytest.approx(0.1)
    assert forget_quality([(x, x) for x, _ in apart]) == 1.0


def test_distance_by_hand() -> None:
    assert distance([(1.0, 0.0), None, (0.5, 0.25)]) == 0.625
    assert distance([(0.0, 1.0), (1.0, 0.0)]) == 1.0  # rows do not cancel each other
    assert math.isnan(distance([None]))


@pytest.fixture(scope="module")
def reference(run: Any, fake_lm: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """Results of a model that knows the retain rows and less of the forget rows, and where they were written."""
    results = run(fake_lm(forget=forgetful(4)), "lume_task1", "lume_task2", MEMORIZATION)
    return results, store(results, tmp_path_factory.mktemp("reference"))


def test_numbers_against_the_reference(run: Any, fake_lm: Any, reference: tuple[Any, str]) -> None:
    theirs, path = reference
    for task in ("lume_task1", "lume_task2"):
        alone = run(fake_lm(), task)
        results = run(fake_lm(), task, metadata={"lume_reference_results": path})
        own, other = numbers(results, task), numbers(theirs, task)
        assert set(own) - set(numbers(alone, task)) == DISTANCES | {"forget_quality"}
        assert {name: own[name] for name in numbers(alone, task)} == numbers(alone, task)
        rows = {name: zip(*(logged(of, task, name) for of in (results, theirs)), strict=True) for name in MAIN_METRICS}
        for name, pairs in rows.items():
            assert own[f"distance_{name}"] == pytest.approx(fmean(abs(a - b) for a, b in pairs))
            assert own[f"distance_{name}"] >= abs(own[name] - other[name]) - 1e-12
        assert own["distance_retain_knowledge"] == 0.0
        assert own["distance_forget_knowledge"] == 1.0
        forget = [logged(of, task, "forget_regurgitation") for of in (results, theirs)]
        assert own["forget_quality"] == ks_2samp(*forget).pvalue


def test_memorization_compares_losses(run: Any, model_dir: Path, reference: tuple[Any, str], tmp_path: Path) -> None:
    theirs, path = reference
    lm = HFLM(pretrained=str(model_dir), device="cpu", batch_size=4)
    results = run(lm, MEMORIZATION, metadata={"lume_reference_results": path})
    losses = [logged(of, MEMORIZATION, "forget_loss") for of in (results, theirs)]
    own = numbers(results, MEMORIZATION)
    assert own["forget_quality"] == ks_2samp(*losses).pvalue < 0.05
    again = run(lm, MEMORIZATION, metadata={"lume_reference_results": store(results, tmp_path)})
    assert numbers(again, MEMORIZATION) == own | {"forget_quality": 1.0}


def test_reference_with_other_options_is_refused_by_name(run, manager, fake_lm, tmp_path, reference) -> None:
    metadata = {"lume_reference_results": reference[1], "lume_chat": False}  # bare prompts in any case
    run(fake_lm(), "lume_task1", MEMORIZATION, metadata=metadata)
    with pytest.raises(DataError, match=r"has lume_task1 with max_gen_toks=256 \(in this run 8\); score both"):
        run(fake_lm(), "lume_task1", metadata=metadata, gen_kwargs={"max_gen_toks": 8})
    short = metadata | {"lume_short_answers": True, "lume_gen_kwargs": True}
    with pytest.raises(DataError, match=r"has lume_task1 with lume_short_answers=False \(in this run True\)"):
        run(fake_lm(), "lume_task1", metadata=short)
    rows = [Row("a-qa0", "Who?", "Ada", "own")]
    given = {"lume_data": Data(rows, []), "lume_chat": False}
    right = FakeLM(lambda _: "Ada", lambda *_: -1.0)
    path = store(run(right, "lume_rows", metadata=given), tmp_path)
    assert numbers(run(right, "lume_rows", metadata=given | {"lume_reference_results": path}), "lume_rows")
    with pytest.raises(DataError, match=r"has lume_rows with lume_chat=False \(in this run True\)"):
        run(right, "lume_rows", metadata=given | {"lume_reference_results": path, "lume_chat": True})


def test_reference_of_other_rows_is_refused(manager, data_dir, tmp_path, reference) -> None:
    # One id with another answer, and one row that the reference never saw.
    rows = read_rows(data_dir / "forget.jsonl")
    rows[0] = replace(rows[0], output="something else")
    write_rows(tmp_path / "forget.jsonl", [*rows, Row("new-qa0", "New?", "7", "Task1")])
    write_rows(tmp_path / "retain.jsonl", read_rows(data_dir / "retain.jsonl"))
    metadata = {"lume_reference_results": reference[1], "lume_data_dir": str(tmp_path)}
    for task in ("lume_task1", MEMORIZATION):
        with pytest.raises(DataError, match=f'{task} for 2 of 9 documents, the first being row "forget-0-sc1"'):
            manager(metadata).load([task])
