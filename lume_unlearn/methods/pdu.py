"""Primal-dual unlearning (PDU): flat logits on forget rows, a bound on the retain loss."""

from dataclasses import dataclass

from lume_unlearn.methods.base import Defaults, Method, param
from lume_unlearn.methods.common import Tensor, at_least_float32


def pdu_dual(dual: float, retain_loss: float, epsilon: float, step: float) -> float:
    """Return the next weight of the bound "retain loss <= epsilon": ``max(0, dual + step (retain_loss - epsilon))``.

    NaN stays NaN. Worked example: dual 100, retain loss 0.5, epsilon 0.3, step 5 give 101.

    Source: Entesari et al. 2025 (arXiv 2506.05314). Deviation: the authors' code changes it with each micro-batch's
    loss, on each process separately; here it changes once per optimiser step, by the loss of the whole step.
    """
    return max(dual + step * (retain_loss - epsilon), 0.0)  # this order: max(0.0, nan) would be 0.0


@dataclass
class PDU(Method):
    """Primal-dual unlearning: see `token_loss` and `pdu_dual`."""

    title = "primal-dual unlearning"
    source = "Entesari et al. 2025, arXiv 2506.05314"
    formula = "(largest - mean logit)^2, token mean; retain weight follows retain loss - epsilon"
    retain_terms = ("nll", "kl")
    defaults = Defaults(retain_weight=100.0)

    epsilon: float = param(0.3, "retain loss that pdu allows", zero=True, search=(0.03, 1.0))
    dual_step: float = param(5.0, "step size of pdu's dual variable", zero=True)
    dual_warmup: float = param(5.0, "epochs before pdu's dual variable changes", zero=True)

    def token_loss(self, logits: Tensor, targets: Tensor, reference: None) -> Tensor:
        """Compute ``(max_v z - mean_v z)^2``, how far the largest logit is above the mean: (N,); 0 if all are equal.

        Worked example: logits (3, 1, 2, -2) give (3 - 1)^2 = 4.

        Source: Entesari et al. 2025 (arXiv 2506.05314). Deviation: the authors' code takes the logits at each labelled
        token; here, as for every method, they are those that predict it.
        """
        wide = at_least_float32(logits)
        return (wide.amax(dim=-1) - wide.mean(dim=-1)).square()

    def adapt(self, state: dict[str, float], retain_loss: float, epochs: float) -> dict[str, float]:
        """Change the retain weight by `pdu_dual`, after ``dual_warmup`` epochs."""
        if epochs <= self.dual_warmup:
            return state
        return {"weight": pdu_dual(state["weight"], retain_loss, self.epsilon, self.dual_step)}
