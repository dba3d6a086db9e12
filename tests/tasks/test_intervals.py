"""Intervals: against closed forms, by their coverage, and in the harness's results."""

import math
import random
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from lume_tasks.metrics import aggregate, attacks, intervals
from lume_tasks.metrics.aggregate import mean
from lume_tasks.tasks.generation import MAIN_METRICS
from lume_tasks.tasks.score import GENERATION_TASKS, lume_scores
from tests.tasks.conftest import numbers


def clopper_pearson(right: int, count: int) -> tuple[float, float]:
    low, high = binomtest(right, count).proportion_ci()
    return low, high


def all_or_nothing(known: int, documents: int, rows: int = 3, name: str = "") -> list[intervals.Item | None]:
    """Documents of which the model knows all rows or none, with rows that the metric leaves out."""
    items = [(f"{name}{i}-", float(i < known)) for i in range(documents) for _ in range(rows)]
    return [*items, None, (f"{name}0-", None)]


@pytest.mark.parametrize(("known", "documents"), [(0, 1), (0, 12), (3, 12), (12, 12), (0, 115), (40, 115)])
def test_interval_of_documents_known_whole_is_that_of_clopper_and_pearson(known: int, documents: int) -> None:
    items = all_or_nothing(known, documents)
    found = intervals.low(items), intervals.high(items)
    assert found == pytest.approx(clopper_pearson(known, documents), abs=0.01)
    assert found[0] <= known / documents <= found[1]


def test_weights_depend_on_the_documents_alone() -> None:
    rng = random.Random(2)
    items: list[intervals.Item | None] = [(f"{rng.randrange(9)}-", rng.random()) for _ in range(40)]
    assert intervals.low(rng.sample(items, len(items))) == intervals.low(items)
    # Another metric of the same documents has the same weights: half the score in every draw.
    half = [(item[0], item[1] / 2) for item in items if item and item[1] is not None]
    assert np.allclose(intervals.low(half).sums.scores, intervals.low(items).sums.scores / 2)
    other = [(f"x{item[0]}", item[1]) for item in items if item]
    assert not np.allclose(intervals.low(other).sums.scores, intervals.low(items).sums.scores)


@pytest.mark.parametrize("items", [[None], [("a", None), ("b", None)]])
def test_no_interval_without_documents(items: list[Any]) -> None:
    assert np.isnan([intervals.low(items), intervals.high(items)]).all()


def dependent_rows(rng: Any, share: float, documents: int, rows: int) -> list[intervals.Item]:
    """Rows of 0 and 1 whose probability differs between documents: two rows of one have a correlation of 0.5."""
    chances = rng.beta(share, 1 - share, documents)
    return [(f"{i}-", float(rng.random() < chance)) for i, chance in enumerate(chances) for _ in range(rows)]


@pytest.mark.parametrize("documents", [12, 34, 115])
@pytest.mark.parametrize("share", [0.01, 0.03, 0.1, 0.3])
def test_interval_of_a_mean_covers_the_truth(share: float, documents: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 draws of documents with one to five dependent rows each, or of texts of which few are known verbatim."""
    monkeypatch.setattr(intervals, "DRAWS", 1000)
    rng = np.random.default_rng(0)
    for kind in ("one", "five", "texts"):
        inside = 0
        for _ in range(100):
            items = dependent_rows(rng, share, documents, 5 if kind == "five" else 1)
            if kind == "texts":  # a mean of 0.1 share from the others
                items = [(stem, 1.0 if known else rng.beta(2, 38) * 2 * share) for stem, known in items]
            truth = share + (1 - share) * 0.1 * share if kind == "texts" else share
            low, high = intervals.bounds(tuple(items))
            inside += low <= truth <= high
        assert inside >= 92, (kind, inside)


def task_metrics(scores: dict[tuple[str, str], list[Any]]) -> dict[str, dict[str, Any]]:
    """What the harness hands to the group, for items a (task, number)."""
    values: dict[str, dict[str, Any]] = {}
    for (task, name), items in scores.items():
        values.setdefault(task, {})[f"{name},none"] = mean([item[1] for item in items if item])
        low, high = intervals.bounds(tuple(items))
        values[task] |= {f"{name}_low,none": low, f"{name}_high,none": high}
    return values


def test_overall_means_have_the_interval_of_all_documents_together() -> None:
    known = {"forget_regurgitation": (0, 0, 0), "retain_knowledge": (10, 12, 11), "forget_knowledge": (1, 0, 2)}
    items = {
        (task, name): all_or_nothing(counts[i], 12, name=f"{task}{name}")
        for name, counts in known.items()
        for i, task in enumerate(GENERATION_TASKS)
    }
    scores, _ = lume_scores(task_metrics(items))
    for name, counts in known.items():
        found = scores[f"{name}_low"], scores[f"{name}_high"]
        assert found == pytest.approx(clopper_pearson(sum(counts), 36), abs=0.01)


def test_interval_of_the_mia_score_is_that_of_the_auc_folded() -> None:
    assert intervals.mia_score(0.45, 0.6) == pytest.approx((0.8, 1.0))  # holds 0.5
    assert intervals.mia_score(0.6, 0.8) == pytest.approx((0.4, 0.8))
    assert intervals.mia_score(0.25, 0.45) == pytest.approx((0.5, 0.9))  # over-unlearned
    assert intervals.mia_score(1.0, 1.0) == (0.0, 0.0)


def test_final_score_adds_the_squared_distances_of_its_parts() -> None:
    # Far from an AUC of 0.5 the MIA score is 2 - 2 AUC: 0.4, from 0.3 to 0.6.
    low, high = intervals.final_score((0.5, 0.4, 0.6), (0.8, 0.7, 0.85), (0.3, 0.29, 0.31))
    assert low == pytest.approx(0.4 - math.sqrt(0.1**2 + 0.1**2 + 0.01**2) / 3)
    assert high == pytest.approx(0.4 + math.sqrt(0.1**2 + 0.2**2 + 0.01**2) / 3)


@pytest.mark.parametrize("auc", [0.5, 0.95])
def test_intervals_of_mia_score_and_final_score_cover_the_truth(auc: float) -> None:
    """In 100 draws of 150 members and 150 non-members, beside two parts with intervals that are right."""
    rng = np.random.default_rng(0)
    apart = NormalDist().inv_cdf(auc) * math.sqrt(2)
    truth = aggregate.mia_score(auc), aggregate.final_score(0.5, aggregate.mia_score(auc), 0.5)
    inside = [0, 0]
    for _ in range(100):
        scores = np.concatenate([rng.normal(apart, 1, 150), rng.normal(0, 1, 150)]).tolist()
        members = [True] * 150 + [False] * 150
        ends = intervals.percentiles(attacks.resampled_aucs(scores, members))
        tasks, mmlu = ((x, x - 1.96 * sd, x + 1.96 * sd) for sd in (0.025, 0.004) for x in [rng.normal(0.5, sd)])
        final = intervals.final_score(tasks, (attacks.auc(scores, members), *ends), mmlu)
        for number, (low, high) in enumerate((intervals.mia_score(*ends), final)):
            inside[number] += low <= truth[number] <= high
    assert all(90 <= count <= 99 for count in inside), inside


@pytest.mark.parametrize(("forget", "retain"), [(0.8, 0.3), (0.02, 0.95), (0.01, 0.1)])
def test_interval_of_the_task_aggregate_covers_the_truth(forget, retain, monkeypatch) -> None:
    """In 100 draws of twelve numbers, two of each 24 documents."""
    monkeypatch.setattr(intervals, "DRAWS", 1000)
    rng = np.random.default_rng(0)
    truth = aggregate.task_aggregate([forget] * 6, [retain] * 6)
    inside = 0
    for _ in range(100):
        items = {
            (task, f"{side}_{kind}"): dependent_rows(rng, share, 24, 1)
            for task in GENERATION_TASKS
            for side, share in (("forget", forget), ("retain", retain))
            for kind in ("regurgitation", "knowledge")
        }
        scores, _ = lume_scores(task_metrics(items))
        assert scores["task_aggregate_low"] <= scores["task_aggregate"] <= scores["task_aggregate_high"]
        inside += scores["task_aggregate_low"] <= truth <= scores["task_aggregate_high"]
    assert inside >= 92


def test_interval_of_the_task_aggregate_of_parts_that_move_alike() -> None:
    """Six groups of two equal numbers: each group moves the mean by a sixth of its own distance, near enough."""
    part = (0.5, 0.499, 0.502)
    low, high = intervals.task_aggregate([[part, part]] * 3, [[part, part]] * 3)
    below, above = (0.001**2 * 3 + 0.002**2 * 3) ** 0.5 / 6, (0.002**2 * 3 + 0.001**2 * 3) ** 0.5 / 6
    assert (0.5 - low, high - 0.5) == pytest.approx((below, above), rel=0.01)


def test_accuracy_has_the_interval_of_clopper_and_pearson() -> None:
    for right, count in ((0, 40), (13, 13), (100, 140)):
        assert intervals.accuracy(right, count) == pytest.approx(clopper_pearson(right, count), abs=1e-12)


@pytest.mark.usefixtures("whole_mmlu")
def test_intervals_in_the_harness(run: Any, fake_lm: Any) -> None:
    """Answers whose last word is right every other time: a number with a spread, beside numbers without."""
    lm = fake_lm(forget=lambda output: output if int(output.split()[-1]) % 2 else "zzz")
    results = run(lm, "lume")
    values, score = numbers(results, "lume_task1"), numbers(results, "lume_score")
    assert values["retain_knowledge_low"] < 0.5  # two documents say little
    assert values["retain_knowledge_high"] == 1.0
    low, number, high = (values[f"forget_regurgitation{end}"] for end in ("_low", "", "_high"))
    assert 0 <= low <= number <= high
    assert score["task_aggregate_low"] <= score["task_aggregate"] <= score["task_aggregate_high"]
    assert (score["mia_score_low"], score["mia_score_high"]) == (0.0, 0.0)
    assert (score["mmlu_low"], score["mmlu_high"]) == pytest.approx((0.025 ** (1 / 13), 1.0))
    assert score["final_score_low"] <= score["final_score"] <= score["final_score_high"]
    names = (*MAIN_METRICS, "task_aggregate", "mia_score", "mmlu", "final_score")
    assert set(score) == {f"{name}{end}" for name in names for end in ("", "_low", "_high")}
