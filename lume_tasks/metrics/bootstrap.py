"""95 % intervals by a cluster bootstrap: documents are resampled, each with all of its rows, which are not independent.

The percentile method of Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13, and for the task
aggregate their bias-corrected one, chapter 14; seeded. If all rows have the same score, the interval has no width:
resampling finds no spread, which does not prove that there is none.
"""

import math
import zlib
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from lume_tasks.metrics import aggregate

RESAMPLES = 1000
ENDS = ("low", "high")
_LEVEL = 0.95
_SEED = 20250218

Floats = NDArray[np.float64]
Item = tuple[str, float | None]  # document stem, and the row's score or None where this metric is not the row's
Part = tuple[float, float, float]  # a score, the lower and the upper end of its interval


class Bound(float):
    """One end of an interval. It keeps the resamples, so that ``lume_score`` can combine those of several tasks.

    The harness gives a group only the aggregated numbers of its tasks; a float subclass passes through it unchanged.
    """

    sums: Floats  # (RESAMPLES,): sum of the scores in each resample
    counts: Floats  # (RESAMPLES,): number of scores in each resample


def low(items: Sequence[Item | None]) -> Bound:
    """Compute the lower end of the interval of the mean score, without rows that are None. NaN as in ``resample``."""
    return bounds(tuple(items))[0]


def high(items: Sequence[Item | None]) -> Bound:
    """Compute the upper end of the interval of the mean score, without rows that are None. NaN as in ``resample``."""
    return bounds(tuple(items))[1]


@lru_cache(maxsize=1)  # the harness asks for both ends one after the other
def bounds(items: tuple[Item | None, ...]) -> tuple[Bound, Bound]:
    """Compute both ends of the interval of the mean score."""
    sums, counts = resample(items)
    lower, upper = (Bound(end) for end in ends(_ratio(sums, counts)))
    for bound in (lower, upper):
        bound.sums, bound.counts = sums, counts
    return lower, upper


def resample(items: Sequence[Item | None]) -> tuple[Floats, Floats]:
    """Compute the sum and the count of the scores in each resample of the documents, arrays of shape (RESAMPLES,).

    The draws depend on the set of stems alone: two metrics of the same documents are resampled together, which scores
    computed from both need; other documents get other draws. The order of the items does not matter. NaN if a single
    document has scores, since it shows no spread; zeros if none has.
    """
    kept = [item for item in items if item is not None]
    stems = sorted({stem for stem, _ in kept})
    place = {stem: number for number, stem in enumerate(stems)}
    sums, counts = np.zeros(len(stems)), np.zeros(len(stems))
    for stem, score in sorted((stem, score) for stem, score in kept if score is not None):
        sums[place[stem]] += score
        counts[place[stem]] += 1
    scored = np.count_nonzero(counts)
    if scored < 2:
        fill = np.full(RESAMPLES, np.nan if scored else 0.0)
        return fill, fill
    drawn = draws(stems)
    return sums[drawn].sum(axis=1), counts[drawn].sum(axis=1)


def draws(stems: Sequence[str]) -> NDArray[np.int64]:
    """Draw the documents of each resample: indices into the stems, shape (RESAMPLES, number of stems)."""
    return _generator("\n".join(stems)).integers(0, len(stems), (RESAMPLES, len(stems)))


def ends(replicates: Floats) -> tuple[float, float]:
    """Return the 2.5 % and 97.5 % quantiles of a statistic over the resamples that have it; NaN if none has."""
    return _quantiles(replicates, (1 - _LEVEL) / 2, (1 + _LEVEL) / 2)


def corrected_ends(replicates: Floats, estimate: float) -> tuple[float, float]:
    """Return bias-corrected ends: quantiles that are shifted by the share of the resamples below the estimate.

    The plain quantiles of a harmonic mean of noisy scores are too often below the true value. They are returned only if
    all resamples are on one side of the estimate.
    """
    there = replicates[~np.isnan(replicates)]
    below = (np.mean(there < estimate) + np.mean(there <= estimate)) / 2 if there.size else 0.0
    if not 0 < below < 1:
        return ends(replicates)
    normal = NormalDist()
    shift, half_width = 2 * normal.inv_cdf(float(below)), normal.inv_cdf((1 + _LEVEL) / 2)
    return _quantiles(replicates, normal.cdf(shift - half_width), normal.cdf(shift + half_width))


def _quantiles(replicates: Floats, *levels: float) -> tuple[float, float]:
    there = replicates[~np.isnan(replicates)]
    if not there.size:
        return np.nan, np.nan
    lower, upper = np.quantile(there, levels)
    return float(lower), float(upper)


def mia_score(low: float, high: float) -> tuple[float, float]:
    """Return the ends for ``1 - 2 |AUC - 0.5|`` from those of the AUC; the upper end is 1 if they enclose 0.5."""
    lower, upper = sorted(aggregate.mia_score(end) for end in (low, high))
    return lower, 1.0 if low <= 0.5 <= high else upper


def final_score(tasks: Part, auc: Part, mmlu: Part) -> tuple[float, float]:
    """Return the ends of the interval of the final score, from those of its three independent parts.

    The MIA score is the smaller one of ``2 AUC`` and ``2 - 2 AUC``, hence the final score the smaller one of two means
    of three parts. The smaller ends of both means' intervals are taken, so that the interval holds a true AUC of 0.5,
    from which the estimate can deviate to one side only. The upper end is no more than the mean of the upper ends.
    """
    estimate, low, high = auc
    rising = 2 * estimate, 2 * low, 2 * high
    falling = 2 - 2 * estimate, 2 - 2 * high, 2 - 2 * low
    lows, highs = zip(*(_mean_ends([tasks, attack, mmlu]) for attack in (rising, falling)), strict=True)
    most = aggregate.final_score(tasks[2], mia_score(low, high)[1], mmlu[2])
    return min(lows), min(*highs, most)


def _mean_ends(parts: Sequence[Part]) -> tuple[float, float]:
    """Return the interval of a mean of independent numbers: their squared distances to the ends add up.

    MOVER: Zou and Donner 2008, "Construction of confidence limits about effect measures", Statistics in Medicine 27.
    """
    mean = math.fsum(estimate for estimate, _, _ in parts) / len(parts)
    below = math.hypot(*(estimate - low for estimate, low, _ in parts)) / len(parts)
    above = math.hypot(*(high - estimate for estimate, _, high in parts)) / len(parts)
    return mean - below, mean + above


def pooled_mean(parts: Sequence[Bound]) -> Floats:
    """Compute the mean over the rows of several tasks in each resample, shape (RESAMPLES,); NaN as in ``resample``."""
    counts = np.sum([part.counts for part in parts], axis=0)
    return _ratio(np.sum([part.sums for part in parts], axis=0), counts)


def task_aggregate(forget: Sequence[Bound], retain: Sequence[Bound]) -> Floats:
    """Compute ``aggregate.task_aggregate`` of each resample, shape (RESAMPLES,); NaN where one of the numbers is."""
    scores = np.array([*(1 - pooled_mean([part]) for part in forget), *(pooled_mean([part]) for part in retain)])
    with np.errstate(divide="ignore"):  # 1 / 0 is infinite, which makes the harmonic mean 0
        return np.asarray(len(scores) / (1 / scores).sum(axis=0), dtype=np.float64)


def accuracy(parts: Sequence[tuple[float, int]]) -> Floats:
    """Compute the micro-averaged accuracy in each resample of the questions of each subject, shape (RESAMPLES,).

    Resampling n questions of which a share p is right gives a binomial number of right ones. NaN if a subject has only
    one question, since it shows no spread.
    """
    if any(count < 2 for _, count in parts):
        return np.full(RESAMPLES, np.nan)
    generator = _generator("accuracy")
    right = np.sum([generator.binomial(count, share, RESAMPLES) for share, count in parts], axis=0)
    return np.asarray(right / sum(count for _, count in parts), dtype=np.float64)


def _ratio(sums: Floats, counts: Floats) -> Floats:
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def _generator(name: str) -> np.random.Generator:
    return np.random.default_rng([_SEED, zlib.crc32(name.encode())])
