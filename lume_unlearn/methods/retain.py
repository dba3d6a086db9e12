"""The retain terms: the loss on retain rows that a method adds to its loss on forget rows."""

import math
from collections.abc import Iterable

from lume_unlearn.methods.base import Needs, RetainTerm
from lume_unlearn.methods.common import Tensor, at_least_float32, token_nll


def retain_parts(term: RetainTerm, kl_weight: float) -> dict[str, float]:
    """Return the parts of a retain term ("nll", "kl", "js", "states") and their weights; none for "none"."""
    if term == "none":
        return {}
    if term == "nll+kl":
        return {"nll": 1.0, "kl": kl_weight}
    return {term: 1.0}


def reads_reference_logits(needs: Needs, parts: Iterable[str]) -> bool:
    """Return whether a method with these ``needs``, or a part of its retain term, reads reference logits or states."""
    return needs.reference_logits or any(map(part_needs_reference, parts))


def part_needs_reference(part: str) -> bool:
    """Return whether a part of a retain term compares with the reference model, in every step."""
    return part != "nll"


def retain_value(part: str, output: Tensor, targets: Tensor, reference: Tensor | None) -> Tensor:
    """Compute a part of a retain term for each token: (N,).

    This is `token_nll`, or compared with the reference, `kl_tokens` or `js_tokens` of logits, or `state_distance` of
    hidden states.
    """
    if part == "nll":
        return token_nll(output, targets)
    assert reference is not None
    return {"kl": kl_tokens, "js": js_tokens, "states": state_distance}[part](output, reference)


def kl_tokens(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """Compute the KL divergence from the reference, ``sum_v p_ref (log p_ref - log p)``: (N,) nats; 0 at the reference.

    Worked example: p = (3/4, 1/4), p_ref = (1/2, 1/2) give ln(4/3) / 2 = 0.143841.

    Source: the "KL" baseline of TOFU (Maini et al. 2024, arXiv 2401.06121, equation 6), on retain rows. Deviation: the
    paper averages over all positions of each row and then over rows, and its code over padding as well, which makes the
    term's weight depend on the batch; here the token mean is over labelled tokens, as for every other term. With the
    loss on the whole text, these are the paper's positions.

    Args:
        logits: (N, V) of the model in training.
        reference_logits: (N, V) of the reference model, same positions; no gradient.
    """
    reference_logp = at_least_float32(reference_logits.detach()).log_softmax(dim=-1)
    logp = at_least_float32(logits).log_softmax(dim=-1)
    return (reference_logp.exp() * (reference_logp - logp)).sum(dim=-1)


def js_tokens(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """Compute the Jensen-Shannon divergence from the reference, ``(KL(p || m) + KL(p_ref || m)) / 2``: (N,) nats.

    m is ``(p + p_ref) / 2``. The value is 0 at the reference, and ln 2, its maximum, if p and p_ref share no token.

    Worked example: p = (3/4, 1/4), p_ref = (1/2, 1/2): m = (5/8, 3/8) and the value is (0.035375 + 0.032269) / 2 =
    0.033822.

    Source: Singh et al. 2025 (arXiv 2509.02820), on retain rows. Deviation: the authors' code averages over all
    positions, padding included; here the token mean is over labelled tokens.

    Args:
        logits: (N, V) of the model in training.
        reference_logits: (N, V) of the reference model, same positions; no gradient.
    """
    import torch

    reference_logp = at_least_float32(reference_logits.detach()).log_softmax(dim=-1)
    logp = at_least_float32(logits).log_softmax(dim=-1)
    logm = torch.logaddexp(logp, reference_logp) - math.log(2.0)
    both = logp.exp() * (logp - logm) + reference_logp.exp() * (reference_logp - logm)
    return both.sum(dim=-1) / 2


def state_distance(states: Tensor, target: Tensor) -> Tensor:
    """Compute the mean squared distance of hidden states from a target, ``(1/d) ||h - target||^2``: (N,).

    Worked example: states (1, 2) and (0, 0), target (1, 0) give (2, 0.5).

    Source: RMU, Li et al. 2024 (arXiv 2403.03218): on retain rows the target is the reference model's hidden state, on
    forget rows see `rmu`.

    Args:
        states: (N, d).
        target: (d,) or (N, d); no gradient.
    """
    return (at_least_float32(states) - at_least_float32(target.detach())).square().mean(dim=-1)
