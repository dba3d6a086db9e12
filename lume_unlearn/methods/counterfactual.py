"""Aim at the retrained model: a teacher that does not know the forget rows, and the level of unseen text.

The teacher is the reference model in a context where names, places, dates and numbers are substituted (see
`data.substitutes`), averaged over several contexts, or from which all but the last tokens are missing.
"""

from collections.abc import Mapping
from typing import Any

from lume_unlearn.methods.common import Count, Tensor, at_least_float32, divisor, row_means
from lume_unlearn.methods.retain import js_tokens, kl_tokens
from lume_unlearn.methods.spec import Batch, Method, Param

DIVERGENCES = ("kl", "reverse", "js")


def swapped(logp: Tensor, targets: Tensor, others: Tensor) -> Tensor:
    """Exchange the log-probabilities of each target and of the token that took its place in the context: (n, V).

    So a repeated name keeps the probability with which its substitute was repeated. Worked example: p = (1/2, 1/3,
    1/6), target 0, other 2 give (1/6, 1/3, 1/2); other 0, the target itself, changes nothing.

    Args:
        logp: (n, V).
        targets: (n,) token ids.
        others: (n,) token ids.
    """
    own, other = targets[:, None], others[:, None]
    return logp.scatter(-1, own, logp.gather(-1, other)).scatter(-1, other, logp.gather(-1, own))


def divergence_tokens(logits: Tensor, teacher: Tensor, kind: str) -> Tensor:
    """Divergence between teacher q and model p, each token: (N,) nats; 0 where they are equal.

    "kl" is ``sum_v q (log q - log p)``, "reverse" is ``sum_v p (log p - log q)``, and "js" the Jensen-Shannon
    divergence ``(KL(q || m) + KL(p || m)) / 2`` with m = (p + q) / 2, at most ln 2.

    Worked example: p = (3/4, 1/4), q = (1/2, 1/2): 0.143841, 0.130812 and 0.033822.

    Source: Liu et al. 2024 (arXiv 2407.16997), where the teacher is averaged over substitutes of one name and the
    divergence is "kl". Deviation: names, places, dates and numbers are substituted, not the person's name alone.

    Args:
        logits: (N, V) of the model in training.
        teacher: (N, V) log-probabilities, without gradient.
        kind: one of `DIVERGENCES`.
    """
    if kind == "kl":
        return kl_tokens(logits, teacher)  # log-probabilities are logits of themselves
    if kind == "js":
        return js_tokens(logits, teacher)
    logp = at_least_float32(logits).log_softmax(dim=-1)
    return (logp.exp() * (logp - at_least_float32(teacher.detach()))).sum(dim=-1)


def level_loss(
    nll: Tensor, rows: Tensor, n_rows: int, teacher: Tensor, shift: float = 0.0, count: Count = None
) -> Tensor:
    r"""Match each row's mean NLL to a level: ``(1/B) sum_b smoothL1(mean_{S_b} nll - mean_{S_b} teacher - shift)``.

    smoothL1(x) is x^2/2 for \|x\| < 1, else \|x\| - 1/2: the loss pulls from both sides, so that a row is neither
    remembered nor forgotten more than text that was never seen.

    Worked example: row means 2 and 5, levels 4 and 4.5: (1.5 + 0.125) / 2 = 0.8125.

    Source: the idea of KGA (Wang et al. 2023, arXiv 2305.06535), which matches the gap on forget rows to that on unseen
    rows. Deviation: one model's NLL instead of two models' gap, and smooth L1.

    Args:
        nll: (N,) nats of the model in training.
        rows: (N,) row of each token.
        n_rows: B.
        teacher: (N,) the level of each token: the teacher's NLL, or 0.
        shift: nats a token added to every level: how far the NLL of unseen text has moved since the start, or without
            a teacher that NLL itself.
        count: rows of the whole optimiser step.
    """
    from torch.nn.functional import smooth_l1_loss

    means, levels = row_means(nll, rows, n_rows), row_means(teacher, rows, n_rows) + shift
    return smooth_l1_loss(means, levels.detach(), reduction="sum") / divisor(count, n_rows)


def _level(batch: Batch, nll: Tensor) -> Tensor:
    rows, count = batch.forget, batch.counts.rows("forget")
    return level_loss(nll, rows.rows, rows.count, rows.reference, batch.params.get("shift", 0.0), count)


def _counterfactual(batch: Batch) -> Tensor:
    loss = batch.forget.values.sum() / batch.counts.tokens("forget")
    if batch.forget.nll is not None:
        loss = loss + batch.params["level_weight"] * _level(batch, batch.forget.nll)
    return loss


def _divergence(params: Mapping[str, Any], logits: Tensor, targets: Tensor, teacher: Tensor) -> Tensor:
    return divergence_tokens(logits, teacher, params["divergence"])


CONTEXTS = "contexts with substituted words that the teacher's prediction is averaged over"
WINDOW = (
    "last tokens from which the teacher predicts rows of prose, where substitutes leave too much to recognise; 0: it "
    "reads them with substitutes, too"
)

METHODS = (
    Method(
        "counterfactual",
        "distillation from a counterfactual teacher",
        "Liu et al. 2024, arXiv 2407.16997",
        "divergence from the reference model's prediction with substituted words, token mean; level_weight times the "
        "loss of `level`",
        _counterfactual,
        per_token_loss=_divergence,
        teacher=True,
        nll=lambda params: bool(params["level_weight"]),
        params={
            "contexts": Param(4, CONTEXTS, whole=True, zero=True),
            "window": Param(0, WINDOW, whole=True, zero=True),
            "divergence": Param("kl", "divergence from the teacher", choices=DIVERGENCES),
            "level_weight": Param(0.0, "weight of the loss of level beside the divergence", zero=True),
        },
    ),
    Method(
        "level",
        "level matching",
        "after Wang et al. 2023, arXiv 2305.06535",
        "smooth L1 of (mean NLL of the row - its level), mean over rows; the level is the teacher's NLL, or that of "
        "--unseen texts",
        lambda batch: _level(batch, batch.forget.values),
        teacher=True,
        params={
            "contexts": Param(4, CONTEXTS, whole=True, zero=True),
            "window": Param(0, WINDOW, whole=True, zero=True),
        },
    ),
)
