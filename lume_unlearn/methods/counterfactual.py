"""Aim at the retrained model: a teacher that does not know the forget rows, and the level of unseen text.

The teacher's probability of the right token is that of the reference model in contexts where names, places, dates and
numbers are substituted (see `data.substitutes`), the mean over several; in prose, that after the last few tokens alone.
The other probabilities are the reference model's in the row's own context, rescaled (see `blended`).
"""

from dataclasses import dataclass
from typing import Literal

from lume_unlearn.methods.base import Batch, Method, Needs, param
from lume_unlearn.methods.common import Tensor, at_least_float32, row_means, token_mean, without
from lume_unlearn.methods.retain import js_tokens, kl_tokens

MOST = 1 - 1e-6
"""The largest probability of the right token, so that other tokens keep some."""


def swapped(logp: Tensor, targets: Tensor, substitute_ids: Tensor) -> Tensor:
    """Exchange the log-probabilities of each target and of its substitute in the context: (n, V).

    So a repeated name gets the probability of its repeated substitute. Worked example: p = (1/2, 1/3, 1/6), target 0,
    substitute 2 give (1/6, 1/3, 1/2); substitute 0, the target itself, changes nothing.

    Args:
        logp: (n, V).
        targets: (n,) token ids.
        substitute_ids: (n,) token ids.
    """
    own, other = targets[:, None], substitute_ids[:, None]
    return logp.scatter(-1, own, logp.gather(-1, other)).scatter(-1, other, logp.gather(-1, own))


def blended(logp: Tensor, targets: Tensor, right: Tensor) -> Tensor:
    """Set the probabilities of the right tokens, and rescale those of all other tokens: (n, V).

    Worked example: p = (1/2, 1/3, 1/6), target 0, right ln(1/4) give (1/4, 1/2, 1/4).

    Args:
        logp: (n, V) log-probabilities.
        targets: (n,) ids of the right tokens.
        right: (n,) their log-probabilities.
    """
    from torch import log1p

    right = right[:, None].to(logp.dtype)
    return (without(logp, targets) + log1p(-right.exp().clamp(max=MOST))).scatter(-1, targets[:, None], right)


@dataclass
class Level(Method):
    """Match the NLL of each forget row to the level of unseen text: see `forget_loss`.

    Without a teacher (``contexts`` 0) the level of every row is the NLL of the unseen texts.
    """

    title = "level matching"
    source = "after Wang et al. 2023, arXiv 2305.06535"
    formula = (
        "smooth L1 of (mean NLL of the row - its level), mean over rows; the level is the teacher's NLL, or that of "
        "--unseen texts"
    )
    needs = Needs(teacher=True)

    contexts: int = param(4, "contexts with substituted words; the teacher averages its predictions", zero=True)

    def forget_loss(self, batch: Batch) -> Tensor:
        r"""Match each row's mean NLL to a level: ``(1/B) sum_b smoothL1(mean_{S_b} nll - mean_{S_b} teacher - shift)``.

        smoothL1(x) is x^2/2 for \|x\| < 1, else \|x\| - 1/2. The loss is two-sided: a row becomes neither more nor less
        likely than unseen text.

        Worked example: row means 2 and 5, levels 4 and 4.5: (1.5 + 0.125) / 2 = 0.8125.

        Source: the idea of KGA (Wang et al. 2023, arXiv 2305.06535), which matches the gap on forget rows to that on
        unseen rows. Deviation: one model's NLL instead of two models' gap, and smooth L1.

        The trainer measures the shift: the change of the NLL of unseen text since the start, in nats a token; without a
        teacher, whose NLL is then 0, it is that NLL itself.
        """
        from torch.nn.functional import smooth_l1_loss

        rows = batch.forget
        assert rows.nll is not None
        means, levels = (row_means(values, rows.rows, rows.count) for values in (rows.nll, rows.reference))
        levels = (levels + batch.state.get("shift", 0.0)).detach()
        return smooth_l1_loss(means, levels, reduction="sum") / batch.counts.rows("forget")


@dataclass
class Counterfactual(Level):
    """Distil from a teacher that does not know the forget rows: see `token_loss`."""

    title = "distillation from a counterfactual teacher"
    source = "Liu et al. 2024, arXiv 2407.16997"
    formula = (
        "divergence from the reference model's prediction, in which the right token has its probability with "
        "substituted words, token mean; level_weight times the loss of `level`"
    )

    blend: bool = param(True, "take from the teacher only the probability of the right token")
    divergence: Literal["kl", "reverse", "js"] = param("kl", "divergence from the teacher")
    level_weight: float = param(0.0, "weight of the loss of level, which is added to the divergence", zero=True)

    def __post_init__(self) -> None:
        """Check the hyperparameters; ask for the NLL of forget tokens if the loss of `level` has a weight."""
        super().__post_init__()
        object.__setattr__(self, "needs", Needs(teacher=True, blend=self.blend, nll=self.level_weight > 0))

    def token_loss(self, logits: Tensor, targets: Tensor, teacher: Tensor) -> Tensor:
        """Divergence between teacher q and model p, each token: (N,) nats; 0 where they are equal.

        "kl" is ``sum_v q (log q - log p)``, "reverse" is ``sum_v p (log p - log q)``, and "js" the Jensen-Shannon
        divergence ``(KL(q || m) + KL(p || m)) / 2`` with m = (p + q) / 2, at most ln 2.

        Worked example: p = (3/4, 1/4), q = (1/2, 1/2): 0.143841, 0.130812 and 0.033822.

        Source: Liu et al. 2024 (arXiv 2407.16997), where the teacher is averaged over substitutes of one name and the
        divergence is "kl". Deviations: places, dates and numbers are substituted as well as names; with ``blend`` only
        the right token's probability is the average, since on a real model this is nearer to the retrained model
        (RESULTS.md, "Teachers of `counterfactual`").
        """
        if self.divergence == "kl":
            return kl_tokens(logits, teacher)  # log-probabilities are logits of themselves
        if self.divergence == "js":
            return js_tokens(logits, teacher)
        logp = at_least_float32(logits).log_softmax(dim=-1)
        return (logp.exp() * (logp - at_least_float32(teacher.detach()))).sum(dim=-1)

    def forget_loss(self, batch: Batch) -> Tensor:
        """Add the token mean of the divergence and ``level_weight`` times the loss of `level`."""
        loss = token_mean(batch.forget.values, batch.counts.tokens("forget"))
        return loss + self.level_weight * super().forget_loss(batch) if self.level_weight else loss
