"""UNDIAL: self-distillation from the reference logits with the answer's tokens lowered."""

from dataclasses import dataclass

from lume_unlearn.methods.base import Defaults, Method, Needs, param
from lume_unlearn.methods.common import Tensor, at_least_float32


@dataclass
class Undial(Method):
    """Self-distillation with adjusted logits: see `token_loss`."""

    title = "self-distillation with adjusted logits"
    source = "Dong et al. 2024, arXiv 2402.10052"
    formula = "cross entropy with the reference model's distribution, the answer's logits lowered by beta; token mean"
    needs = Needs(reference_logits=True)
    retain_term = "none"
    defaults = Defaults(learning_rate={"full": 1e-4})

    beta: float = param(
        10.0, "amount by which the reference logit of an answer's token is lowered", zero=True, search=(1.0, 30.0)
    )

    def token_loss(self, logits: Tensor, targets: Tensor, reference_logits: Tensor) -> Tensor:
        """Distil from adjusted logits, ``-sum_v q log p`` with q = softmax(z_ref - beta onehot(y)): (N,) nats.

        Its minimum is the entropy of q, not 0; with beta 0 training starts there, without gradient.

        Worked example: p = p_ref = (3/4, 1/4), target 0, beta ln 3: q = (1/2, 1/2), the value is ln(16/3) / 2 =
        0.836988.

        Source: Dong et al. 2024 (arXiv 2402.10052). Deviation: the authors distil at every position of the text, and
        other code at prompt and padding, too; here only at labelled tokens.
        """
        from torch.nn.functional import cross_entropy

        teacher = at_least_float32(reference_logits.detach())
        penalty = teacher.new_zeros(teacher.shape).scatter_(-1, targets[:, None], self.beta)
        return cross_entropy(at_least_float32(logits), (teacher - penalty).softmax(dim=-1), reduction="none")
