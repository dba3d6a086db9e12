"""Negative preference optimisation, on whole answers, on single tokens, and without a reference model."""

from dataclasses import dataclass

from lume_unlearn.methods.base import Batch, Defaults, Method, Needs, param
from lume_unlearn.methods.common import Tensor, preference, row_means, row_sums

BETA = "NPO temperature; smaller is closer to gradient ascent"


@dataclass
class NPO(Method):
    """Negative preference optimisation."""

    title = "negative preference optimisation"
    source = "Zhang et al. 2024, arXiv 2404.05868"
    formula = "-2/beta log sigmoid(beta (NLL - reference NLL)), sums over the answer"
    needs = Needs(reference_nll=("forget",))

    beta: float = param(0.1, BETA, search=(0.01, 1.0))

    def forget_loss(self, batch: Batch) -> Tensor:
        r"""Compute ``-(2/beta) mean_b log sigmoid(beta sum_{S_b} (nll - reference))``.

        At the reference model it is ``(2/beta) ln 2`` (13.8629 for beta 0.1), and its gradient is that of gradient
        ascent on the sequence sums. As a row is forgotten, its gradient goes to 0. Towards beta 0 this becomes gradient
        ascent.

        Worked example: two rows with NLL sums (3, 5), reference sums (1, 5), beta 0.1: the arguments of the sigmoid are
        (0.2, 0), -log sigmoid of them (0.598139, 0.693147), so the loss is 20 * (0.598139 + 0.693147) / 2 = 12.912860.

        Source: Zhang et al. 2024 (arXiv 2404.05868), equation 3.
        """
        rows = batch.forget
        margins = row_sums(rows.values - rows.reference, rows.rows, rows.count)
        return preference(margins, self.beta, batch.counts.rows("forget"))


@dataclass
class TokenNPO(Method):
    """NPO on single tokens."""

    name = "token-npo"
    title = "NPO on single tokens"
    source = "Bronec and Helcl 2025, arXiv 2503.13690"
    formula = "-2/beta log sigmoid(beta (NLL - reference NLL)) of each token, token mean"
    needs = Needs(reference_nll=("forget",))
    retain_term = "nll+kl"
    defaults = Defaults(num_train_epochs=20, per_device_train_batch_size=4, kl_weight=0.5)

    beta: float = param(0.5, BETA, search=(0.05, 5.0))

    def forget_loss(self, batch: Batch) -> Tensor:
        """Compute NPO with each token as a sequence, ``-(2/beta) (1/N) sum log sigmoid(beta (nll - reference))``.

        Worked example: NLLs (3, 5), reference (1, 5), beta 0.1 give 12.912860, as two rows of one token under `NPO`.

        Source: the system Atyaephyra of SemEval-2025 task 4 (arXiv 2503.13690). Deviations: its batches of 4 mix forget
        and retain rows; here each forget row is paired with a retain row. Its KL term compares the probability of the
        true token alone; here it is `kl_tokens`.
        """
        margins = batch.forget.values - batch.forget.reference
        return preference(margins, self.beta, batch.counts.tokens("forget"))


@dataclass
class SimNPO(Method):
    """NPO without a reference model."""

    title = "simple NPO, without a reference"
    source = "Fan et al. 2024, arXiv 2410.07163"
    formula = "-2/beta log sigmoid(beta (NLL - margin)), means over the answer"
    defaults = Defaults(forget_weight=0.125)

    beta: float = param(4.5, BETA, search=(0.5, 10.0))
    margin: float = param(0.0, "NLL in nats above which the forget gradient fades", zero=True)

    def forget_loss(self, batch: Batch) -> Tensor:
        """Compute NPO without a reference, ``-(2/beta) mean_b log sigmoid(beta ((1/|S_b|) sum_{S_b} nll - margin))``.

        Worked example: token means (2, 1), beta 2, margin 1: arguments (2, 0), so (0.126928 + 0.693147) / 2 = 0.410038.

        Source: Fan et al. 2024 (arXiv 2410.07163). The margin is inside the bracket as in the authors' code; the
        paper's gamma is outside, so gamma = beta * margin. The margin is in nats per token; both are 0 in their runs.
        """
        rows = batch.forget
        margins = row_means(rows.values, rows.rows, rows.count) - self.margin
        return preference(margins, self.beta, batch.counts.rows("forget"))
