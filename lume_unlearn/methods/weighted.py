"""Gradient ascent with a weight on each token: WGA and SatImp."""

from lume_unlearn.methods.common import Count, Tensor, token_mean
from lume_unlearn.methods.npo import BETA
from lume_unlearn.methods.spec import Method, Param


def wga(nll: Tensor, beta: float, count: Count = None) -> Tensor:
    """Weighted gradient ascent, ``-(1/N) sum p^beta nll`` with p = exp(-nll) held constant; ascent itself for beta 0.

    Worked example: probabilities (1/2, 1/4), beta 1: -(ln 2 / 2 + ln 4 / 4) / 2 = -0.346574.

    Source: Wang et al. 2025 (arXiv 2502.19301).
    """
    weight = (-beta * nll.detach()).exp()
    return -token_mean(weight * nll, count)


def satimp(nll: Tensor, beta1: float, beta2: float, count: Count = None) -> Tensor:
    """``-(1/N) sum p^beta1 (1 - p)^beta2 nll`` with p = exp(-nll) held constant; gradient ascent for (0, 0).

    Neither tokens that are certain (unless beta2 is 0) nor those that are forgotten (unless beta1 is 0) are pushed.

    Worked example: probabilities (1/2, 1/4), betas (1, 1): -(ln 2 / 4 + 3 ln 4 / 16) / 2 = -0.216608.

    Source: Yang et al. 2025 (arXiv 2505.11953).
    """
    constant = nll.detach()
    not_certain = -(-constant).expm1()  # 1 - p
    weight = (-beta1 * constant).exp() * not_certain**beta2
    return -token_mean(weight * nll, count)


METHODS = (
    Method(
        "wga",
        "weighted gradient ascent",
        "Wang et al. 2025, arXiv 2502.19301",
        "-p^beta NLL, token mean",
        lambda batch: wga(batch.forget.values, batch.params["beta"], batch.counts.tokens("forget")),
        params={"beta": Param(1.0, BETA, zero=True, search=(0.1, 5.0))},
        defaults={"epochs": 5, "batch_size": 16},
    ),
    Method(
        "satimp",
        "saturation and importance",
        "Yang et al. 2025, arXiv 2505.11953",
        "-p^beta1 (1 - p)^beta2 NLL, token mean",
        lambda batch: satimp(
            batch.forget.values, batch.params["beta1"], batch.params["beta2"], batch.counts.tokens("forget")
        ),
        params={
            "beta1": Param(5.0, "exponent of p in satimp's weight", zero=True, search=(0.5, 10.0)),
            "beta2": Param(1.0, "exponent of 1 - p in satimp's weight", zero=True),
        },
        defaults={"epochs": 5, "retain_weight": 0.1},
    ),
)
