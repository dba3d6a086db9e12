r"""Shared by all losses: notation, the NLL, means over tokens and rows.

Notation, used in every docstring. A batch has B rows (``n_rows``). Row b has labelled tokens S_b: those whose label is
not -100, each predicted from the tokens before it. All labelled tokens of a batch are in one flat list of
N = sum_b |S_b| entries:

- ``logits`` (N, V): the model's output at the position that predicts the token; p = softmax(logits);
- ``targets`` (N,): the id y of each token;
- ``nll`` (N,): -log p(token | tokens before it) in nats, float32 or wider;
- ``reference`` (N,): the same under the reference model, without gradient;
- ``rows`` (N,): the row of each token, ascending, 0 <= rows < B.

Flat lists have no padding, so no loss here depends on how rows are padded or packed, and prompt tokens (which have no
label) cannot enter.

There are two kinds of functions. Some turn logits or hidden states into one value for each token, in float32 at least;
they never mix tokens, so they can be called on one chunk of tokens after another. The others reduce values to a loss: a
sum divided by ``count``, the number of labelled tokens for token means, of rows for row means. By default this is the
batch's own number. A trainer that accumulates gradients over micro-batches or processes passes the number of the whole
optimiser step; k batches of n then equal one of k n exactly. A batch without tokens or rows gives 0.

torch is imported inside functions, and `Tensor` is torch's for type checkers only: the registry is read by
`lume-unlearn --help`, which should not take a second.
"""

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor as Tensor
else:
    Tensor = Any

IGNORED = -100
NEVER = -1e4
"""Log-probability of an excluded token; not -inf, since -inf times 0 is NaN."""

Count: TypeAlias = Tensor | float | None
"""Divisor of a sum: the tokens or rows of the whole optimiser step, or None for the batch's own."""


def at_least_float32(values: Tensor) -> Tensor:
    """Widen float16 and bfloat16 to float32: sums of log-probabilities drift by nats in half precision."""
    return values.float() if values.dtype.itemsize < 4 else values


def token_nll(logits: Tensor, targets: Tensor, reference: None = None) -> Tensor:
    """Compute -log p(target) in nats for each position, in float32 or wider.

    Args:
        logits: (N, V).
        targets: (N,) token ids.
        reference: not used; token losses that compare with a reference have the same signature.
    """
    from torch.nn.functional import cross_entropy

    return cross_entropy(at_least_float32(logits), targets, reduction="none")


def row_sums(values: Tensor, rows: Tensor, n_rows: int) -> Tensor:
    """Sum ``values`` over the labelled tokens of each row: (n_rows,), 0 for a row without any."""
    return values.new_zeros(n_rows).index_add(0, rows, values)


def row_lengths(rows: Tensor, n_rows: int) -> Tensor:
    """Count the labelled tokens of each row, 1 instead of 0: (n_rows,)."""
    return rows.bincount(minlength=n_rows).clamp(min=1)


def row_means(values: Tensor, rows: Tensor, n_rows: int) -> Tensor:
    """Average ``values`` over the labelled tokens of each row: (n_rows,), 0 for a row without any."""
    return row_sums(values, rows, n_rows) / row_lengths(rows, n_rows)


def token_mean(values: Tensor, count: Count = None) -> Tensor:
    """Compute ``(1/N) sum values``: for ``nll`` the loss of ordinary training, in nats. Values (1, 2, 6) give 3."""
    return values.sum() / divisor(count, values.numel())


def row_mean(values: Tensor, rows: Tensor, n_rows: int, count: Count = None) -> Tensor:
    """Average each row's token mean, ``(1/B) sum_b (1/|S_b|) sum_{S_b} values``; 0 for a row without tokens.

    Worked example: rows with values (1, 3) and (5) give (2 + 5) / 2 = 3.5, where the token mean is 3.
    """
    return row_means(values, rows, n_rows).sum() / divisor(count, n_rows)


def preference(margins: Tensor, beta: float, count: Count) -> Tensor:
    """Compute ``-(2/beta) sum log sigmoid(beta margins) / count``, the form that NPO, SimNPO and DPO share."""
    from torch.nn.functional import logsigmoid

    return -(2.0 / beta) * logsigmoid(beta * margins).sum() / divisor(count, margins.numel())


def divisor(count: Count, default: int) -> Tensor | float:
    """Return ``count``, or the batch's own number; 1 instead of 0, so that a side without labels gives 0, not NaN."""
    return max(default, 1) if count is None else count


def without(logp: Tensor, tokens: Tensor) -> Tensor:
    """Remove one token at each position, and rescale the other probabilities: (n, V) log-probabilities.

    Worked example: p = (1/2, 1/3, 1/6) without token 0 gives (0, 2/3, 1/3).

    Args:
        logp: (n, V) log-probabilities.
        tokens: (n,) token ids.
    """
    return logp.scatter(-1, tokens[:, None], NEVER).log_softmax(-1)
