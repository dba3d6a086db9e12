"""Margin self-correction (MASC): push the logit of each token below its largest competitors, and no further."""

import math
from dataclasses import dataclass

from lume_unlearn.methods.base import Defaults, Method, param
from lume_unlearn.methods.common import Tensor, at_least_float32


def masc_margin(logits: Tensor, targets: Tensor, beta: float, top_k: int) -> Tensor:
    """Compute each target's logit margin over its competitors, ``m = beta z_y - log sum_k exp(beta z_k)``: (N,) nats.

    k runs over the ``top_k`` largest other logits, or over all others in a smaller vocabulary. Over all others and with
    beta 1, m is the log-odds of the target, ``log(p_y / (1 - p_y))``.

    Worked example: p = (3/4, 1/8, 1/16, 1/16), target 0, beta 1, top_k 2: ln(3/4 / (3/16)) = ln 4 = 1.386294.

    Args:
        logits: (N, V), V >= 2.
        targets: (N,) token ids.
        beta: inverse temperature.
        top_k: number of competitors.
    """
    scaled = beta * at_least_float32(logits)
    index = targets[:, None]
    rivals = scaled.scatter(-1, index, -math.inf).topk(min(top_k, logits.shape[-1] - 1), dim=-1).values
    return scaled.gather(-1, index).squeeze(-1) - rivals.logsumexp(dim=-1)


def masc_tau(rho: float) -> float:
    """Return the largest margin allowed, ``tau = log(rho / (1 - rho))`` in nats; a token violates it if m > tau.

    It is the log-odds of ``rho``, 0 < rho < 1: a target that has more than the share rho of the probability of itself
    and its competitors violates it. Worked example: rho 0.7 gives ln(7/3) = 0.847298.
    """
    return math.log(rho / (1.0 - rho))


@dataclass
class MASC(Method):
    """Margin self-correction: see `token_loss`."""

    title = "margin self-correction"
    source = "Di Gennaro et al. 2026, arXiv 2606.02920"
    formula = (
        "max(0, m - tau + eta) / eta, token mean; m = beta z_y - logsumexp of beta z over the top_k other logits, "
        "tau = log(rho / (1 - rho))"
    )
    defaults = Defaults(learning_rate={"lora": 1e-4})

    rho: float = param(0.7, "largest share of a token in the probability of itself and its competitors", most=0.999)
    eta: float = param(0.25, "width of masc's hinge, in nats")
    top_k: int = param(10, "competing tokens to compare with")
    beta: float = param(1.0, "inverse temperature of the logits")

    def token_loss(self, logits: Tensor, targets: Tensor, reference: None) -> Tensor:
        """Compute ``max(0, m - (tau - eta)) / eta``, a hinge on the margin: (N,), no unit.

        m is `masc_margin`, tau `masc_tau`. The value is 1 at the largest margin allowed, and 0, without gradient, from
        eta nats below it.

        Worked example: p = (3/4, 1/4), target 0, rho 0.7, eta 0.25, beta 1: m = ln 3, (1.098612 - 0.597298) / 0.25 =
        2.005257.

        Source: Di Gennaro, Shevchenko and Yang 2026 (arXiv 2606.02920); rho 0.7, eta 0.25 and top_k 10 are theirs for
        TOFU. Deviation: they stop once few enough tokens violate the margin; here training lasts for
        ``num_train_epochs``.
        """
        margin = masc_margin(logits, targets, self.beta, self.top_k)
        return (margin - (masc_tau(self.rho) - self.eta)).clamp(min=0) / self.eta
