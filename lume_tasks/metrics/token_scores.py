"""A log-likelihood that remembers its tokens: what attacks and memorisation metrics need, out of one forward pass."""

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# Numbers held at once while logits become log-probabilities: what a CPU keeps in its cache, what keeps a GPU busy.
_CHUNK = {"cpu": 2**16}
_CHUNK_GPU = 2**25
_FLOOR = -1e4  # nats; stands for minus infinity, whose product with its probability 0 would not be 0


class TokenScores(float):
    """Sum of the log-probabilities of a continuation in nats, with what lies behind the sum, one entry a token.

    To the harness it is the number that it expects; filters, caches, sample logs and ranks pass it on whole.
    """

    logprobs: Floats  # (n,): log p(token | tokens before it), float32
    mean: Floats | None  # (n,): expectation of log p under p itself; None where the backend does not tell
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
        """Take arrays of shape (n,); the sum is taken in float64."""
        scores = super().__new__(cls, logprobs.sum(dtype=np.float64))
        scores.logprobs, scores.mean, scores.variance = logprobs, mean, variance
        scores.greedy, scores.grad_norm = greedy, grad_norm
        return scores

    def __reduce__(self) -> tuple[object, ...]:
        """Keep all of it through pickling (caches, and results that travel between ranks)."""
        return TokenScores, (self.logprobs, self.mean, self.variance, self.greedy, self.grad_norm)


def token_statistics(
    logits: torch.Tensor, positions: torch.Tensor, targets: torch.Tensor
) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
    """Score targets at some positions, in float32 whatever the logits are in, a bounded number of positions at a time.

    Args:
        logits: (positions of the batch, vocabulary), any floating type.
        positions: (n,) rows of the logits that are scored.
        targets: (n, a) token numbers, the a alternatives of each position.

    Returns:
        log-probabilities of the targets (n, a); mean (n,) and variance (n,) of the log-probability under the model's
        own distribution, ``sum_v p_v log p_v`` and ``sum_v p_v (log p_v - mean)^2``; whether a target is the most
        probable token (n, a).
    """
    size = max(1, _CHUNK.get(logits.device.type, _CHUNK_GPU) // logits.shape[-1])
    parts = [
        _chunk_statistics(logits[where], wanted)
        for where, wanted in zip(torch.split(positions, size), torch.split(targets, size), strict=True)
    ]
    logprobs, mean, variance, greedy = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
    return logprobs, mean, variance, greedy


def _chunk_statistics(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    logprobs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    picked = logprobs.gather(1, targets)
    greedy = logprobs.argmax(-1, keepdim=True) == targets
    probabilities = logprobs.exp()
    logprobs.clamp_(min=_FLOOR)
    mean = torch.linalg.vecdot(probabilities, logprobs)
    # Around the mean rather than E[x^2] - E[x]^2, which loses its digits where the distribution is flat.
    logprobs.sub_(mean[:, None]).square_()
    return picked, mean, torch.linalg.vecdot(probabilities, logprobs), greedy
