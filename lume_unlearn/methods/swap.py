"""Swap matching: make a person look to the model like a person who does not exist, as the swap test measures it."""

from dataclasses import dataclass

from lume_unlearn.methods.base import Batch, Defaults, Method, Needs, Rows, Side, param
from lume_unlearn.methods.common import IGNORED, NEVER, Tensor, row_means, without
from lume_unlearn.methods.retain import kl_tokens

SMOOTH = 0.03
"""Half width in nats of the quadratic part of the smooth L1 loss: less than invented persons differ from each other."""
TIE = 2.0
"""Weight of the tie. With 1 the answers stay a little likelier for the true person than for invented ones
(results/tried.md)."""
ITSELF = -1
"""Mark instead of the true token: the target is the true token."""
BASE = -2
"""Mark instead of the true token: a base model predicts, which never saw the row."""


def without_truth(logp: Tensor, targets: Tensor, truths: Tensor) -> Tensor:
    """Remove the true token from predictions that differ from it, and rescale the other probabilities: (n, V).

    Many models tell a person's facts of invented persons as well; without this, the model in training would imitate
    that. Answers that give the truth away are sampled again, so the result is the distribution of the answers that
    remain.

    Worked example: p = (1/2, 1/3, 1/6), target 2. True token 0 gives (0, 2/3, 1/3). True token 2, which is the target,
    and `BASE` change nothing. `ITSELF` gives (3/5, 2/5, 0).

    Args:
        logp: (n, V) log-probabilities.
        targets: (n,) token ids of the answer to imitate.
        truths: (n,) ids of the true tokens, or a mark: `ITSELF` if the answer is the true text, so each target is
            removed; `BASE` if the predictions are those of a model that never saw the row; -100 if no model gave the
            answer, so the target gets probability 1.
    """
    from torch import full_like, where

    others = without(logp, where(truths < 0, targets, truths))
    certain = full_like(logp, NEVER).scatter(-1, targets[:, None], 0.0)
    found = where(((targets == truths) | (truths == BASE))[:, None], logp, others)
    return where((truths == IGNORED)[:, None], certain, found)


def log_odds(nll: Tensor) -> Tensor:
    """Return log(p / (1 - p)) of tokens with the given NLLs: ``-log(exp(nll) - 1)``, from -50 to 11.5.

    Its gradient to the token's logit is 1 at every p, that of the NLL is 1 - p. So a token that the model is certain of
    is pushed as hard as any other. 1e-5 is added to the argument of the logarithm, since float32 tells no larger p from
    1. NLLs above 50 count as 50, since exp would overflow.

    Worked example: NLLs (1, 0.1, 0) give (-0.541331, 2.252073, 11.512925).
    """
    return -(nll.clamp(0, 50).expm1() + 1e-5).log()


def at_ranks(own: Tensor, other: Tensor) -> Tensor:
    """Return, for each value of one row, the quantile of the other row at the same relative rank: (n,), no gradient.

    Worked example: own (5, 1), other (3, 30): the relative ranks are 3/4 and 1/4, so (23.25, 9.75).

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
        "2 times the quantile regression loss of (mean NLL of the row - the same about an invented person) + hinge "
        "max(0, log-odds - log-odds at the level) of words that only this row has + KL divergence from the reference "
        "model's answers about invented persons; a token has its weight in a mean over rows or over tokens, the larger "
        "of the two"
    )
    needs = Needs(persons=True)
    defaults = Defaults(
        num_train_epochs=1, per_device_train_batch_size=8, learning_rate={"lora": 1e-3}, retain_weight=4.0
    )

    controls: int = param(32, "invented persons, or substitutes for other things, that each question is asked about")
    answers: int = param(16, "answers to imitate for each text that names nobody")
    level: float = param(4.0, "NLL in nats up to which the words that only this row has are pushed", zero=True)

    def imitation_loss(self, logits: Tensor, targets: Tensor, said: Tensor) -> Tensor:
        """Compute the KL divergence from the prediction that each token of an answer was sampled from: (N,) nats.

        ``sum_v q (log q - log p)``. p is the prediction of the model in training. q is that of the reference model at
        the same token of its answer about an invented person, without the true token where the answer first differs
        from the truth (`without_truth`). The NLL of a few sampled answers would be memorised: predictions then became
        surer than those on unseen texts (RESULTS.md). If the answer is the forget text itself, q is the reference
        model's prediction without the right token at each position, or a base model's prediction, unchanged.

        Worked example: p = (3/4, 1/4), q = (1/2, 1/2) give ln(4/3) / 2 = 0.143841.
        """
        return kl_tokens(logits, said)

    def forget_loss(self, batch: Batch) -> Tensor:
        r"""Match a person to invented persons. Three terms with weights 2, 1 and 1.

        Each term is a weighted sum over tokens. The weight of a token is ``w_t = max(1/(B |S_b|), 1/N)`` (see
        `Rows.weights`), for B rows and N tokens of its side in the step, so that neither a short answer nor a token of
        a long text gets a negligible weight.

        1. Tie: ``sum_t w_t c_t smoothL1(d_t)``. For a row about a person, d_t is the mean NLL of the row minus that of
           the same row about an invented person, without gradient through the latter. For a text whose control is an
           unseen text, d_t is the NLL of the token minus the quantile of the control's NLLs at the same relative rank
           (`at_ranks`). This matches likely and unlikely tokens, which Min-K% compares, and not the mean alone.
           smoothL1(x) is x^2 / 0.06 for \|x\| < 0.03, else \|x\| - 0.015. ``c_t`` is 2 (1 - q_b) for d_t > 0, else
           2 q_b. This is quantile regression: it has its minimum where the control has the lower NLL with probability
           q_b. The q of the rows are evenly spaced between 1/4 and 3/4 (all 0.5 without ``batch.quantiles``). If every
           row were matched to the median, a rank in the middle would distinguish it from an unseen row, whose rank is
           uniform. What the model learns for some names holds only roughly for others, which spreads the ranks
           further.
        2. Own words: ``sum_t w_t own max(0, log_odds(nll) - log_odds(level))``, averaged over forget rows and controls.
           ``own`` is 1 for tokens of words that only this row has (see `data.persons`), else 0. So the answer becomes
           unlikely for everybody, and words that other rows use keep their probability. With NLLs instead of log-odds,
           certain tokens have no gradient: codes became unlikely at their first token alone (RESULTS.md).
        3. Imitation: ``sum_t w_t imitation_loss`` over answers that the reference model gave about invented persons.
           The model in training is asked about this person, and about invented ones. For a text that is tied to unseen
           texts, the answers are continuations of its beginning, the text itself, and unseen texts, on which the
           predictions are kept.

        Worked example: one row with q = 0.3, NLLs (1, 3), control (2, 2.5), own (0, 1), level 4, imitation (0.5, 1.5):
        the tie is 0.6 (0.25 - 0.015) = 0.141, own words are (1.032583 + 1.567164) / 4 = 0.649937, imitation is 1:
        1.931937.

        Source: the swap test (`lume_tasks.metrics.swap`), whose ranks the first term spreads (quantile regression:
        Koenker and Bassett 1978). The second term is a hinge; the third uses the data of AltPO (Mekala et al. 2024,
        arXiv 2409.13474).
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
        level = log_odds(forget.values.new_tensor(self.level))
        likely, also = (rows.reference * (log_odds(rows.values) - level).clamp(min=0) for rows in (forget, control))
        words = (mean("forget", forget, likely) + mean("control", control, also)) / 2
        return TIE * mean("forget", forget, tie) + words + mean("alternative", answers, answers.values)
