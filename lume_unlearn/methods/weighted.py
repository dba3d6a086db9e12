"""Gradient ascent with a weight on each token: WGA and SatImp."""

from dataclasses import dataclass

from lume_unlearn.methods.base import Batch, Defaults, Method, param
from lume_unlearn.methods.common import Tensor, token_mean


@dataclass
class WGA(Method):
    """Weighted gradient ascent."""

    title = "weighted gradient ascent"
    source = "Wang et al. 2025, arXiv 2502.19301"
    formula = "-p^beta NLL, token mean"
    defaults = Defaults(num_train_epochs=5, per_device_train_batch_size=16)

    beta: float = param(1.0, "exponent of p in wga's weight; 0 is gradient ascent", zero=True, search=(0.1, 5.0))

    def forget_loss(self, batch: Batch) -> Tensor:
        """Compute ``-(1/N) sum p^beta nll`` with p = exp(-nll) held constant; gradient ascent for beta 0.

        Worked example: probabilities (1/2, 1/4), beta 1: -(ln 2 / 2 + ln 4 / 4) / 2 = -0.346574.

        Source: Wang et al. 2025 (arXiv 2502.19301).
        """
        nll = batch.forget.values
        weight = (-self.beta * nll.detach()).exp()
        return -token_mean(weight * nll, batch.counts.tokens("forget"))


@dataclass
class SatImp(Method):
    """Saturation and importance."""

    title = "saturation and importance"
    source = "Yang et al. 2025, arXiv 2505.11953"
    formula = "-p^beta1 (1 - p)^beta2 NLL, token mean"
    defaults = Defaults(num_train_epochs=5, retain_weight=0.1)

    beta1: float = param(5.0, "exponent of p in satimp's weight", zero=True, search=(0.5, 10.0))
    beta2: float = param(1.0, "exponent of 1 - p in satimp's weight", zero=True)

    def forget_loss(self, batch: Batch) -> Tensor:
        """Compute ``-(1/N) sum p^beta1 (1 - p)^beta2 nll`` with p = exp(-nll) constant; gradient ascent for (0, 0).

        Tokens that are certain (unless beta2 is 0) or forgotten (unless beta1 is 0) are not pushed.

        Worked example: probabilities (1/2, 1/4), betas (1, 1): -(ln 2 / 4 + 3 ln 4 / 16) / 2 = -0.216608.

        Source: Yang et al. 2025 (arXiv 2505.11953).
        """
        nll, constant = batch.forget.values, batch.forget.values.detach()
        not_certain = -(-constant).expm1()  # 1 - p
        weight = (-self.beta1 * constant).exp() * not_certain**self.beta2
        return -token_mean(weight * nll, batch.counts.tokens("forget"))
