"""The distance to the retrained model, against closed forms and by the coverage of its interval."""

from dataclasses import asdict, replace
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
from scipy.stats import t

from lume_tasks.metrics.unlearning import (
    RowScores,
    difference_interval,
    distance_interval,
    distances,
    row_distance,
)
from lume_tasks.tasks.results import row_scores

GROUP = "forget lume_task1 forget_regurgitation"


def scores(values: dict[str, float], losses: dict[str, Any] | None = None, mmlu: float | None = None) -> RowScores:
    return RowScores({GROUP: values}, losses or {}, mmlu)


def test_parts_by_hand() -> None:
    retain, late = "retain lume_task1 retain_knowledge", {"1": 2.0, "2": 3.0}
    rows = {GROUP: {"a-sc0": 0.2, "b-sc0": 0.4}, retain: {"c-qa0": 1.0}}
    retrained = RowScores(rows, {"member": late, "nonmember": late}, 0.3)
    rows = {GROUP: {"a-sc0": 1.0, "b-sc0": 0.0}, retain: {"c-qa0": 0.0}}
    model = RowScores(rows, {"member": {"1": 1.0, "2": 2.0}, "nonmember": late}, 0.1)
    found = distances(model, retrained)
    parts = {"forget": (0.8 + 0.4) / 2, "retain": 1.0, "attack": (0.5 + 0.0) / 2, "mmlu": 0.2}
    assert found == pytest.approx({"distance": fmean(parts.values()), **parts})
    assert set(distances(retrained, retrained).values()) == {0.0}
    assert RowScores(**asdict(model)) == model


def test_a_mixture_with_the_retrained_means_is_far_away() -> None:
    """A fifth of the texts verbatim, gibberish for the others: the means agree, the rows do not."""
    names = [f"{i}-sc0" for i in range(50)]
    retrained = scores(dict.fromkeys(names, 0.2), {"member": dict.fromkeys(names, 3.0)})
    verbatim = {name: float(i % 5 == 0) for i, name in enumerate(names)}
    mixture = scores(verbatim, {"member": {name: 3.0 - (1 if i % 2 else -1) for i, name in enumerate(names)}})
    assert fmean(verbatim.values()) == pytest.approx(0.2)
    assert distances(mixture, retrained) == pytest.approx({"forget": 0.32, "attack": 0.5, "distance": 0.41})


@pytest.mark.parametrize("model", [RowScores(), scores({"a-sc0": 1.0}), scores({"b-sc0": 1.0}, mmlu=0.5)])
def test_models_scored_on_other_rows_are_not_compared(model: RowScores) -> None:
    with pytest.raises(ValueError, match="score both"):
        distances(model, scores({"b-sc0": 1.0, "c-sc0": 1.0}))
    with pytest.raises(ValueError, match="no MMLU accuracy"):
        distances(replace(model, mmlu=None), RowScores(mmlu=0.3))
    with pytest.raises(ValueError, match="no scores"):
        distances(model, RowScores())


def test_interval_resamples_whole_documents() -> None:
    """Ten rows of each document have one difference: the interval is that of one row a document."""
    differences = {f"{i}-": i / 20 for i in range(20)}
    one = scores({f"{stem}sc0": value for stem, value in differences.items()})
    ten = scores({f"{stem}sc{row}": value for stem, value in differences.items() for row in range(10)})
    found = [distance_interval([model], scores(dict.fromkeys(model.rows[GROUP], 0.0))) for model in (one, ten)]
    assert found[1] == pytest.approx(found[0])
    # Of n documents with mean .475 and variance s2 the mean has standard error sqrt(s2 / n) under these weights.
    error = np.std(list(differences.values())) / 21**0.5
    assert found[0] == pytest.approx((0.475, 0.475 - 1.96 * error, 0.475 + 1.96 * error), abs=0.015)


def test_seeds_widen_the_interval_as_in_students_t() -> None:
    """Rows without spread: the interval is over seeds alone."""
    retrained = scores({f"{i}-sc0": 0.0 for i in range(8)})
    far = [0.4, 0.5, 0.6]
    seeds = [scores(dict.fromkeys(retrained.rows[GROUP], value)) for value in far]
    width = t.ppf(0.975, 2) * stdev(far) / 3**0.5
    assert distance_interval(seeds, retrained) == pytest.approx((0.5, 0.5 - width, 0.5 + width))
    assert distance_interval(seeds[:1], retrained) == pytest.approx((0.4, 0.4, 0.4))
    same = difference_interval(seeds, seeds[::-1], retrained)
    assert same == pytest.approx((0.0, -width * 2**0.5, width * 2**0.5))
    assert difference_interval(seeds[:1], seeds[2:], retrained) == pytest.approx((-0.2, -0.2, -0.2))


def test_interval_of_the_distance_covers_the_truth() -> None:
    """In 100 draws of 30 documents with three rows each, and of 100 members and non-members."""
    rng = np.random.default_rng(0)

    def draw(documents: int) -> tuple[RowScores, RowScores]:
        names = [f"{i}-sc{row}" for i in range(documents) for row in range(3)]
        far = np.repeat(rng.beta(2, 6, documents), 3)  # the rows of a document are equally far
        retrained = rng.random(3 * documents) * (1 - far)
        both = []
        for values, shift in ((retrained + far, 0.4), (retrained, 0.0)):
            losses = {"member": base_losses["member"] + shift, "nonmember": base_losses["nonmember"]}
            numbered = {kind: {str(i): loss for i, loss in enumerate(of)} for kind, of in losses.items()}
            both.append(scores(dict(zip(names, values.tolist(), strict=True)), numbered))
        return both[0], both[1]

    base_losses = {kind: rng.normal(3, 1, 20_000) for kind in ("member", "nonmember")}
    truth = distances(*draw(20_000))["distance"]
    inside = 0
    for _ in range(100):
        base_losses = {kind: rng.normal(3, 1, 100) for kind in ("member", "nonmember")}
        model, retrained = draw(30)
        _, low, high = distance_interval([model], retrained)
        inside += low <= truth <= high
    assert inside >= 90


def test_row_scores_of_results(run: Any, fake_lm: Any) -> None:
    results = run(fake_lm(forget=lambda output: "zzz"), "lume_task1", "lume_mia", "lume_mmlu")
    found = row_scores(results)
    rows = [sample for sample in results["samples"]["lume_task1"] if sample["doc"]["side"] == "retain"]
    whole = {name: values for name, values in found.rows.items() if name.startswith("retain")}
    assert sum(map(len, whole.values())) == len(rows)
    assert {score for values in whole.values() for score in values.values()} == {1.0}
    assert {score for values in found.rows.values() for score in values.values()} == {0.0, 1.0}
    assert {kind: len(losses) for kind, losses in found.losses.items()} == {"member": 8, "nonmember": 8}
    assert found.losses["member"]["1"] < found.losses["nonmember"]["1"]
    assert found.mmlu == results["results"]["lume_mmlu"]["acc,none"]


def test_row_distance_by_hand() -> None:
    assert row_distance({"a": 1.0, "b": 0.0, "c": 0.0}, dict.fromkeys("abc", 1 / 3)) == pytest.approx(4 / 9)
