"""Methods that prefer another answer: DPO with alternatives or refusals, and training on refusals."""

from dataclasses import dataclass

from lume_unlearn.methods.base import Batch, Defaults, Method, Needs, param
from lume_unlearn.methods.common import Tensor, preference, row_sums, token_mean


@dataclass
class DPO(Method):
    """Prefer the alternatives of a file."""

    title = "direct preference optimisation"
    source = "Rafailov et al. 2023, arXiv 2305.18290"
    formula = "-2/beta log sigmoid(beta (gain of the alternative - gain of the answer)), sums; alternatives from a file"
    needs = Needs(reference_nll=("forget", "alternative"), alternatives="file")

    beta: float = param(0.1, "DPO temperature; smaller lets the model move further away", search=(0.01, 1.0))

    def forget_loss(self, batch: Batch) -> Tensor:
        """Compute the preference for another answer, ``-(2/beta) mean_b log sigmoid(beta (lose_b - win_b))``.

        ``lose_b`` sums (nll - reference) over forget row b, ``win_b`` over the alternative of that row: a refusal
        (IdkDPO) or other plausible facts (AltPO, Mekala et al. 2024, arXiv 2409.13474). At the reference model it
        is ``(2/beta) ln 2``.

        Worked example: lose (2, 0), win (-1, 0), beta 0.1: 20 * (0.554355 + 0.693147) / 2 = 12.475024.

        Source: Rafailov et al. 2023 (arXiv 2305.18290), equation 7. Deviation: the factor is 2/beta where theirs is 1;
        this is the scale of `NPO`, so that weights can be compared.
        """
        lose, win = (row_sums(r.values - r.reference, r.rows, r.count) for r in (batch.forget, batch.alternative))
        return preference(lose - win, self.beta, batch.counts.rows("forget"))


class IdkDPO(DPO):
    """Prefer a refusal."""

    name = "idk-dpo"
    title = "DPO towards refusals"
    source = "Maini et al. 2024, arXiv 2401.06121"
    formula = "as dpo, with a refusal as the alternative"
    needs = Needs(reference_nll=("forget", "alternative"), alternatives="refusals")


class AltPO(DPO):
    """Prefer other plausible answers."""

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
