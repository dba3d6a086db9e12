"""JensUn: a bounded divergence from refusals, and on retain rows from the reference model."""

import math

from lume_unlearn.methods.base import Batch, Method, Needs
from lume_unlearn.methods.common import Tensor, token_mean


def js_to_token(nll: Tensor) -> Tensor:
    """Compute the Jensen-Shannon divergence of p from the token's one-hot distribution: (N,) nats, from 0 to ln 2.

    It depends on the token's probability ``p = exp(-nll)`` alone: the mixture has (1 + p) / 2 at the token and half of
    p's probability elsewhere, so the divergence is ``ln 2 + (p ln p - (1 + p) ln(1 + p)) / 2``. The code computes the
    same from 1 - p, as ``((1 + p) ln(2 / (1 + p)) + (1 - p) ln 2 - p nll) / 2``, which is exact near p = 1. The
    gradient by the NLL is ``p (nll + ln(1 + p)) / 2``: it goes to 0 as p does.

    Worked example: p = 1/2 gives (1.5 ln(4/3) + 0.5 ln 2 - 0.5 ln 2) / 2 = 0.215762.

    Source: Singh et al. 2025 (arXiv 2509.02820), on the tokens of a refusal. Deviations: the authors' refusal is "No
    idea"; here each row gets one of the built-in refusals, as for `idk`. In the authors' code the model reads the
    forget row itself, and each token of the refusal gets a mass of 1 at every position of the text; here the model
    reads the refusal as the answer, and each labelled token is the target of its own position. The authors' learning
    rate is 8e-6; here it is the package's default, by the size of the model (1e-5 from 1 B parameters on).

    Args:
        nll: (N,) NLL of the refusals' labelled tokens.
    """
    rest = -(-nll).expm1()  # 1 - p
    return (-(2.0 - rest) * (-rest / 2).log1p() + rest * math.log(2.0) - (-nll).exp() * nll) / 2


class JensUn(Method):
    """Train on refusals with a bounded divergence: see `js_to_token`."""

    title = "Jensen-Shannon divergence from refusals"
    source = "Singh et al. 2025, arXiv 2509.02820"
    formula = "Jensen-Shannon divergence from the one-hot distribution of a refusal's next token, token mean"
    needs = Needs(alternatives="refusals", forget_rows=False)
    retain_term = "js"

    def forget_loss(self, batch: Batch) -> Tensor:
        """Average `js_to_token` over the refusals' tokens."""
        return token_mean(js_to_token(batch.alternative.values), batch.counts.tokens("alternative"))
