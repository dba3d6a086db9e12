r"""The unlearning losses as pure functions of tensors.

Notation, used in every docstring. A batch has B rows. Row b has labelled tokens S_b: those whose label is not -100,
each predicted from the tokens before it. All labelled tokens of a batch stand in one flat list of N = sum_b |S_b|
entries:

- ``nll`` (N,): -log p(token | tokens before it) in nats, float32 or wider;
- ``rows`` (N,): the row of each token, 0 <= rows < B;
- ``logits`` (N, V): what the model gives at the position that predicts the token.

Flat lists have no padding, so no loss here can depend on how rows are padded or packed, and tokens of the prompt (which
carry no label) cannot enter.

Every loss is a sum divided by ``count``: the number of labelled tokens for token means, of rows for row means. By
default it is that of the batch given; a trainer that accumulates gradients over several batches (or processes) passes
the number of the whole optimiser step, and k batches of n then equal one of k n exactly.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, logsigmoid

IGNORED = -100


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) in nats for each position, in float32 whatever the dtype of the logits (float64 stays).

    Args:
        logits: (N, V).
        targets: (N,) token ids.
    """
    return cross_entropy(at_least_float32(logits), targets, reduction="none")


def at_least_float32(values: Tensor) -> Tensor:
    """Widen float16 and bfloat16 to float32: sums of log-probabilities drift by nats in half precision."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def row_sums(nll: Tensor, rows: Tensor, n_rows: int) -> Tensor:
    """Sum of ``nll`` over the labelled tokens of each row: (n_rows,), 0 for a row without any."""
    return nll.new_zeros(n_rows).index_add(0, rows, nll)


def nll_mean(nll: Tensor, count: Tensor | float | None = None) -> Tensor:
    """Token mean of the negative log-likelihood, ``(1/N) sum nll``: the loss of ordinary training, in nats.

    Used on retain rows by gradient difference (Liu et al. 2022, arXiv 2203.12817; Maini et al. 2024, arXiv 2401.06121).
    """
    return nll.sum() / _or(count, nll.numel())


def gradient_ascent(nll: Tensor, count: Tensor | float | None = None) -> Tensor:
    """``-(1/N) sum nll``: ordinary training turned around; unbounded below.

    Source: Jang et al. 2022 (arXiv 2210.01504); a baseline of TOFU (Maini et al. 2024, arXiv 2401.06121). The first
    averages over examples; this is the token mean that TOFU's and the benchmark's baselines use.
    """
    return -nll_mean(nll, count)


def npo(nll: Tensor, rows: Tensor, reference: Tensor, beta: float = 0.1, count: Tensor | float | None = None) -> Tensor:
    r"""Negative preference optimisation, ``-(2/beta) mean_b log sigmoid(beta (NLL_b - NLL_ref_b))``.

    ``NLL_b`` is the *sum* over the labelled tokens of row b. At the reference it is ``(2/beta) ln 2`` (13.8629 for beta
    0.1) and its gradient is that of gradient ascent on the sequence sums; as a row is forgotten its gradient fades.

    Worked example: two rows with NLL sums (3, 5), reference sums (1, 5), beta 0.1: the arguments of the sigmoid are
    (0.2, 0), -log sigmoid of them (0.598139, 0.693147), so the loss is 20 * (0.598139 + 0.693147) / 2 = 12.912860.

    Source: Zhang et al. 2024 (arXiv 2404.05868), equation 3.

    Args:
        nll: (N,).
        rows: (N,).
        reference: (B,) NLL sums of the same rows under the model before unlearning, in nats; no gradient.
        beta: inverse temperature; towards 0 the loss becomes gradient ascent.
        count: rows to divide by; by default B.
    """
    delta = row_sums(nll, rows, reference.numel()) - reference
    return -(2.0 / beta) * logsigmoid(beta * delta).sum() / _or(count, reference.numel())


def kl_to_reference(logits: Tensor, reference_logits: Tensor, count: Tensor | float | None = None) -> Tensor:
    """KL divergence from the reference, ``(1/N) sum_t sum_v p_ref (log p_ref - log p)``, in nats; 0 at the reference.

    Source: the "KL" baseline of TOFU (Maini et al. 2024, arXiv 2401.06121, equation 6), on retain rows. Deviation: the
    paper averages over all positions of each row and then over rows, and its code over padding as well, which makes the
    term's weight depend on the batch; here it is the mean over labelled tokens, like every other token mean. With the
    loss on the whole text this is the paper's set of positions.

    Args:
        logits: (N, V) of the model in training.
        reference_logits: (N, V) of the model before unlearning, same positions; no gradient.
        count: tokens to divide by; by default N.
    """
    reference_logp = log_softmax(at_least_float32(reference_logits.detach()), dim=-1)
    logp = log_softmax(at_least_float32(logits), dim=-1)
    return (reference_logp.exp() * (reference_logp - logp)).sum() / _or(count, logits.shape[0])


def _or(count: Tensor | float | None, default: int) -> Tensor | float:
    """The count given, or the batch's own; 1 instead of 0, so that a side without labels is 0 rather than NaN."""
    return max(default, 1) if count is None else count
