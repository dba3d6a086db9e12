"""A log-likelihood that keeps its tokens' values: attacks and memorisation metrics need them from one forward pass."""

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# Logits that become log-probabilities at once: as many as suit a CPU's cache or a GPU.
_CHUNK = {"cpu": 2**16}
_CHUNK_GPU = 2**25
_FLOOR = -1e4  # nats; replaces minus infinity, which times its probability 0 would be NaN


class TokenScores(float):
    """Sum of the log-probabilities of a continuation in nats, with the values of each token.

    The harness treats it as a number. Filters, caches, sample logs and other ranks receive the values too.
    """

    logprobs: Floats  # (n,): log p(token | tokens before it), float32
    mean: Floats | None  # (n,): expectation of log p under p itself; None if the backend does not give it
    variance: Floats | None  # (n,): variance of log p under p, not below 0
    greedy: NDArray[np.bool_]  # (n,): the token is the most probable one
    grad_norm: float | None  # mean over parameter tensors of the norm of the mean token loss's gradient, if asked for

    def __new__(
        cls,
        logprobs: Floats,
        mean: Floats | None,
        variance: Floats | None,
        greedy: NDArray[np.bool_],
        grad_norm: float | None = None,
    ) -> "TokenScores":
        """Sum the log-probabilities in float64 and keep the arrays, each of shape (n,)."""
        scores = super().__new__(cls, logprobs.sum(dtype=np.float64))
        scores.logprobs = logprobs
        scores.mean = mean
        scores.variance = variance
        scores.greedy = greedy
        scores.grad_norm = grad_norm
        return scores

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the arrays in pickles (caches, and results that travel between ranks)."""
        return TokenScores, (self.logprobs, self.mean, self.variance, self.greedy, self.grad_norm)


def token_statistics(
    logits: torch.Tensor, positions: torch.Tensor, targets: torch.Tensor
) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
    """Score the target token of each position in float32, for any dtype of logits, in chunks of bounded size.

    ``logits`` is (m, vocabulary); ``positions`` (n,) are the rows of it whose ``targets`` (n,) are scored. A row can be
    scored several times, for several targets.

    Returns:
        Four arrays of shape (n,): log-probability of the target; mean and variance of the log-probability under the
        model's own distribution, ``sum_v p_v log p_v`` and ``sum_v p_v (log p_v - mean)^2``; whether the target is the
        most probable token.
    """
    size = max(1, _CHUNK.get(logits.device.type, _CHUNK_GPU) // logits.shape[-1])
    chunks = zip(torch.split(positions, size), torch.split(targets, size), strict=True)
    parts = [_chunk_statistics(logits[where], wanted) for where, wanted in chunks]
    logprobs, mean, variance, greedy = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
    return logprobs, mean, variance, greedy


def _chunk_statistics(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    logprobs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    picked = logprobs.gather(1, targets[:, None])[:, 0]
    greedy = logprobs.argmax(-1) == targets
    probabilities = logprobs.exp()
    logprobs.clamp_(min=_FLOOR)
    mean = torch.linalg.vecdot(probabilities, logprobs)
    # Around the mean: E[x^2] - E[x]^2 loses its digits if the distribution is flat.
    logprobs.sub_(mean[:, None]).square_()
    return picked, mean, torch.linalg.vecdot(probabilities, logprobs), greedy
