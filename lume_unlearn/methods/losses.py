r"""The unlearning losses as pure functions of tensors.

Notation, used in every docstring. A batch has B rows (``n_rows``). Row b has labelled tokens S_b: those whose label is
not -100, each predicted from the tokens before it. All labelled tokens of a batch stand in one flat list of
N = sum_b |S_b| entries:

- ``logits`` (N, V): what the model gives at the position that predicts the token; p = softmax(logits);
- ``targets`` (N,): the id y of each token;
- ``nll`` (N,): -log p(token | tokens before it) in nats, float32 or wider;
- ``reference`` (N,): the same under the model before unlearning; a constant, no gradient;
- ``rows`` (N,): the row of each token, ascending, 0 <= rows < B.

Flat lists have no padding, so no loss here can depend on how rows are padded or packed, and tokens of the prompt (which
carry no label) cannot enter.

The functions come in two kinds. The first turn logits or hidden states into one value for each token, in float32 at
least, and never mix tokens: they can be called on one chunk of tokens after another. The others reduce values to a
loss: a sum divided by ``count``, the number of labelled tokens for token means, of rows for row means. By default it is
that of the batch given; a trainer that accumulates gradients over several batches (or processes) passes the number of
the whole optimiser step, and k batches of n then equal one of k n exactly. A batch without tokens or rows gives 0.
"""

import math
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, logsigmoid, softmax

IGNORED = -100

Count: TypeAlias = Tensor | float | None
"""What a sum is divided by: the tokens or rows of the whole optimiser step, or None for the batch's own."""


# Values of each token.


def at_least_float32(values: Tensor) -> Tensor:
    """Widen float16 and bfloat16 to float32: sums of log-probabilities drift by nats in half precision."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) in nats for each position, in float32 whatever the dtype of the logits (float64 stays).

    Args:
        logits: (N, V).
        targets: (N,) token ids.
    """
    return cross_entropy(at_least_float32(logits), targets, reduction="none")


def kl_tokens(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL divergence from the reference, ``sum_v p_ref (log p_ref - log p)``: (N,) nats; 0 at the reference.

    Worked example: p = (3/4, 1/4), p_ref = (1/2, 1/2) give ln(4/3) / 2 = 0.143841.

    Source: the "KL" baseline of TOFU (Maini et al. 2024, arXiv 2401.06121, equation 6), on retain rows. Deviation: the
    paper averages over all positions of each row and then over rows, and its code over padding as well, which makes the
    term's weight depend on the batch; here `token_mean` is to follow, over labelled tokens, like every other token
    mean. With the loss on the whole text this is the paper's set of positions.

    Args:
        logits: (N, V) of the model in training.
        reference_logits: (N, V) of the model before unlearning, same positions; no gradient.
    """
    reference_logp = log_softmax(at_least_float32(reference_logits.detach()), dim=-1)
    logp = log_softmax(at_least_float32(logits), dim=-1)
    return (reference_logp.exp() * (reference_logp - logp)).sum(dim=-1)


def undial_tokens(logits: Tensor, reference_logits: Tensor, targets: Tensor, beta: float) -> Tensor:
    """Self-distillation from adjusted logits, ``-sum_v q log p`` with q = softmax(z_ref - beta onehot(y)): (N,) nats.

    Its floor is the entropy of q, not 0; with beta 0 that is where the model starts, without gradient.

    Worked example: p = p_ref = (3/4, 1/4), target 0, beta ln 3: q = (1/2, 1/2), the value is ln(16/3) / 2 = 0.836988.

    Source: Dong et al. 2024 (arXiv 2402.10052). Deviation: the authors distil every position of the text, and other
    code prompt and padding too; here only labelled tokens.

    Args:
        logits: (N, V) of the model in training.
        reference_logits: (N, V) of the model before unlearning, same positions; no gradient.
        targets: (N,) token ids.
        beta: what the teacher's logit of the target is lowered by.
    """
    teacher = at_least_float32(reference_logits.detach())
    penalty = torch.zeros_like(teacher).scatter_(-1, targets[:, None], beta)
    return cross_entropy(at_least_float32(logits), softmax(teacher - penalty, dim=-1), reduction="none")


def ceu_tokens(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy unlearning, ``-sum_v q log p`` with q = p without the target, renormalised, as constant: (N,) nats.

    It equals H(q) - ln(1 - p_y); its gradient by the logits is p - q, so the push on the target is p_y: bounded by 1,
    gone once the token is. q is the softmax of logits with -inf for the target: dividing by 1 - p_y fails at p_y = 1.

    Worked example: p = (1/2, 3/8, 1/8), target 0: q = (0, 3/4, 1/4) and the value is 1.255482.

    Source: Yang 2025 (arXiv 2503.01224), where the first token of each answer takes no part: see `after_first`.

    Args:
        logits: (N, V), V >= 2.
        targets: (N,) token ids.
    """
    wide = at_least_float32(logits)
    others = softmax(wide.detach().scatter(-1, targets[:, None], -math.inf), dim=-1)
    return cross_entropy(wide, others, reduction="none")


def pdu_tokens(logits: Tensor) -> Tensor:
    """Squared height of the largest logit over their mean, ``(max_v z - mean_v z)^2``: (N,); 0 where all are equal.

    Worked example: logits (3, 1, 2, -2) give (3 - 1)^2 = 4.

    Source: primal-dual unlearning, Entesari et al. 2025 (arXiv 2506.05314). Deviation: the authors' code takes the
    logits at each labelled token; these are, as everywhere here, those that predict it.

    Args:
        logits: (N, V).
    """
    wide = at_least_float32(logits)
    return (wide.amax(dim=-1) - wide.mean(dim=-1)).square()


def state_distance(states: Tensor, target: Tensor) -> Tensor:
    """Mean squared distance of hidden states from a target, ``(1/d) ||h - target||^2``: (N,); see `row_mean`.

    Worked example: states (1, 2) and (0, 0), target (1, 0) give (2, 0.5).

    Source: RMU, Li et al. 2024 (arXiv 2403.03218): on forget rows the target is c times `rmu_direction`, on retain rows
    the state before unlearning.

    Args:
        states: (N, d).
        target: (d,) or (N, d); no gradient.
    """
    return (at_least_float32(states) - at_least_float32(target.detach())).square().mean(dim=-1)


# Parts of the reductions.


def row_sums(values: Tensor, rows: Tensor, n_rows: int) -> Tensor:
    """Sum of ``values`` over the labelled tokens of each row: (n_rows,), 0 for a row without any."""
    return values.new_zeros(n_rows).index_add(0, rows, values)


def _row_means(values: Tensor, rows: Tensor, n_rows: int) -> Tensor:
    """Mean over the labelled tokens of each row: (n_rows,), 0 for a row without any."""
    lengths = row_sums(torch.ones_like(values), rows, n_rows)
    return row_sums(values, rows, n_rows) / lengths.clamp(min=1)


def after_first(rows: Tensor, skip: int) -> Tensor:
    """Which labelled tokens are not among the first ``skip`` of their row: (N,) bool.

    Worked example: rows (0, 0, 0, 2), skip 1: (False, True, True, False).

    Args:
        rows: (N,), ascending.
        skip: labelled tokens to leave out at the start of each row.
    """
    first = torch.searchsorted(rows, rows)  # where each token's row begins
    return torch.arange(rows.numel(), device=rows.device) - first >= skip


def _preference(margins: Tensor, beta: float, count: Count) -> Tensor:
    """``-(2/beta) sum log sigmoid(beta margins) / count``."""
    return -(2.0 / beta) * logsigmoid(beta * margins).sum() / _or(count, margins.numel())


def _or(count: Count, default: int) -> Tensor | float:
    """The count given, or the batch's own; 1 instead of 0, so that a side without labels is 0 rather than NaN."""
    return max(default, 1) if count is None else count


# Reductions.


def token_mean(values: Tensor, count: Count = None) -> Tensor:
    """``(1/N) sum values``; of ``nll`` it is the loss of ordinary training, in nats. Values (1, 2, 6) give 3.

    Used on retain rows by gradient difference (Liu et al. 2022, arXiv 2203.12817; Maini et al. 2024, arXiv 2401.06121).
    """
    return values.sum() / _or(count, values.numel())


def row_mean(values: Tensor, rows: Tensor, n_rows: int, count: Count = None) -> Tensor:
    """Mean over rows of each row's token mean, ``(1/B) sum_b (1/|S_b|) sum_{S_b} values``; 0 for a row without tokens.

    Worked example: rows with values (1, 3) and (5) give (2 + 5) / 2 = 3.5, where the token mean is 3.

    Used by RMU on `state_distance` (Li et al. 2024, arXiv 2403.03218; the authors average over padding too) and by SUGD
    on ``nll``, with opposite signs on forget and retain rows (Premptis et al. 2025, arXiv 2503.02443).
    """
    return _row_means(values, rows, n_rows).sum() / _or(count, n_rows)


def gradient_ascent(nll: Tensor, count: Count = None) -> Tensor:
    """``-(1/N) sum nll``: ordinary training turned around; unbounded below. NLLs (1, 2, 6) give -3.

    Source: Jang et al. 2022 (arXiv 2210.01504); a baseline of TOFU (Maini et al. 2024, arXiv 2401.06121). The first
    averages over examples; this is the token mean that TOFU's and the benchmark's baselines use.
    """
    return -token_mean(nll, count)


def wga(nll: Tensor, beta: float, count: Count = None) -> Tensor:
    """Weighted gradient ascent, ``-(1/N) sum p^beta nll`` with p = exp(-nll) as constant; ascent itself for beta 0.

    Worked example: probabilities (1/2, 1/4), beta 1: -(ln 2 / 2 + ln 4 / 4) / 2 = -0.346574.

    Source: Wang et al. 2025 (arXiv 2502.19301).
    """
    return -token_mean(torch.exp(-beta * nll.detach()) * nll, count)


def satimp(nll: Tensor, beta1: float, beta2: float, count: Count = None) -> Tensor:
    """``-(1/N) sum p^beta1 (1 - p)^beta2 nll`` with p = exp(-nll) as constant; gradient ascent for (0, 0).

    Neither tokens that are certain (unless beta2 is 0) nor those that are gone (unless beta1 is 0) are pushed.

    Worked example: probabilities (1/2, 1/4), betas (1, 1): -(ln 2 / 4 + 3 ln 4 / 16) / 2 = -0.216608.

    Source: Yang et al. 2025 (arXiv 2505.11953).
    """
    constant = nll.detach()
    return -token_mean(torch.exp(-beta1 * constant) * (-torch.expm1(-constant)) ** beta2 * nll, count)


def npo(nll: Tensor, rows: Tensor, reference: Tensor, n_rows: int, beta: float, count: Count = None) -> Tensor:
    r"""Negative preference optimisation, ``-(2/beta) mean_b log sigmoid(beta sum_{S_b} (nll - reference))``.

    At the reference it is ``(2/beta) ln 2`` (13.8629 for beta 0.1) and its gradient is that of gradient ascent on the
    sequence sums; as a row is forgotten its gradient fades. Towards beta 0 it becomes gradient ascent.

    Worked example: two rows with NLL sums (3, 5), reference sums (1, 5), beta 0.1: the arguments of the sigmoid are
    (0.2, 0), -log sigmoid of them (0.598139, 0.693147), so the loss is 20 * (0.598139 + 0.693147) / 2 = 12.912860.

    Source: Zhang et al. 2024 (arXiv 2404.05868), equation 3.
    """
    return _preference(row_sums(nll - reference, rows, n_rows), beta, count)


def token_npo(nll: Tensor, reference: Tensor, beta: float, count: Count = None) -> Tensor:
    """NPO with each token a sequence of its own, ``-(2/beta) (1/N) sum log sigmoid(beta (nll - reference))``.

    Worked example: NLLs (3, 5), reference (1, 5), beta 0.1 give 12.912860, as two rows of one token under `npo`.

    Source: the system Atyaephyra of SemEval-2025 task 4 (arXiv 2503.13690). Deviations: its batches of 4 mix forget and
    retain rows, here each forget row has a retain row beside it; its KL term compares the probability of the true token
    alone, here it is `kl_tokens`.
    """
    return _preference(nll - reference, beta, count)


def simnpo(nll: Tensor, rows: Tensor, n_rows: int, beta: float, margin: float, count: Count = None) -> Tensor:
    """NPO without a reference, ``-(2/beta) mean_b log sigmoid(beta ((1/|S_b|) sum_{S_b} nll - margin))``.

    Worked example: token means (2, 1), beta 2, margin 1: arguments (2, 0), so (0.126928 + 0.693147) / 2 = 0.410038.

    Source: Fan et al. 2024 (arXiv 2410.07163). The margin stands inside the bracket as in the authors' code; the
    paper's gamma stands outside, so gamma = beta * margin. In nats per token; both are 0 in the authors' runs.
    """
    return _preference(_row_means(nll, rows, n_rows) - margin, beta, count)


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
    return _preference(lose - win, beta, count)


# Quantities beside the losses.


def rmu_direction(size: int, seed: int) -> Tensor:
    """RMU's fixed direction: (size,) float32 on the CPU, entries uniform in [0, 1), scaled to length 1.

    The seed alone decides it, so every process and every resumed run steers the same way.

    Source: Li et al. 2024 (arXiv 2403.03218).
    """
    own = torch.Generator(device="cpu").manual_seed(seed)
    direction: Tensor = torch.rand(size, generator=own, dtype=torch.float32, device="cpu")
    return direction.div_(direction.norm())


def pdu_dual(dual: float, retain_loss: float, epsilon: float, step: float) -> float:
    """The next weight of "retain loss <= epsilon", ``max(0, dual + step (retain_loss - epsilon))``; NaN stays NaN.

    Worked example: dual 100, retain loss 0.5, epsilon 0.3, step 5 give 101.

    Source: Entesari et al. 2025 (arXiv 2506.05314). Deviation: the authors' code moves it with each micro batch's loss,
    on each process by its own; here it moves once an optimiser step, by the loss of the whole step.
    """
    return max(dual + step * (retain_loss - epsilon), 0.0)  # this order: max(0.0, nan) would be 0.0


def selective_weight(retain_loss: float, average: float) -> float:
    """Retain weight ``0.3 * 6^(retain_loss - average) + 0.8``, to one decimal and within 1.2 to 2.3; NaN stays NaN.

    Worked example: half a nat over the average gives round(1.534847, 1) = 1.5.

    Source: the system SHA256 of SemEval-2025 task 4 (Agrawal & Huang 2025, arXiv 2504.12996). The bound 2.3 is that of
    the authors' code. Deviations: there each micro batch is weighed by its own loss; here a step by the loss of the
    step before, since one of several passes knows its own only when it is over. The average is over the steps of the
    first epoch (theirs divides a sum over batches by the number of rows).

    Args:
        retain_loss: of this step, in nats per token.
        average: of the first epoch; a loss up to it gives 1.2.
    """
    if retain_loss <= average:
        return 1.2
    excess = min(retain_loss - average, 1.0)  # the upper bound holds from 0.9 on; 6^1e4 would overflow
    return min(max(round(0.3 * math.pow(6.0, excess) + 0.8, 1), 1.2), 2.3)


def quadratic_rate(rate: float, minus: float, zero: float, plus: float) -> float | None:
    """The learning rate at the bottom of the parabola through three losses, ``(rate/2) (minus - plus) / curvature``.

    ``curvature = plus - 2 zero + minus``. The result is not bounded, and negative where the loss rises along the step.

    Worked example: losses (x - 2)^2 at x = -1, 0, 1 are 9, 4, 1: (1/2) * 8 / 2 = 2.

    Source: Bu et al. 2024 (arXiv 2410.22086), the automatic rate of NGDiff.

    Args:
        rate: the rate in use.
        minus: loss after a step of -rate along the update direction.
        zero: loss without a step.
        plus: loss after a step of rate.

    Returns:
        None where the parabola has no bottom or a loss is not finite: the rate in use is to stay.
    """
    curvature = plus - 2.0 * zero + minus
    if not 0.0 < curvature < math.inf:  # NaN compares as False, so this is also where a loss that is not finite ends
        return None
    return rate / 2.0 * (minus - plus) / curvature
