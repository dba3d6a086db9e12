"""SHRED: self-distillation with the answer's token demoted where the reference model was least sure."""

from dataclasses import dataclass

from lume_unlearn.methods.base import Method, Needs, param
from lume_unlearn.methods.common import Tensor, at_least_float32


def shred_selected(reference: Tensor, rows: Tensor, share: float) -> Tensor:
    """Select in each row the ``ceil(share n)`` of its n labelled tokens with the highest reference NLL: (N,) bool.

    Of equal tokens the first is selected.

    Worked example: NLLs (1, 3, 3, 2 | 5) in rows (0, 0, 0, 0 | 1), share 0.5: (no, yes, yes, no | yes).

    Args:
        reference: (N,) reference NLL in nats.
        rows: (N,), ascending.
        share: above 0, at most 1.
    """
    import torch

    order = reference.argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]  # by row, then by NLL; ``rows`` itself is in this order, too
    row_start, row_end = torch.searchsorted(rows, rows), torch.searchsorted(rows, rows, right=True)
    rank = torch.arange(rows.numel(), device=rows.device) - row_start
    selected = torch.zeros_like(rows, dtype=torch.bool)
    selected[order] = rank < (share * (row_end - row_start).double()).ceil()
    return selected


@dataclass
class SHRED(Method):
    """Self-distillation with the least probable tokens demoted: see `shred_selected` and `token_loss`."""

    title = "self-distillation with the least probable tokens demoted"
    source = "Hu et al. 2026, arXiv 2605.07482"
    formula = (
        "KL divergence from the top_k entries of the reference model's distribution, the answer's logits lowered by "
        "beta at the share of each row's tokens with the highest reference NLL; token mean"
    )
    needs = Needs(reference_nll=("forget",), reference_logits=True)
    retain_term = "none"

    share: float = param(0.5, "share of each forget row's tokens that shred demotes", most=1.0, search=(0.1, 1.0))
    beta: float = param(100.0, "amount by which the reference logit of an answer's token is lowered", zero=True)
    top_k: int = param(100, "largest reference logits that make up the target distribution")

    def select(self, reference_nll: Tensor, rows: Tensor) -> Tensor:
        """Select tokens by `shred_selected`."""
        return shred_selected(reference_nll, rows, self.share)

    def token_loss(self, logits: Tensor, targets: Tensor, reference: tuple[Tensor, Tensor]) -> Tensor:
        """Compute the KL divergence from a target distribution, ``sum_v q_v (log q_v - log p_v)``: (N,) nats.

        At selected tokens q is softmax(z_ref - beta onehot(y)), at all others p_ref, each restricted to its ``top_k``
        largest entries (or all of a smaller vocabulary) and renormalised. p is the model's whole distribution: demoted
        tokens are outside the largest entries, and only the normaliser of p lowers them. So the value is 0 if p = q; if
        q is p restricted to some entries, it is -log of their probability.

        Worked example: p = p_ref = (1/2, 3/8, 1/8), target 0, beta ln 8, top_k 2: a selected token has q = (0, 3/4,
        1/4) and the value ln 2 = 0.693147, any other q = (4/7, 3/7, 0) and ln(8/7) = 0.133531.

        Source: Hu et al. 2026 (arXiv 2605.07482). Deviations: the figure on the authors' project page removes the token
        from q; beta 100 does so up to e^-100 of its odds. A variant there also removes the other probable tokens; it is
        left out here. The authors sum over tokens; here it is a token mean. The share of 0.5 is that of their figure;
        beta and top_k are this package's.
        """
        reference_logits, selected = reference
        teacher = at_least_float32(reference_logits.detach())
        penalty = self.beta * selected[:, None].to(teacher.dtype)
        lowered = teacher.scatter_add(-1, targets[:, None], -penalty)
        kept, index = lowered.topk(min(self.top_k, lowered.shape[-1]), dim=-1)
        logq = kept.log_softmax(dim=-1)
        logp = at_least_float32(logits).log_softmax(dim=-1).gather(-1, index)
        return (logq.exp() * (logq - logp)).sum(dim=-1)
