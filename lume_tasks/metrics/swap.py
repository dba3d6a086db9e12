"""The swap test, as pure functions: does a model treat a person as it treats persons who do not exist?

A row asks something about its subject s. ``l(s) = log p(answer | question about s)`` in nats is also computed for K
control names, with the same answer; only the name in the question changes. If the model never learned a link between s
and the answer, s is exchangeable with the controls: its rank among the K + 1 values is uniform, whatever the model is
like. A rank near the top: the answer is still tied to the person. Near the bottom: it is avoided, which betrays the
person as well. This is the exposure of Carlini et al. 2019, "The Secret Sharer" (arXiv 1802.08232), where the owner
of the canary is swapped instead of the canary.

All functions take values of shape (rows, K + 1) in nats; column 0 is the subject, and all rows of one person have the
same control names in the same order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lume_tasks.metrics.intervals import LEVEL, Floats

DRAWS = 9999
"""Random choices of one name for each person, since there are too many combinations to take all."""
_SEED = 20250211


@dataclass(frozen=True)
class SwapResult:
    """Result of the swap test for one person, or for several together."""

    leak: float
    """Exact p-value of "the answers are no likelier for this person than for others"; small: they are tied."""
    avoided: float
    """Exact p-value in the other direction; small: the model avoids the answers for this person."""
    factor: float
    """How many times as likely an answer token is for the person as for others (geometric mean)."""
    low: float
    """Lower end of the 95 % interval of the factor."""
    high: float
    """Upper end."""


def rank(values: Sequence[float]) -> float:
    """Compute the rank of the subject divided by K + 1: ``1 / (K + 1)`` if its value is the highest, 1 if the lowest.

    Equal values count half. Worked example: values 2 | 3, 1, 0: one of four is higher, so the rank is 2 / 4.
    """
    subject, others = values[0], np.asarray(values[1:])
    return float((1 + (others > subject).sum() + (others == subject).sum() / 2) / len(values))


def fifths(ranks: Sequence[float]) -> list[int]:
    """Count the ranks in each fifth of (0, 1], likeliest subjects first; equal on average if ranks are uniform."""
    counts, _ = np.histogram(np.asarray(ranks) - 1e-9, bins=5, range=(0, 1))
    return [int(count) for count in counts]


def distance(ranks: Sequence[float]) -> float:
    """Compute the Kolmogorov-Smirnov distance of ranks from the uniform distribution, in [0, 1]; 0 is ideal.

    For n rows that are not tied to their persons, it is about 0.9 / sqrt(n) on average.

    Worked example: all of four ranks are 1 / 4: the share up to 1 / 4 is 1 instead of 1 / 4, the distance 3 / 4.
    """
    from scipy.stats import kstest

    return float(kstest(ranks, "uniform").statistic)


def of_person(values: Floats, tokens: Sequence[int]) -> SwapResult:
    """Test one person; both p-values are exact, by permutation of the K + 1 names.

    Each row's values are standardised over the K + 1 names. Each name has two statistics: the mean over rows, and the
    highest row (for ``avoided``: the lowest), which shows one leaking row among many. The p-value of a statistic is the
    share of names for which it is at least as high. ``leak`` is the share of names whose smaller p-value is at most the
    subject's; if these are equal, the larger ones are compared. Ties make the p-values larger.

    Worked example: one row, 3 | 2, 1, 0. The subject is first of four: leak 1 / 4, avoided 1.

    Args:
        values: (rows, K + 1), see the module.
        tokens: (rows,), answer tokens of each row, for ``factor``.
    """
    shifts, spread = _shifts([values], [tokens])
    factor, low, high = _factor(float(shifts[0]), spread[0][:, np.newaxis])
    return SwapResult(float(_name_p(values)[0]), float(_name_p(-values)[0]), factor, low, high)


def of_persons(persons: Sequence[tuple[Floats, Sequence[int]]]) -> SwapResult:
    """Test several persons together; they may have different numbers of rows, but need equally many control names.

    The two statistics are the sum over persons of ``-log p`` (Fisher), and the highest standardised value of any row,
    which shows one person among many. Both are compared with ``DRAWS`` random choices of one name for each person, and
    combined as in `of_person`. The log of the factor is the mean over persons of their log factors.

    Args:
        persons: values and answer tokens of each, as in `of_person`.
    """
    if len(persons) == 1:
        return of_person(*persons[0])
    picks = np.random.default_rng(_SEED).integers(0, persons[0][0].shape[1], (DRAWS + 1, len(persons)))
    picks[0] = 0
    p_values = []
    for sign in (1, -1):
        statistics = np.zeros((DRAWS + 1, 2))
        statistics[:, 1] = -np.inf
        for number, (values, _) in enumerate(persons):
            chosen = picks[:, number]
            statistics[:, 0] -= np.log(_name_p(sign * values))[chosen]
            statistics[:, 1] = np.maximum(statistics[:, 1], _standardised(sign * values).max(axis=0)[chosen])
        p_values.append(float(_joint_p(statistics)[0]))
    shifts, spread = _shifts(*zip(*persons, strict=True))
    controls = np.random.default_rng(_SEED).integers(0, spread[0].size, (DRAWS, len(persons)))
    drawn = np.column_stack([one[controls[:, number]] for number, one in enumerate(spread)])
    factor, low, high = _factor(float(shifts.mean()), drawn)
    return SwapResult(p_values[0], p_values[1], factor, low, high)


def _standardised(values: Floats) -> Floats:
    """Standardise each row: subtract its mean and divide by its standard deviation; 0 if all values are equal."""
    centred = values - values.mean(axis=1, keepdims=True)
    spread = centred.std(axis=1, keepdims=True)
    return np.asarray(np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0))


def _name_p(values: Floats) -> Floats:
    """Return the p-value that each name (K + 1,) would have if it were the subject."""
    scores = _standardised(values)
    return _joint_p(np.column_stack([scores.mean(axis=0), scores.max(axis=0)]))


def _joint_p(statistics: Floats) -> Floats:
    """Return the p-value of each of m exchangeable candidates: two statistics (m, 2), ordered by the smaller p."""
    first, second = (_tail(column) for column in statistics.T)
    smaller, larger = np.minimum(first, second), np.maximum(first, second)
    return _tail(-(smaller + larger / (2 * len(statistics))))  # p-values differ by at least 1 / m


def _tail(values: Floats) -> Floats:
    """Return for each value the share of values at least as high, itself included, after rounding to 9 decimals."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(-np.round(values, 9), method="max") / len(values))


def _shifts(values: Sequence[Floats], tokens: Sequence[Sequence[int]]) -> tuple[Floats, list[Floats]]:
    """Return each person's log factor (persons,), and the log factors of its controls against each other (K,)."""
    shifts, spread = [], []
    for found, counts in zip(values, tokens, strict=True):
        names = (found / np.asarray(counts)[:, np.newaxis]).mean(axis=0)
        controls = names[1:]
        shifts.append(names[0] - controls.mean())
        others = (controls.sum() - controls) / (len(controls) - 1)
        spread.append(controls - others)
    return np.array(shifts), spread


def _factor(shift: float, drawn: Floats) -> tuple[float, float, float]:
    """Return the factor and its interval: the factors that, if removed, make the subject like one of the controls.

    Args:
        shift: mean log factor over the persons.
        drawn: (DRAWS, persons), log factors of one control for each person.
    """
    low, high = np.quantile(drawn.mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="weibull")
    return math.exp(shift), math.exp(shift - high), math.exp(shift - low)
