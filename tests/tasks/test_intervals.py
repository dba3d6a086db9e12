"""Intervals against plain resampling, and what the harness makes of them."""

import math
import random
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from lume_tasks.metrics import aggregate, attacks, bootstrap
from lume_tasks.metrics.aggregate import mean
from lume_tasks.tasks.generation import MAIN_METRICS
from lume_tasks.tasks.score import GENERATION_TASKS, lume_scores

SIDES = ("forget", "retain")


def documents(seed: int, count: int = 12) -> list[bootstrap.Item]:
    """Items of documents of one to five rows, some of whose rows the metric leaves out."""
    rng = random.Random(seed)
    items: list[bootstrap.Item] = []
    for number in range(count):
        rows = [rng.choice([0.0, 0.25, 1.0, rng.random()]) for _ in range(rng.randint(1, 5))]
        items += [(f"{seed}-{number}-", row) for row in rows] + [(f"{seed}-{number}-", None)] * rng.randint(0, 2)
    return items


def rows_by_stem(items: list[bootstrap.Item]) -> dict[str, list[float]]:
    rows: dict[str, list[float]] = {stem: [] for stem in sorted({stem for stem, _ in items})}
    for stem, score in items:
        if score is not None:
            rows[stem].append(score)
    return rows


def resampled_rows(items: list[bootstrap.Item]) -> list[list[float]]:
    """The rows of each resample, put together document by document from the same draws."""
    rows = rows_by_stem(items)
    stems = list(rows)
    return [[row for place in drawn for row in rows[stems[place]]] for drawn in bootstrap.draws(stems)]


def test_bounds_are_those_of_naive_resampling() -> None:
    items = documents(1)
    means = sorted(math.fsum(rows) / len(rows) for rows in resampled_rows(items))
    assert len(means) == 1000
    # The quantile q of n sorted values stands at place q (n - 1), between two of them.
    lower = means[24] + 0.975 * (means[25] - means[24])
    upper = means[974] + 0.025 * (means[975] - means[974])
    assert bootstrap.low(items) == pytest.approx(lower, abs=1e-12)
    assert bootstrap.high(items) == pytest.approx(upper, abs=1e-12)
    assert lower < mean([score for _, score in items]) < upper


def test_draws_depend_on_the_documents_alone() -> None:
    items = documents(2)
    shuffled = random.Random(0).sample(items, len(items))
    assert bootstrap.low(shuffled) == bootstrap.low(items)
    stems = sorted({stem for stem, _ in items})
    assert np.array_equal(bootstrap.draws(stems), bootstrap.draws(stems))
    assert not np.array_equal(bootstrap.draws(stems), bootstrap.draws([f"x{stem}" for stem in stems]))
    # Another metric of the same documents is resampled with it: twice the score in every resample.
    twice = [(stem, None if score is None else 2 * score) for stem, score in items]
    assert np.allclose(bootstrap.low(twice).sums, 2 * bootstrap.low(items).sums)
    assert np.array_equal(bootstrap.low(twice).counts, bootstrap.low(items).counts)


@pytest.mark.parametrize("items", [[None], [("a", None), ("b", None)], [("a", 0.5), ("a", 1.0), ("b", None)]])
def test_no_interval_without_two_documents(items: list[Any]) -> None:
    assert math.isnan(bootstrap.low(items))
    assert math.isnan(bootstrap.high(items))


def task_metrics(scores: dict[tuple[str, str], list[bootstrap.Item]]) -> dict[str, dict[str, Any]]:
    """What the harness hands to the group, for items a (task, number)."""
    values: dict[str, dict[str, Any]] = {}
    for (task, name), items in scores.items():
        values.setdefault(task, {})[f"{name},none"] = mean([score for _, score in items])
        values[task] |= {f"{name}_low,none": bootstrap.low(items), f"{name}_high,none": bootstrap.high(items)}
    return values


@pytest.fixture(scope="module")
def twelve() -> dict[tuple[str, str], list[bootstrap.Item]]:
    """Items of the twelve numbers; both numbers of a side are of the same documents."""
    rng = random.Random(5)
    items: dict[tuple[str, str], list[bootstrap.Item]] = {}
    for task in GENERATION_TASKS:
        for side in SIDES:
            stems = [f"{task}-{side}-{number}" for number in range(rng.randint(8, 14))]
            regurgitation = [(stem, rng.uniform(0.2, 0.9)) for stem in stems]
            knowledge = [(stem, float(rng.random() < 0.5)) for stem in stems for _ in range(3)]
            items[task, f"{side}_regurgitation"] = [*regurgitation, *((stem, None) for stem, _ in knowledge)]
            items[task, f"{side}_knowledge"] = [*knowledge, *((stem, None) for stem, _ in regurgitation)]
    return items


def quantiles(values: list[float]) -> dict[str, float]:
    return dict(zip(("low", "high"), np.quantile(values, [0.025, 0.975]), strict=True))


def test_scores_across_tasks_are_those_of_naive_resampling(twelve: Any) -> None:
    scores, _ = lume_scores(task_metrics(twelve))
    drawn = {key: resampled_rows(items) for key, items in twelve.items()}
    for name in MAIN_METRICS:
        pooled = [[row for task in GENERATION_TASKS for row in drawn[task, name][i]] for i in range(1000)]
        for end, value in quantiles([math.fsum(rows) / len(rows) for rows in pooled]).items():
            assert scores[f"{name}_{end}"] == pytest.approx(value, abs=1e-12)
    aggregates = []
    for i in range(1000):
        means = {key: math.fsum(rows[i]) / len(rows[i]) for key, rows in drawn.items()}
        forget, retain = ([value for (_, name), value in means.items() if name.startswith(side)] for side in SIDES)
        aggregates.append(aggregate.task_aggregate(forget, retain))
    corrected = bootstrap.corrected_ends(np.array(aggregates), scores["task_aggregate"])
    assert (scores["task_aggregate_low"], scores["task_aggregate_high"]) == pytest.approx(corrected, abs=1e-12)
    assert scores["task_aggregate_low"] < scores["task_aggregate"] < scores["task_aggregate_high"]


@pytest.mark.parametrize(
    ("ends", "wanted"),
    [
        ((0.45, 0.6), (0.8, 1.0)),  # holds 0.5
        ((0.6, 0.8), (0.4, 0.8)),
        ((0.25, 0.45), (0.5, 0.9)),  # over-unlearned
        ((1.0, 1.0), (0.0, 0.0)),
    ],
)
def test_interval_of_the_mia_score_is_that_of_the_auc_folded(ends: Any, wanted: tuple[float, float]) -> None:
    assert bootstrap.mia_score(*ends) == pytest.approx(wanted, abs=1e-12)


def test_final_score_adds_the_squared_distances_of_its_parts() -> None:
    # Far from an AUC of 0.5 the MIA score is 2 - 2 AUC: 0.4, from 0.3 to 0.6.
    low, high = bootstrap.final_score((0.5, 0.4, 0.6), (0.8, 0.7, 0.85), (0.3, 0.29, 0.31))
    assert low == pytest.approx(0.4 - math.sqrt(0.1**2 + 0.1**2 + 0.01**2) / 3)
    assert high == pytest.approx(0.4 + math.sqrt(0.1**2 + 0.2**2 + 0.01**2) / 3)


@pytest.mark.parametrize("auc", [0.5, 0.95])
def test_intervals_of_mia_score_and_final_score_cover_the_truth(auc: float) -> None:
    """In 200 draws of 150 members and 150 non-members, beside two parts with intervals that are right."""
    rng = np.random.default_rng(0)
    apart = NormalDist().inv_cdf(auc) * math.sqrt(2)
    truth = aggregate.mia_score(auc), aggregate.final_score(0.5, aggregate.mia_score(auc), 0.5)
    inside = [0, 0]
    for _ in range(200):
        scores = np.concatenate([rng.normal(apart, 1, 150), rng.normal(0, 1, 150)]).tolist()
        members = [True] * 150 + [False] * 150
        ends = bootstrap.ends(attacks.resampled_aucs(scores, members))
        tasks, mmlu = ((x, x - 1.96 * sd, x + 1.96 * sd) for sd in (0.025, 0.004) for x in [rng.normal(0.5, sd)])
        final = bootstrap.final_score(tasks, (attacks.auc(scores, members), *ends), mmlu)
        for number, (low, high) in enumerate((bootstrap.mia_score(*ends), final)):
            inside[number] += low <= truth[number] <= high
    assert all(180 <= count <= 199 for count in inside), inside


def test_interval_of_the_task_aggregate_covers_the_truth() -> None:
    """In 200 draws of twelve numbers of 24 documents each; the plain quantiles lie too low."""
    rng = np.random.default_rng(0)
    truth = aggregate.task_aggregate([0.8] * 6, [0.3] * 6)
    inside = {"corrected": 0, "plain": 0}
    for _ in range(200):
        sides: dict[str, list[bootstrap.Bound]] = {"forget": [], "retain": []}
        means: dict[str, list[float]] = {"forget": [], "retain": []}
        for number in range(12):
            side, level = ("forget", 0.8) if number < 6 else ("retain", 0.3)
            scores = rng.beta(4 * level, 4 * (1 - level), 24)
            means[side].append(float(scores.mean()))
            sides[side].append(bootstrap.low([(f"{number}-{i}", float(score)) for i, score in enumerate(scores)]))
        replicates = bootstrap.task_aggregate(sides["forget"], sides["retain"])
        corrected = bootstrap.corrected_ends(replicates, aggregate.task_aggregate(means["forget"], means["retain"]))
        for name, (low, high) in {"corrected": corrected, "plain": bootstrap.ends(replicates)}.items():
            inside[name] += low <= truth <= high
    assert inside["plain"] < inside["corrected"]
    assert 180 <= inside["corrected"] <= 199


def test_accuracy_is_that_of_resampled_questions() -> None:
    parts = [(0.25, 40), (0.9, 100)]
    resampled = bootstrap.accuracy(parts)
    variance = (40 * 0.25 * 0.75 + 100 * 0.9 * 0.1) / 140**2
    assert resampled.mean() == pytest.approx(100 / 140, abs=4 * math.sqrt(variance / 1000))
    assert resampled.var() == pytest.approx(variance, rel=0.2)
    assert np.isnan(bootstrap.accuracy([(0.25, 40), (1.0, 1)])).all()


@pytest.mark.usefixtures("whole_mmlu")
def test_intervals_in_the_harness(run: Any, fake_lm: Any) -> None:
    """Answers whose last word is right every other time: a number with a spread, beside numbers without."""
    lm = fake_lm(forget=lambda output: output if int(output.split()[-1]) % 2 else "zzz")
    results = run(lm, "lume")["results"]
    values = {key.removesuffix(",none"): value for key, value in results["lume_task1"].items()}
    assert (values["retain_knowledge_low"], values["retain_knowledge_high"]) == (1.0, 1.0)
    low, number, high = (values[f"forget_regurgitation{end}"] for end in ("_low", "", "_high"))
    assert 0 <= low <= number <= high
    score = {key.removesuffix(",none"): value for key, value in results["lume_score"].items()}
    assert score["task_aggregate_low"] <= score["task_aggregate"] <= score["task_aggregate_high"]
    assert (score["mia_score_low"], score["mia_score_high"]) == (0.0, 0.0)
    assert (score["mmlu_low"], score["mmlu_high"]) == (1.0, 1.0)
    for end in bootstrap.ENDS:
        assert score[f"final_score_{end}"] == pytest.approx((score[f"task_aggregate_{end}"] + 1) / 3)
    names = (*MAIN_METRICS, "task_aggregate", "mia_score", "mmlu", "final_score")
    assert set(score) == {"alias", "name"} | {f"{name}{end}" for name in names for end in ("", "_low", "_high")}
