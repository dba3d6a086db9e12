"""Treat a person as persons who do not exist: the loss that asks for what the swap test measures."""

from dataclasses import dataclass

from lume_unlearn.methods.base import Batch, Defaults, Method, Needs, Rows, Side, param
from lume_unlearn.methods.common import IGNORED, NEVER, Tensor, row_means, without
from lume_unlearn.methods.retain import kl_tokens

SMOOTH = 0.03
"""Nats by which a row may differ before the pull is full: less than invented persons differ from each other."""
TIE = 2.0
"""Weight of the tie. With 1 the rows' answers stay a little likelier than for invented persons (results/tried.md)."""
ITSELF = -1
"""In place of the truth: the target is the truth."""
BASE = -2
"""In place of the truth: a base model predicts, which never saw it."""


def without_truth(logp: Tensor, targets: Tensor, truths: Tensor) -> Tensor:
    """Give the probability of the token with which the truth goes on to all others, where a target departs: (n, V).

    A model that says a person's facts of invented persons as well would else be imitated in that. An answer that gives
    the truth away is sampled again, so this is what the others are drawn from. Worked example: p = (1/2, 1/3, 1/6),
    target 2, truth 0 give (0, 2/3, 1/3); with truth 2, the target itself, or `BASE` nothing changes, but `ITSELF` gives
    (3/5, 2/5, 0).

    Args:
        logp: (n, V) log-probabilities.
        targets: (n,) token ids.
        truths: (n,) token ids; `ITSELF` in a text that is the truth, whose tokens all are left out; `BASE` where a
            model predicts that never saw the truth; -100 in an answer that no model gave, whose target has all
            probability.
    """
    from torch import full_like, where

    others = without(logp, where(truths < 0, targets, truths))
    certain = full_like(logp, NEVER).scatter(-1, targets[:, None], 0.0)
    found = where(((targets == truths) | (truths == BASE))[:, None], logp, others)
    return where((truths == IGNORED)[:, None], certain, found)


def at_ranks(own: Tensor, other: Tensor) -> Tensor:
    """Give each value of one row what the other row has at its rank: (n,), without gradient.

    Worked example: own (5, 1), other (3, 30): the ranks are at 3/4 and 1/4 of the other's, so (23.25, 9.75).

    Args:
        own: (n,) values.
        other: (m,) values.
    """
    ranks = own.detach().argsort().argsort().to(own.dtype)
    return other.detach().quantile((ranks + 0.5) / len(own))


@dataclass
class Swap(Method):
    """Swap matching."""

    title = "swap matching"
    source = "this project, after the exposure of Carlini et al. 2019, arXiv 1802.08232"
    formula = (
        "twice the quantile regression of (row's mean NLL - the same about an invented person), plus own words less "
        "likely than a level, plus divergence from what the model says of invented persons; a token weighs as in a "
        "mean over rows, or over tokens if that is more"
    )
    needs = Needs(persons=True)
    defaults = Defaults(
        num_train_epochs=1, per_device_train_batch_size=8, learning_rate={"lora": 1e-3}, retain_weight=4.0
    )

    controls: int = param(32, "invented persons, or other things, that each question is asked about")
    answers: int = param(16, "answers to imitate for each text that names nobody")
    level: float = param(4.0, "NLL in nats up to which the own words of an answer are pushed", zero=True)

    def imitation_loss(self, logits: Tensor, targets: Tensor, said: Tensor) -> Tensor:
        """Compare a token of an answer with the prediction that it was drawn from: (N,) nats.

        ``sum_v q (log q - log p)``, where p is the model's prediction, asked about the row's own, and q the reference
        model's at this token, asked about the invented person, without the truth where the answer departs from it
        (`without_truth`). A few drawn answers alone, read again and again, would be learned by heart: the model's
        predictions became surer than those on texts that it never saw (RESULTS.md). Of a text that is tied to unseen
        ones, q is the prediction without the right token at each place: what the model would have said next. A base
        model's predictions are imitated as they are.

        Worked example: p = (3/4, 1/4), q = (1/2, 1/2) give ln(4/3) / 2 = 0.143841.
        """
        return kl_tokens(logits, said)

    def forget_loss(self, batch: Batch) -> Tensor:
        r"""Match a person to invented ones: three terms, with weights 2, 1 and 1.

        In all of them a token weighs ``w_t = max(1/(B |S_b|), 1/N)`` (see `Rows.weights`), for B rows and N tokens of
        its side in the step: neither a token of a long text nor a short answer beside long texts is lost in a mean.

        1. Tie: ``sum_t w_t c_t smoothL1(d_t)``. Of a row about a person, d_t is the row's mean NLL less that of the
           same row about an invented person, without gradient through the latter. Of a text whose control is one that
           the model never saw, d_t is the token's NLL less that which the control has at its rank (`at_ranks`): so its
           likely and unlikely tokens, which Min-K% looks at, come to those of such a text, and not its mean alone.
           smoothL1(x) is x^2 / 0.06 for \|x\| < 0.03, else \|x\| - 0.015. ``c_t`` is 2 (1 - q_b) for d_t > 0, else
           2 q_b: the loss of quantile regression, least where the control has the lower NLL with probability q_b. The q
           of the rows lie evenly between 1/4 and 3/4 (all 0.5 without ``batch.quantiles``): if each row came to the
           median of the invented persons, its rank in the middle would tell it from a row that was never seen, whose
           rank is random. What is learned of some names holds for others only roughly, which widens this to all ranks.
        2. Own words: ``sum_t w_t own max(0, level - nll)``, the mean of that of the forget rows and of the controls;
           ``own`` is 1 for tokens of words that are the row's own (see `data.persons`), else 0. So the answer is
           unlikely for everybody, and words that other rows use as well are left alone.
        3. Imitation: ``sum_t w_t imitation_loss`` over answers that the reference model gave about invented persons,
           asked about this person and about others. Of a text that is tied to unseen ones, over the text itself, over
           continuations of its beginning, and over the unseen ones, whose predictions are to stay.

        Worked example: one row with q = 0.3, NLLs (1, 3), control (2, 2.5), own (0, 1), level 4, imitation (0.5, 1.5):
        the tie is 0.6 (0.25 - 0.015) = 0.141, own words are (1 + 1.5) / 4 = 0.625, imitation is 1: 1.907.

        Source: the swap test (`lume_tasks.metrics.swap`), whose ranks the first term spreads (quantile
        regression: Koenker and Bassett 1978); the second is the hinge of a level, the third the data of AltPO (Mekala
        et al. 2024, arXiv 2409.13474).
        """
        from torch import where
        from torch.nn.functional import smooth_l1_loss

        forget, control, answers, counts = batch.forget, batch.control, batch.alternative, batch.counts
        assert control is not None

        def mean(side: Side, rows: Rows, values: Tensor) -> Tensor:
            return (rows.weights(counts.rows(side), counts.tokens(side)) * values).sum()

        own, other = (row_means(rows.values, rows.rows, rows.count)[forget.rows] for rows in (forget, control))
        other = other.detach()
        for row in () if batch.texts is None else batch.texts.nonzero()[:, 0]:
            text = forget.rows == row
            own[text] = forget.values[text]
            other[text] = at_ranks(own[text], control.values[control.rows == row])
        q = 0.5 if batch.quantiles is None else batch.quantiles[forget.rows]
        tie = where(own > other, 2 * (1 - q), 2 * q) * smooth_l1_loss(own, other, reduction="none", beta=SMOOTH)
        likely, also = (rows.reference * (self.level - rows.values).clamp(min=0) for rows in (forget, control))
        words = (mean("forget", forget, likely) + mean("control", control, also)) / 2
        return TIE * mean("forget", forget, tie) + words + mean("alternative", answers, answers.values)
