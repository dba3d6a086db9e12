"""The attacks against numbers worked out by hand, and the ranking against scikit-learn's."""

import math
import zlib

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from lume_tasks.metrics import attacks

INF = math.inf


def test_zlib_divides_by_the_bytes_of_the_compressed_text() -> None:
    text = "naïve 日本語 " * 20
    assert attacks.zlib(-6.0, 4, text) == -1.5 / len(zlib.compress(text.encode("utf-8")))
    assert attacks.zlib(-6.0, 4, "") == -1.5 / 8


@pytest.mark.parametrize(
    ("fraction", "score"),
    [
        (0.2, -9.0),  # floor(0.2 * 5) = 1
        (0.4, (-9 - 4) / 2),
        (0.59, (-9 - 4) / 2),
        (0.6, (-9 - 4 - 2) / 3),
        (1.0, (-9 - 4 - 2 - 1 - 0.5) / 5),  # the loss attack
        (1e-9, -9.0),  # never fewer than one
    ],
)
def test_min_k_is_the_mean_of_the_smallest(fraction: float, score: float) -> None:
    assert attacks.min_k(np.array([-1, -9, -0.5, -4, -2], dtype=np.float32), fraction) == pytest.approx(score)


def test_min_k_plus_plus_standardises_each_position() -> None:
    logprobs, mean, variance = [-1.0, -9.0, -0.5], [-2.0, -8.0, -0.5], [4.0, 0.25, 1.0]
    # (l - mean) / sqrt(variance): 0.5, -2, 0
    assert attacks.min_k_plus_plus(logprobs, mean, variance, 0.4) == pytest.approx(-2.0)
    assert attacks.min_k_plus_plus(logprobs, mean, variance, 0.7) == pytest.approx(-1.0)
    assert attacks.min_k_plus_plus(logprobs, mean, variance, 1.0) == pytest.approx(-0.5)


def test_loss_reference_and_gradnorm_are_higher_for_members() -> None:
    assert attacks.loss(-6.0, 4) == -1.5
    assert attacks.reference(-6.0, 4, 2.0) == 0.5
    assert attacks.gradnorm(3.0) == -3.0


@pytest.mark.parametrize(
    ("members", "nonmembers", "auc"),
    [
        # Pairs (member, non-member): 3>2, 3>1, 2=2 (a half), 2>1 -> 3.5 of 4.
        ([3.0, 2.0], [2.0, 1.0], 3.5 / 4),
        # Minus infinity (an infinite loss) ranks behind every finite score, and level with another.
        ([-1.0], [-INF, -2.0], 1.0),
        ([-INF], [-1e300, -2.0], 0.0),
        ([-INF, -1.0], [-INF, -2.0], 2.5 / 4),
        ([5.0], [5.0 + 1e-12, 5.0 - 1e-12, 5.0], 0.5),
    ],
)
def test_auc(members: list[float], nonmembers: list[float], auc: float) -> None:
    labels = [True] * len(members) + [False] * len(nonmembers)
    scores = members + nonmembers
    assert attacks.auc(scores, labels) == auc
    assert attacks.auc(scores[::-1], labels[::-1]) == auc


def samples(seed: int, inside: int, outside: int) -> tuple[list[float], list[bool]]:
    rng = np.random.default_rng(seed)
    scores = np.round(np.concatenate([rng.normal(0.7, 1, inside), rng.normal(0, 1, outside)]), 1)  # with ties
    return scores.tolist(), [True] * inside + [False] * outside


@pytest.mark.parametrize(("inside", "outside"), [(40, 70), (1, 5), (150, 150)])
def test_auc_and_rates_are_those_of_scikit_learn(inside: int, outside: int) -> None:
    scores, members = samples(1, inside, outside)
    assert attacks.auc(scores, members) == pytest.approx(roc_auc_score(members, scores), abs=1e-12)
    false, true, _ = roc_curve(members, scores, drop_intermediate=False)
    for fpr in (0.0, 0.01, 0.05, 0.3, 1.0):
        assert attacks.tpr_at(fpr, scores, members) == pytest.approx(true[false <= fpr + 1e-9].max())


@pytest.mark.parametrize(
    ("scores", "members"),
    [([], []), ([1.0, 2.0], [True, True]), ([1.0], [False]), ([1.0, math.nan, 2.0], [True, False, True])],
)
def test_no_ranking_is_nan(scores: list[float], members: list[bool]) -> None:
    assert math.isnan(attacks.auc(scores, members))
    assert math.isnan(attacks.tpr_at(0.05, scores, members))
    assert np.isnan(attacks.resampled_aucs(scores, members)).all()


def test_resamples_are_seeded_and_know_no_order() -> None:
    scores, members = samples(2, 30, 50)
    first = attacks.resampled_aucs(scores, members)
    assert first.shape == (1000,)
    order = np.random.default_rng(0).permutation(80)
    again = attacks.resampled_aucs([scores[i] for i in order], [members[i] for i in order])
    assert np.array_equal(first, again)


def test_resamples_spread_as_the_theory_says() -> None:
    """DeLong et al. 1988: the variance of an AUC from how each document ranks among those of the other class."""
    scores, members = samples(3, 200, 300)
    inside, outside = np.array(scores[:200]), np.array(scores[200:])
    above = (inside[:, None] > outside) + 0.5 * (inside[:, None] == outside)
    variance = above.mean(1).var() / 200 + above.mean(0).var() / 300
    aucs = attacks.resampled_aucs(scores, members)
    assert aucs.mean() == pytest.approx(attacks.auc(scores, members), abs=0.003)
    assert aucs.std() == pytest.approx(math.sqrt(variance), rel=0.1)


@pytest.mark.parametrize(
    ("model", "reference", "leak"),
    [(0.5, 0.5, 0.0), (1.0, 0.5, -100.0), (0.0, 0.5, 100.0), (0.9, 0.4772, -100 * (0.9 - 0.4772) / (1 - 0.4772))],
)
def test_privleak(model: float, reference: float, leak: float) -> None:
    assert attacks.privleak(model, reference) == pytest.approx(leak, abs=1e-6)


def test_s_mia_is_one_at_the_reference_auc_and_falls_on_both_sides() -> None:
    found = [attacks.s_mia(auc, 0.5) for auc in (0.5, 0.7, 0.3, 1.0, 0.0)]
    assert found == pytest.approx([1.0, 0.6, 0.6, 0.0, 0.0])
    assert attacks.s_mia(0.9, 0.3) == 0.0  # 1 - 0.6 / 0.3 = -1
    assert [attacks.s_mia(auc, 0.0) for auc in (0.0, 0.5)] == [1.0, 0.0]
    assert math.isnan(attacks.s_mia(math.nan, 0.5))
    assert math.isnan(attacks.s_mia(0.5, math.nan))
