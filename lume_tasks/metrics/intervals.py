"""95 % intervals of bounded scores. The unit is the document, since the rows of one document are not independent.

A mean of scores in [0, 1] gets the bound of Gaffke 2005 ("Three test statistics for a nonparametric one-sided
hypothesis on the mean of a nonnegative variable"; Learned-Miller and Thomas 2019, arXiv 1905.06208): the documents get
random weights from the exponential distribution (Rubin 1981, "The Bayesian Bootstrap"), and one more document with the
worst possible score is added, 0 for the lower end and 1 for the upper one. If every document scores 0 or 1, this is
the interval of Clopper and Pearson 1934. So it also holds if all scores are 0 or all are 1: it then shows how many
documents could still differ. Coverage is 95 % or more (`tests/tasks/test_intervals.py`); the weights are seeded.
"""

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lume_tasks.metrics import aggregate

DRAWS = 10_000
ENDS = ("low", "high")
LEVEL = 0.95
_SEED = 20250218
_CHUNK = 500  # documents whose weights are in memory at once

Floats = NDArray[np.float64]
Item = tuple[str, float | None]  # document stem, and the row's score (None if the metric does not apply to the row)
Part = tuple[float, float, float]  # a score, the lower and the upper end of its interval


@dataclass(frozen=True)
class WeightedSums:
    """Sums of scores and rows under random weights of the documents, for the mean over rows."""

    scores: Floats  # (DRAWS,): weighted sum of the scores
    rows: Floats  # (DRAWS,): weighted number of rows
    documents: int
    row_count: int

    def ends(self) -> tuple[float, float]:
        """Compute both ends of the interval of the mean; NaN without documents.

        The added document has the mean number of rows of the others.
        """
        if not self.documents:
            return math.nan, math.nan
        added = _generator("added document").exponential(size=DRAWS) * self.row_count / self.documents
        rows = self.rows + added
        return percentiles(self.scores / rows)[0], percentiles((self.scores + added) / rows)[1]


class Bound(float):
    """One end of an interval. It keeps the weighted sums, so that ``lume_score`` can pool those of several tasks.

    The harness gives a group only the aggregated numbers of its tasks; a float subclass passes through it unchanged.
    """

    sums: WeightedSums


def low(items: Sequence[Item | None]) -> Bound:
    """Compute the lower end of the interval of the mean score, without rows that are None; NaN if none is left."""
    return bounds(tuple(items))[0]


def high(items: Sequence[Item | None]) -> Bound:
    """Compute the upper end of the interval of the mean score, without rows that are None; NaN if none is left."""
    return bounds(tuple(items))[1]


@lru_cache(maxsize=1)  # the harness asks for both ends one after the other
def bounds(items: tuple[Item | None, ...]) -> tuple[Bound, Bound]:
    """Compute both ends of the interval of the mean score."""
    sums = weighted_sums(items)
    lower, upper = (Bound(end) for end in sums.ends())
    lower.sums = upper.sums = sums
    return lower, upper


def weighted_sums(items: Sequence[Item | None]) -> WeightedSums:
    """Compute the sums under random weights of the documents that have scores.

    The weights depend only on the set of stems, including those without scores: two metrics of the same documents get
    the same weights, other documents get other weights. The order of the items does not matter.
    """
    kept = [item for item in items if item is not None]
    stems = sorted({stem for stem, _ in kept})
    place = {stem: number for number, stem in enumerate(stems)}
    table = np.zeros((len(stems), 2))  # sum of the scores and number of rows of each document
    for stem, score in sorted((stem, score) for stem, score in kept if score is not None):
        table[place[stem]] += score, 1
    total = np.zeros((DRAWS, 2))
    start = 0
    for part in weights(stems, DRAWS):
        total += part @ table[start : start + part.shape[1]]
        start += part.shape[1]
    return WeightedSums(total[:, 0], total[:, 1], int((table[:, 1] > 0).sum()), int(table[:, 1].sum()))


def weights(stems: Sequence[str], draws: int) -> Iterator[Floats]:
    """Yield random weights of at most `_CHUNK` documents at a time: shape (draws, number of documents)."""
    generator = _generator("\n".join(stems))
    for start in range(0, len(stems), _CHUNK):
        yield generator.exponential(size=(len(stems[start : start + _CHUNK]), draws)).T


def pooled(parts: Sequence[WeightedSums]) -> WeightedSums:
    """Return the sums of the mean over the rows of several tasks."""
    return WeightedSums(
        np.sum([part.scores for part in parts], axis=0),
        np.sum([part.rows for part in parts], axis=0),
        sum(part.documents for part in parts),
        sum(part.row_count for part in parts),
    )


def percentiles(replicates: Floats) -> tuple[float, float]:
    """Return the 2.5 % and 97.5 % quantiles of a statistic over resamples, without NaN; NaN if all are NaN."""
    there = replicates[~np.isnan(replicates)]
    if not there.size:
        return math.nan, math.nan
    lower, upper = np.quantile(there, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(lower), float(upper)


def accuracy(right: float, questions: int) -> tuple[float, float]:
    """Return the interval of Clopper and Pearson for the share of questions that are answered right."""
    from scipy.stats import beta

    tail = (1 - LEVEL) / 2
    lower = beta.ppf(tail, right, questions - right + 1) if right > 0 else 0.0
    upper = beta.ppf(1 - tail, right + 1, questions - right) if right < questions else 1.0
    return float(lower), float(upper)


def mia_score(low: float, high: float) -> tuple[float, float]:
    """Return the ends for ``1 - 2 |AUC - 0.5|`` from those of the AUC; the upper end is 1 if they enclose 0.5."""
    lower, upper = sorted(aggregate.mia_score(end) for end in (low, high))
    return lower, 1.0 if low <= 0.5 <= high else upper


def task_aggregate(forget: Sequence[Sequence[Part]], retain: Sequence[Sequence[Part]]) -> tuple[float, float]:
    """Return the interval of ``aggregate.task_aggregate`` from those of its numbers.

    The numbers of one task and side (a group) come from the same documents, so they move together; groups are
    independent. As in MOVER (`_mean_ends`), the squared distances of the groups add up, each with the other groups at
    their estimates. A harmonic mean with several numbers near 0 rises only if all of them rise. So the interval also
    includes the values where all groups move at once, by ``1 / sqrt(number of groups)`` of their distance. NaN if an
    end is NaN.

    Args:
        forget: the numbers of each task on forget rows.
        retain: the numbers of each task on retain rows.
    """
    if any(math.isnan(end) for group in (*forget, *retain) for part in group for end in part):
        return math.nan, math.nan
    groups = [*([(1 - x, 1 - high, 1 - low) for x, low, high in group] for group in forget), *map(list, retain)]
    estimate = _harmonic(groups, {})
    found = []
    for end in (1, 2):
        distances = [abs(_harmonic(groups, {number: (end, 1.0)}) - estimate) for number in range(len(groups))]
        together = _harmonic(groups, dict.fromkeys(range(len(groups)), (end, len(groups) ** -0.5)))
        found.append((math.hypot(*distances), abs(together - estimate)))
    below, above = map(max, found)
    return max(0.0, estimate - below), min(1.0, estimate + above)


def _harmonic(groups: Sequence[Sequence[Part]], moved: Mapping[int, tuple[int, float]]) -> float:
    """Compute the harmonic mean with some groups moved towards an end: group number to (end, share of the way)."""
    values = []
    for number, group in enumerate(groups):
        end, share = moved.get(number, (0, 0.0))
        values += [part[0] + share * (part[end] - part[0]) for part in group]
    return aggregate.task_aggregate([], values)


def final_score(tasks: Part, auc: Part, mmlu: Part) -> tuple[float, float]:
    """Return the ends of the interval of the final score, from those of its three independent parts.

    The MIA score is the smaller one of ``2 AUC`` and ``2 - 2 AUC``, so the final score is the smaller one of two means
    of three parts. Each end is the smaller one of both means' intervals, so that the interval also covers a true AUC of
    0.5, where the estimate can deviate to one side only. The upper end is at most the mean of the upper ends.
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


def _generator(name: str) -> np.random.Generator:
    return np.random.default_rng([_SEED, zlib.crc32(name.encode())])
