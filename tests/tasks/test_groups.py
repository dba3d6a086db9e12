"""MMLU and the final score: against the stock task, against hand computation, and in the harness's own output."""

import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import make_table

from lume_tasks.data.locate import MMLU_SUBJECTS
from lume_tasks.metrics.aggregate import mean
from lume_tasks.tasks.generation import MAIN_METRICS
from lume_tasks.tasks.mmlu import SubjectTask
from lume_tasks.tasks.score import GENERATION_TASKS, lume_scores
from tests.tasks.conftest import numbers

STOCK_MMLU = Path(lm_eval.tasks.__file__).parent / "mmlu" / "default"
PARTS = (*GENERATION_TASKS, "lume_mia", "lume_mmlu")
GENERATION_PARTS = [f"{task} (5 of 8)" for task in GENERATION_TASKS]
ROWS = [
    {"question": "  What {{is}} 1 + 1?\n", "choices": ["1", " 2", "three ", "{{4}}"], "answer": 1},
    {"question": "Statement 1 | Statement 2", "choices": ["True, True", "False, False", "É", ""], "answer": 3},
    {"question": "7", "choices": ["A", "B", "C", "D"], "answer": 0},
]


def lume_score(results: Mapping[str, Any]) -> dict[str, Any]:
    """The scores without their intervals."""
    scores = numbers(results, "lume_score").items()
    return {key: value for key, value in scores if not key.endswith(("_low", "_high"))}


@pytest.mark.parametrize("subject", MMLU_SUBJECTS)
def test_template_is_the_stock_one(subject: str) -> None:
    from datasets import Dataset

    own = SubjectTask(subject, ROWS, 1.0)
    config = load_yaml(STOCK_MMLU / f"mmlu_{subject}.yaml") | {"num_fewshot": 0, "dataset_path": None}
    config.pop("tag")
    rows = {"test": Dataset.from_list(ROWS), "dev": Dataset.from_list(ROWS)}
    stock = ConfigurableTask(config=config | {"custom_dataset": lambda **_: rows})
    requests = []
    for task in (own, stock):
        task.build_all_requests()
        requests.append([(r.args, r.doc_id, r.idx, task.doc_to_target(r.doc)) for r in task.instances])
    assert requests[0] == requests[1]
    assert own.config.task_alias == stock.config.task_alias == subject
    assert own.task_name == f"lume_{stock.task_name}"
    assert own.aggregation() == stock.aggregation()


def test_micro_average(run: Any, fake_lm: Any) -> None:
    """Eight questions of one subject right, five of the other wrong: 8/13, not the mean of the subjects."""
    lm = fake_lm()
    lm.score = partial(lambda score, context, choice: score(context, choice) * (-1) ** ("letters" in context), lm.score)
    results = run(lm, "lume_mmlu", "lume_score")
    assert results["results"]["lume_mmlu"]["acc,none"] == pytest.approx(8 / 13, abs=1e-15)
    assert lume_score(results)["mmlu"] == pytest.approx(8 / 13, abs=1e-15)


@pytest.mark.usefixtures("whole_mmlu")
def test_scores_are_those_worked_out_by_hand(run: Any, fake_lm: Any) -> None:
    # Forget answers ("answer forget 7") lack their last word: recall 2/3, no exact match. Aggregate: the harmonic mean
    # of three times 1/3 and nine times 1, 12 / (3 * 3 + 9). Nothing tells members apart; MMLU is all right.
    lm = fake_lm(forget=lambda output: output.rsplit(" ", 1)[0], auc=0.5)
    results = run(lm, "lume")
    wanted = dict(zip(MAIN_METRICS, (2 / 3, 0.0, 1.0, 1.0), strict=True))
    wanted |= {"task_aggregate": 2 / 3, "mia_score": 1.0, "mmlu": 1.0, "final_score": (2 / 3 + 1 + 1) / 3}
    assert lume_score(results) == pytest.approx(wanted, abs=1e-12)
    assert lume_score({"results": results["groups"]}) == lume_score(results)
    assert lume_score({"results": json.loads(json.dumps(results["results"]))}) == lume_score(results)
    for table in (make_table(results), make_table(results, "groups")):
        row = next(line for line in table.splitlines() if "|final_score" in line)
        assert f"{8 / 9:.4f}" in row


@pytest.mark.usefixtures("whole_mmlu")
@pytest.mark.parametrize(
    ("tasks", "missing", "there"),
    [
        ((), PARTS, set()),
        (PARTS[:4], ("lume_mmlu",), {*MAIN_METRICS, "task_aggregate", "mia_score"}),
        (("lume_task2", "lume_mmlu"), ("lume_task1", "lume_task3", "lume_mia"), {*MAIN_METRICS, "mmlu"}),
    ],
)
def test_missing_parts_are_named_and_no_final_score_is_made_up(run, fake_lm, tasks, missing, there, caplog):
    with caplog.at_level(logging.WARNING, "lume_tasks"):
        results = run(fake_lm(), *tasks, "lume_score")
    scores = lume_score(results)
    assert scores.pop("missing") == "; ".join(missing)
    assert set(scores) == there
    assert "; ".join(missing) in caplog.text
    assert "missing" in make_table(results)


def test_parts_without_a_value_are_named(run, fake_lm):
    scores = lume_score(run(fake_lm(), "lume", limit=1))
    missing = scores.pop("missing").split("; ")
    assert scores == {"forget_regurgitation": 1.0, "mmlu": 1.0}
    assert "lume_task1 (no value for forget_knowledge, retain_regurgitation, retain_knowledge)" in missing
    assert {"lume_mia (no value for mia_score)", "lume_mmlu (2 of 14,042)"} <= set(missing)


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"limit": 5}, [*GENERATION_PARTS, "lume_mia (5 of 16)", "lume_mmlu (10 of 14,042)"]),
        ({"samples": {"lume_task2": [0, 1, 2, 3]}}, ["lume_task2 (4 of 8)", "lume_mmlu (13 of 14,042)"]),
    ],
)
def test_scores_of_a_part_of_the_documents_have_no_final_score(run, fake_lm, options, missing, partial):
    scores = lume_score(run(fake_lm(auc=0.5), "lume", metadata={"lume_partial": partial}, **options))
    assert scores.pop("missing") == "; ".join(missing)
    final = ["partial_final_score"] if partial else []
    assert set(scores) == {*MAIN_METRICS, "task_aggregate", "mia_score", "mmlu", *final}


@pytest.mark.parametrize("subjects", ["letters, high_school_counting", ["high_school_counting", "letters"]])
def test_mmlu_is_limited_by_itself(run, fake_lm, subjects):
    results = run(fake_lm(), "lume", metadata={"lume_mmlu_limit": 6, "lume_mmlu_subjects": subjects})
    counts = {task: count["effective"] for task, count in results["n-samples"].items()}
    assert [counts.pop(f"lume_mmlu_{subject}") for subject in ("high_school_counting", "letters")] == [6, 5]
    assert counts == {**dict.fromkeys(GENERATION_TASKS, 8), "lume_mia": 16}
    assert lume_score(results)["missing"] == "lume_mmlu (11 of 14,042)"


def test_scores_of_the_official_script() -> None:
    """What the benchmark's own script says of a retain-only model on the validation split, and how many rows it had."""
    regurgitation = {  # task: (forget score, its sc and qa rows, retain's sc and qa rows)
        "lume_task1": (0.11460169636829072, 24, 24, 27, 27),
        "lume_task2": (0.4573558380055387, 23, 115, 25, 125),
        "lume_task3": (0.11886610475287396, 34, 34, 37, 37),
    }
    task_metrics: dict[str, dict[str, Any]] = {}
    for task, (forget, *counts) in regurgitation.items():
        values = zip(MAIN_METRICS, (forget, 0.0, 1.0, 1.0), counts, strict=True)
        task_metrics[task] = {f"{name},none": mean([value] * count) for name, value, count in values}
    auc = 0.4459111111111111
    task_metrics["lume_mia"] = {"loss_auc,none": auc, "mia_score,none": 1 - 2 * abs(auc - 0.5)}
    task_metrics |= {f"lume_mmlu_{i}": {"acc,none": 0.25, "sample_len": 246} for i in range(56)}
    task_metrics["lume_mmlu_56"] = {"acc,none": 0.5, "sample_len": 266}
    scores, missing = lume_scores(task_metrics)
    assert missing == {}
    mmlu = (0.25 * 56 * 246 + 0.5 * 266) / 14_042
    assert scores.pop("mmlu_low") < mmlu < scores.pop("mmlu_high")  # from counts; the others need resamples
    aggregate = 12 / (9 + sum(1 / (1 - forget) for forget, *_ in regurgitation.values()))
    overall = 0.213716945044001  # the script's own mean of forget_regurgitation
    wanted = dict(zip(MAIN_METRICS, (overall, 0.0, 1.0, 1.0), strict=True))
    wanted |= {"task_aggregate": aggregate, "mia_score": 0.8918222222222222, "mmlu": mmlu}
    assert scores == pytest.approx(wanted | {"final_score": (aggregate + 0.8918222222222222 + mmlu) / 3}, abs=1e-12)
    scores, missing = lume_scores(task_metrics | {"lume_rows": {}})  # rows of one's own beside them
    assert scores.keys() & {"task_aggregate", "final_score"} == set()
    assert missing == {"lume_rows": "its rows are no part of LUME; run the others without it"}


def test_predict_only_computes_no_score(run: Any, fake_lm: Any) -> None:
    assert lume_score(run(fake_lm(), "lume", predict_only=True)) == {"missing": "; ".join(PARTS)}
