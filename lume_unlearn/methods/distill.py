"""Distillation into a noised copy (UNDO), for `lume-unlearn distill`; not in the registry, as it does not unlearn.

Source: Lee et al. 2025, "Distillation robustifies unlearning" (arXiv 2506.06278). The defaults of alpha and beta are
the paper's for language and arithmetic; for WMDP, with a model of 2 B parameters, it uses an alpha of 0.25.
"""

from collections.abc import Sequence
from typing import Any

from lume_unlearn.methods.common import Tensor
from lume_unlearn.methods.retain import kl_tokens
from lume_unlearn.methods.spec import Method, Param


def noised(weight: Tensor, noise: Tensor, alpha: float, beta: float) -> Tensor:
    """Shrink a weight and add noise, ``(1 - alpha) theta + alpha beta noise``, in the weight's shape.

    ``alpha`` 0 returns the weight; ``alpha`` 1 and ``beta`` 0 return zeros.

    Worked example: theta (2, -1), noise (1, 3), alpha 0.5 and beta 0.1 give (1.05, -0.35).
    """
    return (1 - alpha) * weight + alpha * beta * noise


def initial_weights(shape: Sequence[int], generator: Any) -> Tensor:
    """Sample the noise of one weight as the authors' code does: Glorot uniform for a matrix, zeros for a vector.

    A matrix (m, n) has entries from -a to a with a = sqrt(6 / (m + n)): (2, 4) gives a = 1. So the scale of a norm or a
    bias is only shrunk. Deviation: the code refuses tensors of more dimensions; here each of their matrices is sampled.

    ``generator`` is torch's, on the CPU.
    """
    import torch

    weight = torch.zeros(*shape)
    if len(shape) > 1:
        for matrix in weight.view(-1, *shape[-2:]):
            torch.nn.init.xavier_uniform_(matrix, generator=generator)
    return weight


DISTILL = Method(
    "distill",
    "distillation into a noised copy (UNDO)",
    "Lee et al. 2025, arXiv 2506.06278",
    "KL divergence from the unlearned model, token mean",
    retain="none",
    retain_terms=("none",),
    per_token_loss=lambda params, logits, targets, reference: kl_tokens(logits, reference),
    needs_reference_forward=True,
    params={
        "alpha": Param(0.6, "Share of the weights that noise replaces.", zero=True, most=1),
        "beta": Param(0.1, "Scale of the noise.", zero=True, most=1),
        "generate": Param(0, "Texts to generate.", zero=True, whole=True),
        "ngram": Param(8, "Words that a generated text may not share with a forget row.", whole=True),
    },
)
