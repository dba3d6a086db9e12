"""Cross-entropy unlearning (CE-U): the model's own distribution without the true token as target."""

import math

from lume_unlearn.methods.common import Tensor, at_least_float32, token_mean
from lume_unlearn.methods.spec import Batch, Method, Param


def ceu_tokens(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy ``-sum_v q log p`` with q = p without the target, renormalised, held constant: (N,) nats.

    It equals H(q) - ln(1 - p_y); its gradient by the logits is p - q, so the push on the target is p_y: bounded by 1,
    and 0 once the token is forgotten. q is the softmax of logits with -inf for the target: dividing by 1 - p_y fails at
    p_y = 1.

    Worked example: p = (1/2, 3/8, 1/8), target 0: q = (0, 3/4, 1/4) and the value is 1.255482.

    Source: Yang 2025 (arXiv 2503.01224), where the first token of each answer takes no part: see `after_first`.

    Args:
        logits: (N, V), V >= 2.
        targets: (N,) token ids.
    """
    from torch.nn.functional import cross_entropy

    wide = at_least_float32(logits)
    others = wide.detach().scatter(-1, targets[:, None], -math.inf).softmax(dim=-1)
    return cross_entropy(wide, others, reduction="none")


def after_first(rows: Tensor, skip: int) -> Tensor:
    """Return which labelled tokens are not among the first ``skip`` of their row: (N,) bool.

    Worked example: rows (0, 0, 0, 2), skip 1: (False, True, True, False).
    """
    import torch

    row_start = torch.searchsorted(rows, rows)
    return torch.arange(rows.numel(), device=rows.device) - row_start >= skip


def _forget(batch: Batch) -> Tensor:
    skip = int(batch.params["skip"])
    count = max(sum(max(tokens - skip, 0) for tokens in batch.counts.forget), 1)
    rows = batch.forget
    return token_mean(rows.values * after_first(rows.rows, skip), count)


METHODS = (
    Method(
        "ceu",
        "cross-entropy unlearning",
        "Yang 2025, arXiv 2503.01224",
        "cross entropy with the model's own distribution without the answer's token, token mean",
        _forget,
        retain="none",
        per_token_loss=lambda params, logits, targets, reference: ceu_tokens(logits, targets),
        params={"skip": Param(1, "first tokens of each answer that ceu leaves out", zero=True, whole=True)},
    ),
)
