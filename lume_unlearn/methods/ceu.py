"""Cross-entropy unlearning (CE-U): the model's own distribution without the true token as target."""

import math
from dataclasses import dataclass

from lume_unlearn.methods.base import Batch, Method, param
from lume_unlearn.methods.common import Tensor, at_least_float32, token_mean


def after_first(rows: Tensor, skip: int) -> Tensor:
    """Return which labelled tokens are not among the first ``skip`` of their row: (N,) bool.

    Worked example: rows (0, 0, 0, 2), skip 1: (False, True, True, False).
    """
    import torch

    row_start = torch.searchsorted(rows, rows)
    return torch.arange(rows.numel(), device=rows.device) - row_start >= skip


@dataclass
class CEU(Method):
    """Cross-entropy unlearning: see `token_loss`."""

    title = "cross-entropy unlearning"
    source = "Yang 2025, arXiv 2503.01224"
    formula = "cross entropy with the model's own distribution without the answer's token, token mean"
    retain_term = "none"

    skip: int = param(1, "first tokens of each answer that ceu leaves out", zero=True)

    def token_loss(self, logits: Tensor, targets: Tensor, reference: None) -> Tensor:
        """Compute the cross entropy ``-sum_v q log p``; q is p without the target, renormalised, constant: (N,) nats.

        It equals H(q) - ln(1 - p_y). Its gradient by the logits is p - q, so the push on the target is p_y: bounded by
        1, and 0 once the token is forgotten. q is the softmax of logits with -inf for the target, since dividing by
        1 - p_y fails at p_y = 1.

        Worked example: p = (1/2, 3/8, 1/8), target 0: q = (0, 3/4, 1/4) and the value is 1.255482.

        Source: Yang 2025 (arXiv 2503.01224), where the first token of each answer is left out: see `after_first`.
        """
        from torch.nn.functional import cross_entropy

        wide = at_least_float32(logits)
        others = wide.detach().scatter(-1, targets[:, None], -math.inf).softmax(dim=-1)
        return cross_entropy(wide, others, reduction="none")

    def forget_loss(self, batch: Batch) -> Tensor:
        """Average over the tokens that `after_first` selects."""
        count = max(sum(max(tokens - self.skip, 0) for tokens in batch.counts.forget), 1)
        return token_mean(batch.forget.values * after_first(batch.forget.rows, self.skip), count)
