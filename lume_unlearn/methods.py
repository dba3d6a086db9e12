"""The registry of unlearning methods: a name, a loss on forget rows, a term on retain rows, the need of a reference.

Adding a method: a loss function in `losses.py`, a row here, a recipe in `recipes/`, a row in the tests' table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lume_unlearn import losses

RetainTerm = Literal["nll", "kl", "none"]
RETAIN_TERMS: tuple[RetainTerm, ...] = ("nll", "kl", "none")


@dataclass(frozen=True)
class ForgetBatch:
    """What a forget loss may use: the labelled tokens of the forget rows of one forward pass, flat (see `losses`)."""

    nll: Tensor
    """(N,) negative log-likelihood of each labelled token, in nats."""
    rows: Tensor
    """(N,) row of each token."""
    reference: Tensor
    """(B,) NLL sums under the model before unlearning; empty unless the method needs them."""
    tokens: Tensor
    """Labelled forget tokens of the whole optimiser step."""
    row_count: Tensor
    """Forget rows of the whole optimiser step."""


@dataclass(frozen=True)
class Method:
    """One unlearning method."""

    name: str
    title: str
    citation: str
    forget: Callable[[ForgetBatch, float], Tensor]
    """(batch, beta) to a scalar: this pass's share of the optimiser step's loss."""
    retain: RetainTerm
    """The term on retain rows unless ``--retain_term`` names another."""
    reference_sums: bool = False
    """Whether each forget row's NLL sum under the model before unlearning is needed (computed once, kept)."""


def _gradient_ascent(batch: ForgetBatch, beta: float) -> Tensor:
    return losses.gradient_ascent(batch.nll, batch.tokens)


def _npo(batch: ForgetBatch, beta: float) -> Tensor:
    return losses.npo(batch.nll, batch.rows, batch.reference, beta, batch.row_count)


_METHODS = (
    Method("ga", "gradient ascent", "Jang et al. 2022, arXiv 2210.01504", _gradient_ascent, "none"),
    Method("gd", "gradient difference", "Liu et al. 2022, arXiv 2203.12817", _gradient_ascent, "nll"),
    Method("kl", "KL minimisation", "Maini et al. 2024, arXiv 2401.06121", _gradient_ascent, "kl"),
    Method(
        "npo",
        "negative preference optimisation",
        "Zhang et al. 2024, arXiv 2404.05868",
        _npo,
        "nll",
        reference_sums=True,
    ),
)
METHODS: dict[str, Method] = {method.name: method for method in _METHODS}
