"""95 % intervals by a cluster bootstrap: documents are resampled, each with all of its rows, which hang together.

The percentile method of Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13, and for the task
aggregate their bias-corrected one, chapter 14; seeded. Where all rows score alike the interval has no width, which says
that resampling finds no spread, not that there is none.
"""

import math
import zlib
from collections.abc import Sequence
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
    """One end of an interval. It remembers the resamples, so that those of several tasks can be combined.

    The harness hands a group only the aggregated numbers of its tasks; a float subclass passes through it unchanged.
    """

    sums: Floats  # (RESAMPLES,): sum of the scores in each resample
    counts: Floats  # (RESAMPLES,): number of scores in each resample


def low(items: Sequence[Item | None]) -> Bound:
    """Lower end of the interval of the mean score; None stands for rows of the other side. NaN as in ``resample``."""
    return bound("low", *resample(items))


def high(items: Sequence[Item | None]) -> Bound:
    """Upper end of the interval of the mean score; None stands for rows of the other side. NaN as in ``resample``."""
    return bound("high", *resample(items))


def bound(end: str, sums: Floats, counts: Floats) -> Bound:
    """One end ("low" or "high") of the interval of ``sums / counts``, arrays of shape (RESAMPLES,)."""
    value = Bound(ends(_ratio(sums, counts))[ENDS.index(end)])
    value.sums, value.counts = sums, counts
    return value


def resample(items: Sequence[Item | None]) -> tuple[Floats, Floats]:
    """Sums and counts of the scores in each resample of the documents, two arrays of shape (RESAMPLES,).

    The draws depend on the set of stems alone: two metrics of the same documents are resampled together, as the scores
    computed from both need it, and other documents get draws of their own. The order of the items does not matter.
    NaN where one document alone has scores, since it shows no spread; zeros where none has.
    """
    kept = [item for item in items if item is not None]
    stems = sorted({stem for stem, _ in kept})
    place = {stem: number for number, stem in enumerate(stems)}
    sums, counts = np.zeros(len(stems)), np.zeros(len(stems))
    for stem, score in sorted((stem, score) for stem, score in kept if score is not None):
        sums[place[stem]] += score
        counts[place[stem]] += 1
    if (scored := np.count_nonzero(counts)) < 2:
        return np.full(RESAMPLES, np.nan if scored else 0.0), np.full(RESAMPLES, np.nan if scored else 0.0)
    drawn = draws(stems)
    return sums[drawn].sum(axis=1), counts[drawn].sum(axis=1)


def draws(stems: Sequence[str]) -> NDArray[np.int64]:
    """Which documents each resample holds: indices into the stems, shape (RESAMPLES, number of stems)."""
    return _generator("\n".join(stems)).integers(0, len(stems), (RESAMPLES, len(stems)))


def ends(replicates: Floats) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of a statistic over the resamples that have it; NaN where none has."""
    return _quantiles(replicates, (1 - _LEVEL) / 2, (1 + _LEVEL) / 2)


def corrected_ends(replicates: Floats, estimate: float) -> tuple[float, float]:
    """Bias-corrected ends: the quantiles are shifted by the share of the resamples that lie below the estimate.

    A harmonic mean of noisy scores is too low on average, and lower still in resamples: its plain quantiles lie below
    the true value too often. Where all resamples lie on one side of the estimate, the plain quantiles.
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
    """Ends of the interval of ``1 - 2 |AUC - 0.5|`` from those of the AUC; the upper is 1 where they enclose 0.5."""
    lower, upper = sorted(aggregate.mia_score(end) for end in (low, high))
    return lower, 1.0 if low <= 0.5 <= high else upper


def final_score(tasks: Part, auc: Part, mmlu: Part) -> tuple[float, float]:
    """Ends of the interval of the final score, from those of its three parts, which are independent.

    The MIA score is the smaller one of ``2 AUC`` and ``2 - 2 AUC``, hence the final score the smaller one of two means
    of three parts. The interval of each mean is that of ``_mean_ends``; the smaller ends of both are taken, so that the
    interval holds a true AUC of 0.5, from which the estimate can deviate to one side only. The upper end is no more
    than the mean of the parts' upper ends. The estimate never lies outside, if each part lies in its own interval.
    """
    estimate, low, high = auc
    rising = 2 * estimate, 2 * low, 2 * high
    falling = 2 - 2 * estimate, 2 - 2 * high, 2 - 2 * low
    lows, highs = zip(*(_mean_ends([tasks, attack, mmlu]) for attack in (rising, falling)), strict=True)
    most = aggregate.final_score(tasks[2], mia_score(low, high)[1], mmlu[2])
    return min(lows), min(*highs, most)


def _mean_ends(parts: Sequence[Part]) -> tuple[float, float]:
    """Ends of the interval of a mean of independent numbers: their distances from the estimates, squared and added.

    The MOVER method of Zou and Donner 2008, "Construction of confidence limits about effect measures", Statistics in
    Medicine 27.
    """
    mean = math.fsum(estimate for estimate, _, _ in parts) / len(parts)
    below = math.hypot(*(estimate - low for estimate, low, _ in parts)) / len(parts)
    above = math.hypot(*(high - estimate for estimate, _, high in parts)) / len(parts)
    return mean - below, mean + above


def pooled_mean(parts: Sequence[Bound]) -> Floats:
    """Mean over all rows behind several numbers in each resample, shape (RESAMPLES,); NaN as in ``resample``."""
    counts = np.sum([part.counts for part in parts], axis=0)
    return _ratio(np.sum([part.sums for part in parts], axis=0), counts)


def task_aggregate(forget: Sequence[Bound], retain: Sequence[Bound]) -> Floats:
    """``aggregate.task_aggregate`` of each resample, shape (RESAMPLES,); NaN where one of the numbers is."""
    scores = np.array([*(1 - pooled_mean([part]) for part in forget), *(pooled_mean([part]) for part in retain)])
    with np.errstate(divide="ignore"):  # 1 / 0 is infinite, which makes the harmonic mean 0
        return np.asarray(len(scores) / (1 / scores).sum(axis=0), dtype=np.float64)


def accuracy(parts: Sequence[tuple[float, int]]) -> Floats:
    """Micro-averaged accuracy in each resample of the questions, within their subjects, shape (RESAMPLES,).

    Resampling n questions of which a share p is right gives a binomial number of right ones, so that (p, n) a subject
    is all that is needed. NaN where a subject has only one question, since it shows no spread.
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
