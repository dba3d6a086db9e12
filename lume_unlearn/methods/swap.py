"""Treat a person as persons who do not exist: the loss that asks for what the swap test measures."""

from dataclasses import dataclass

from lume_unlearn.methods.base import Batch, Defaults, Method, Needs, param
from lume_unlearn.methods.common import Tensor, row_means, token_mean

SMOOTH = 0.1
"""Nats by which a row may differ before the pull is full: a factor of 1.1 a token is seen by the swap test."""


@dataclass
class Swap(Method):
    """Swap matching."""

    title = "swap matching"
    source = "this project, after the exposure of Carlini et al. 2019, arXiv 1802.08232"
    formula = (
        "smooth L1 of (row's mean NLL - the same about an invented person), plus own words less likely than a level, "
        "plus NLL of what the model says of invented persons"
    )
    needs = Needs(persons=True)
    defaults = Defaults(
        num_train_epochs=1, per_device_train_batch_size=8, learning_rate={"lora": 1e-3}, retain_weight=2.0
    )

    controls: int = param(32, "invented persons for each row that names somebody")
    answers: int = param(8, "answers to imitate for each row that names nobody")
    level: float = param(4.0, "NLL in nats up to which the own words of an answer are pushed", zero=True)

    def forget_loss(self, batch: Batch) -> Tensor:
        r"""Match a person to invented ones: three terms, each with weight 1.

        1. Tie: ``(1/B) sum_b smoothL1(mean_{S_b} nll - mean_{S_b} nll_control)`` without gradient through the control,
           the same row about an invented person, or a text that the model never saw. smoothL1(x) is x^2 / 0.2 for
           \|x\| < 0.1, else \|x\| - 0.05.
        2. Own words: ``(1/N) sum own max(0, level - nll)`` over the N labelled tokens of forget rows and controls;
           ``own`` is 1 for tokens of words that are the row's own (see `data.persons`), else 0. So the answer is
           unlikely for everybody, and words that other rows use as well are left alone.
        3. Imitation: token mean of the NLL of answers that the reference model gave about invented persons, asked about
           this person and about others.

        Worked example: one row with NLLs (1, 3), control (2, 2.5), own (0, 1), level 4, imitation (0.5, 1.5): the tie
        is 0.25 - 0.05 = 0.2, own words are (1 + 1.5) / 4 = 0.625, imitation is 1: 1.825.

        Source: the swap test (`lume_tasks.metrics.swap`), whose statistic the first term makes zero on average over
        names; the second is the hinge of a level, the third the data of AltPO (Mekala et al. 2024, arXiv 2409.13474).
        """
        from torch import cat
        from torch.nn.functional import smooth_l1_loss

        forget, control, counts = batch.forget, batch.control, batch.counts
        assert control is not None
        own, other = (row_means(rows.values, rows.rows, rows.count) for rows in (forget, control))
        tie = smooth_l1_loss(own, other.detach(), reduction="sum", beta=SMOOTH) / counts.rows("forget")
        nll, words = (cat([getattr(forget, name), getattr(control, name)]) for name in ("values", "reference"))
        known = (words * (self.level - nll).clamp(min=0)).sum() / (counts.tokens("forget") + counts.tokens("control"))
        return tie + known + token_mean(batch.alternative.values, counts.tokens("alternative"))
