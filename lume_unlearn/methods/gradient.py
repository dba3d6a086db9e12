"""Gradient ascent, gradient difference, KL minimisation: the same loss on forget rows, three retain terms."""

from lume_unlearn.methods.common import Count, Tensor, token_mean
from lume_unlearn.methods.spec import Batch, Method


def gradient_ascent(nll: Tensor, count: Count = None) -> Tensor:
    """``-(1/N) sum nll``: ordinary training with the sign reversed; unbounded below. NLLs (1, 2, 6) give -3.

    Source: Jang et al. 2022 (arXiv 2210.01504); a baseline of TOFU (Maini et al. 2024, arXiv 2401.06121). The first
    averages over examples; this is the token mean of TOFU's and the benchmark's baselines.
    """
    return -token_mean(nll, count)


def forget_ascent(batch: Batch) -> Tensor:
    """`gradient_ascent` on the forget rows."""
    return gradient_ascent(batch.forget.values, batch.counts.tokens("forget"))


METHODS = (
    Method(
        "ga", "gradient ascent", "Jang et al. 2022, arXiv 2210.01504", "-NLL, token mean", forget_ascent, retain="none"
    ),
    Method("gd", "gradient difference", "Liu et al. 2022, arXiv 2203.12817", "-NLL, token mean", forget_ascent),
    Method(
        "kl", "KL minimisation", "Maini et al. 2024, arXiv 2401.06121", "-NLL, token mean", forget_ascent, retain="kl"
    ),
)
