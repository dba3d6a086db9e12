"""Methods that prefer another answer: DPO with alternatives or refusals, and training on refusals."""

from dataclasses import dataclass

from lume_unlearn.methods.base import Batch, Defaults, Method, Needs, param
from lume_unlearn.methods.common import Count, Tensor, preference, row_sums, token_mean


def dpo(
    nll: Tensor,
    rows: Tensor,
    reference: Tensor,
    alternative_nll: Tensor,
    alternative_rows: Tensor,
    alternative_reference: Tensor,
    n_rows: int,
    beta: float,
    count: Count = None,
) -> Tensor:
    """Preference for another answer, ``-(2/beta) mean_b log sigmoid(beta (lose_b - win_b))``.

    ``lose_b`` sums (nll - reference) over forget row b, ``win_b`` over the alternative of that row: a refusal (IdkDPO)
    or other plausible facts (AltPO, Mekala et al. 2024, arXiv 2409.13474). At the reference it is ``(2/beta) ln 2``.

    Worked example: lose (2, 0), win (-1, 0), beta 0.1: 20 * (0.554355 + 0.693147) / 2 = 12.475024.

    Source: Rafailov et al. 2023 (arXiv 2305.18290), equation 7. Deviation: the factor is 2/beta where theirs is 1; this
    is the scale of `npo`, so that the weights of the two methods compare.

    Args:
        nll: (N,) of the forget rows.
        rows: (N,).
        reference: (N,).
        alternative_nll: (M,) of the alternatives' labelled tokens.
        alternative_rows: (M,) the forget row that each token's alternative belongs to, 0 <= b < B.
        alternative_reference: (M,).
        n_rows: forget rows B, each with one alternative.
        beta: inverse temperature.
        count: forget rows to divide by.
    """
    lose = row_sums(nll - reference, rows, n_rows)
    win = row_sums(alternative_nll - alternative_reference, alternative_rows, n_rows)
    return preference(lose - win, beta, count)


@dataclass
class DPO(Method):
    """Prefer the alternatives of a file: see `dpo`."""

    title = "direct preference optimisation"
    source = "Rafailov et al. 2023, arXiv 2305.18290"
    formula = "-2/beta log sigmoid(beta (gain of the alternative - gain of the answer)), sums; alternatives from a file"
    needs = Needs(reference_nll=("forget", "alternative"), alternatives="file")

    beta: float = param(0.1, "DPO temperature; smaller lets the model move further away", search=(0.01, 1.0))

    def forget_loss(self, batch: Batch) -> Tensor:
        """`dpo` of the forget rows and their alternatives."""
        lose, win = batch.forget, batch.alternative
        answers = (lose.values, lose.rows, lose.reference, win.values, win.rows, win.reference)
        return dpo(*answers, lose.count, self.beta, batch.counts.rows("forget"))


class IdkDPO(DPO):
    """Prefer a refusal: see `dpo`."""

    name = "idk-dpo"
    title = "DPO towards refusals"
    source = "Maini et al. 2024, arXiv 2401.06121"
    formula = "as dpo, with a refusal as the alternative"
    needs = Needs(reference_nll=("forget", "alternative"), alternatives="refusals")


class AltPO(DPO):
    """Prefer other plausible answers: see `dpo`."""

    title = "DPO towards generated alternatives"
    source = "Mekala et al. 2024, arXiv 2409.13474"
    formula = "as dpo, with alternatives that the model generates (`lume-unlearn alternatives`)"
    defaults = Defaults(num_train_epochs=2, learning_rate={"full": 5e-5})


class Idk(Method):
    """Train on refusals."""

    title = "training on refusals"
    source = "Maini et al. 2024, arXiv 2401.06121"
    formula = "NLL of a refusal, token mean"
    needs = Needs(alternatives="refusals", forget_rows=False)

    def forget_loss(self, batch: Batch) -> Tensor:
        """Average the NLL over the refusals' tokens."""
        return token_mean(batch.alternative.values, batch.counts.tokens("alternative"))
