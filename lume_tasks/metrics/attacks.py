"""Membership attacks as pure functions: the score of one document, and statistics over the scores of all documents.

A HIGHER score means that the document is MORE LIKELY to have been trained on. ``l_t`` is log p(token t | tokens before
it), in nats, ``n`` the number of scored tokens.
"""

import math
import zlib as _zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 1000
_SEED = 20250218
_LEAST_VARIANCE = 1e-6  # the log-probabilities of a nearly certain model have no spread to divide by


def loss(total: float, tokens: int) -> float:
    """Compute ``sum_t l_t / n``: minus the mean token loss. Yeom et al. 2018 (arXiv 1709.01604)."""
    return float(total) / tokens


def zlib(total: float, tokens: int, text: str) -> float:
    """Compute ``(sum_t l_t / n) / bytes of the zlib-compressed UTF-8 text``. Carlini et al. 2021 (arXiv 2012.07805).

    An empty text still compresses to 8 bytes.
    """
    return float(total) / tokens / len(_zlib.compress(text.encode()))


def min_k(logprobs: ArrayLike, fraction: float) -> float:
    """Compute the mean of the k smallest ``l_t``. Min-K% of Shi et al. 2024 (arXiv 2310.16789).

    ``logprobs`` is (n,), n > 0; ``fraction`` in (0, 1]; ``k = max(1, floor(fraction n))``.
    """
    return _smallest(np.asarray(logprobs, dtype=np.float64), fraction)


def min_k_plus_plus(logprobs: ArrayLike, mean: ArrayLike, variance: ArrayLike, fraction: float) -> float:
    """Compute the mean of the k smallest ``(l_t - mean_t) / sqrt(variance_t)``.

    Min-K%++ of Zhang et al. 2025 (arXiv 2404.02936).

    ``mean`` and ``variance``, both (n,), are those of log p under p at each position; the variance is clamped to at
    least 1e-6. The rest is as for ``min_k``.
    """
    spread = np.sqrt(np.maximum(np.asarray(variance, dtype=np.float64), _LEAST_VARIANCE))
    return _smallest((np.asarray(logprobs, dtype=np.float64) - np.asarray(mean, dtype=np.float64)) / spread, fraction)


def reference(total: float, tokens: int, reference_loss: float) -> float:
    """Compute ``reference_loss + sum_t l_t / n``: how much lower the loss is than a reference model's.

    Carlini et al. 2021 (arXiv 2012.07805).

    Each loss is the mean over its own model's tokens, so the reference model may have another tokenizer.
    """
    return reference_loss + float(total) / tokens


def gradnorm(norm: float) -> float:
    """Return minus the norm of the loss's gradient. Wang et al. 2024 (arXiv 2402.17012)."""
    return -norm


def auc(scores: Sequence[float], members: Sequence[bool]) -> float:
    """Compute the area under the ROC curve: the chance that a member scores higher than a non-member, ties half.

    1.0 if every member scores higher than every non-member, 0.5 if the two cannot be told apart. NaN if one of the
    classes is absent or a score is NaN, since then there is no ranking.
    """
    return _auc(*split(scores, members))


def tpr_at(fpr: float, scores: Sequence[float], members: Sequence[bool]) -> float:
    """Compute the highest true-positive rate at a false-positive rate of at most ``fpr``.

    Carlini et al. 2022 (arXiv 2112.03570). Of m non-members ``floor(fpr m)`` may score as members; the curve is not
    interpolated. NaN as for ``auc``.
    """
    inside, outside = split(scores, members)
    if _no_ranking(inside, outside):
        return math.nan
    allowed = math.floor(fpr * len(outside) + 1e-9)  # 0.07 * 100 is a little more than 7, 0.29 * 100 a little less
    if allowed >= len(outside):
        return 1.0
    threshold = np.sort(outside)[len(outside) - 1 - allowed]
    return float(np.mean(inside > threshold))


def resampled_aucs(scores: Sequence[float], members: Sequence[bool]) -> NDArray[np.float64]:
    """Compute the AUC of bootstrap resamples, shape (RESAMPLES,): the two classes are resampled separately, seeded.

    The order of the documents does not matter. NaN as for ``auc``.
    """
    inside, outside = (np.sort(group) for group in split(scores, members))
    if _no_ranking(inside, outside):
        return np.full(RESAMPLES, math.nan)
    generator = np.random.default_rng(_SEED)
    drawn = [generator.integers(0, len(group), (RESAMPLES, len(group))) for group in (inside, outside)]
    return np.array([_auc(inside[i], outside[o]) for i, o in zip(*drawn, strict=True)])


def privleak(auc_model: float, auc_reference: float) -> float:
    """Compute ``100 (A - A_ref) / (A_ref + 1e-10)`` with ``A = 1 - AUC`` of Min-K%.

    MUSE, Shi et al. 2025 (arXiv 2407.06460). 0 is ideal; towards -100 the model still knows its members better than the
    reference model does, above 0 it knows them less well than unseen documents (over-unlearned). Large if the reference
    model's AUC is near 1.
    """
    return 100 * (auc_reference - auc_model) / (1 - auc_reference + 1e-10)


def s_mia(auc_model: float, auc_reference: float) -> float:
    """Compute ``clip(1 - |AUC - AUC_ref| / AUC_ref, 0, 1)`` of the loss attack: 1 at the reference's AUC, else lower.

    The normalised attack of Lee et al. 2026 (arXiv 2605.24614), where the reference is the retrained model. NaN if an
    AUC is NaN. An ``AUC_ref`` below 1e-10 counts as 1e-10, since the formula has no value at 0.

    Worked example: AUC 0.7, reference 0.5: 1 - 0.2 / 0.5 = 0.6; AUC 0.3 gives 0.6 as well, AUC 1 gives 0.
    """
    return float(np.clip(1 - abs(auc_model - auc_reference) / max(auc_reference, 1e-10), 0, 1))


def split(scores: Sequence[float], members: Sequence[bool]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the scores of the members and of the non-members."""
    values, inside = np.asarray(scores, dtype=np.float64), np.asarray(members, dtype=bool)
    return values[inside], values[~inside]


def _auc(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    if _no_ranking(inside, outside):
        return math.nan
    ordered = np.sort(outside)
    below = ordered.searchsorted(inside, "left").sum() + ordered.searchsorted(inside, "right").sum()
    return float(below / (2 * len(inside) * len(outside)))


def _no_ranking(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> bool:
    return not inside.size or not outside.size or bool(np.isnan(inside).any() or np.isnan(outside).any())


def _smallest(values: NDArray[np.float64], fraction: float) -> float:
    count = max(1, int(fraction * len(values)))
    return float(np.sort(values)[:count].mean())
