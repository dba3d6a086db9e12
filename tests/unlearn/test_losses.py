"""Values of each token against plain formulas, their gradients, and what must not matter to them.

The reductions are in test_loss_reductions.py.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from lume_unlearn.methods.ceu import ceu_tokens
from lume_unlearn.methods.common import at_least_float32, token_mean, token_nll
from lume_unlearn.methods.counterfactual import divergence_tokens
from lume_unlearn.methods.jensun import js_to_token
from lume_unlearn.methods.masc import masc_margin, masc_tau, masc_tokens
from lume_unlearn.methods.ngdiff import quadratic_rate
from lume_unlearn.methods.pdu import pdu_dual, pdu_tokens
from lume_unlearn.methods.retain import js_tokens, kl_tokens, state_distance
from lume_unlearn.methods.rmu import rmu_direction
from lume_unlearn.methods.selective import selective_weight
from lume_unlearn.methods.shred import shred_selected, shred_tokens
from lume_unlearn.methods.undial import undial_tokens

TARGETS = torch.tensor([2, 0, 4])
LOGITS = [[0.3, -1.2, 0.8, 0.1, -0.4], [2.0, 0.5, -0.7, 1.1, 0.0], [-0.2, 0.9, 0.4, -1.5, 0.6]]
REFERENCE = [[0.1, 0.7, 1.9, -0.3, 0.2], [-0.6, 0.4, 1.3, 0.9, -1.1], [0.5, -0.8, 0.0, 0.2, 1.4]]

TokenLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
OF_LOGITS: dict[str, TokenLoss] = {
    "nll": lambda z, _, y: token_nll(z, y),
    "kl": lambda z, ref, _: kl_tokens(z, ref),
    "js": lambda z, ref, _: js_tokens(z, ref),
    "jensun": lambda z, _, y: js_to_token(token_nll(z, y)),
    "masc": lambda z, _, y: masc_tokens(z, y, 0.4, 0.25, 0.9, 2),
    "shred": lambda z, ref, y: shred_tokens(z, ref, y, y > 0, 3.0, 2),
    "undial": lambda z, ref, y: undial_tokens(z, ref, y, 3.0),
    "ceu": lambda z, _, y: ceu_tokens(z, y),
    "pdu": lambda z, _, y: pdu_tokens(z),
    "distance": lambda z, ref, _: state_distance(z, ref),
    "kl of log-probabilities": lambda z, ref, _: divergence_tokens(z, at_least_float32(ref).log_softmax(-1), "kl"),
    "reverse kl": lambda z, ref, _: divergence_tokens(z, at_least_float32(ref).log_softmax(-1), "reverse"),
    "js of log-probabilities": lambda z, ref, _: divergence_tokens(z, at_least_float32(ref).log_softmax(-1), "js"),
}
every_loss = pytest.mark.parametrize("loss", OF_LOGITS.values(), ids=OF_LOGITS.keys())


def logits(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(LOGITS, dtype=dtype, requires_grad=True)


def reference(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(REFERENCE, dtype=dtype)


def of_probabilities(*p: float) -> Tensor:
    """(1, V) logits with these probabilities, shifted so that they are not log-probabilities already."""
    return torch.tensor([p], dtype=torch.float64).log() + 0.7


def softmax(z: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in z)
    return [math.exp(value) / total for value in z]


def entropy(p: list[float]) -> float:
    return -sum(value * math.log(value) for value in p if value)


def cross_entropy(q: list[float], p: list[float]) -> float:
    return -sum(a * math.log(b) for a, b in zip(q, p, strict=True))


def without(p: list[float], target: int) -> list[float]:
    """The distribution p given that it is not the target."""
    return [0.0 if v == target else value / (1.0 - p[target]) for v, value in enumerate(p)]


def lowered(z: list[float], target: int) -> list[float]:
    return [value - 3.0 if v == target else value for v, value in enumerate(z)]


def js(p: list[float], q: list[float]) -> float:
    return entropy([(a + b) / 2 for a, b in zip(p, q, strict=True)]) - (entropy(p) + entropy(q)) / 2


def hinge(z: list[float], target: int) -> float:
    """masc with rho 0.4, eta 0.25, beta 0.9, top_k 2."""
    others = sorted(0.9 * value for v, value in enumerate(z) if v != target)[-2:]
    margin = 0.9 * z[target] - math.log(sum(map(math.exp, others)))
    return max(0.0, margin - math.log(0.4 / 0.6) + 0.25) / 0.25


def top_two(z: list[float], r: list[float]) -> float:
    """KL divergence of softmax(z) from the two largest entries of softmax(r)."""
    kept = sorted(range(len(r)), key=lambda v: r[v])[-2:]
    q = softmax([r[v] for v in kept])
    return cross_entropy(q, [softmax(z)[v] for v in kept]) - entropy(q)


# One token in plain arithmetic: logits, reference logits, target.
PLAIN: dict[str, Callable[[list[float], list[float], int], float]] = {
    "nll": lambda z, r, y: -math.log(softmax(z)[y]),
    "kl": lambda z, r, y: cross_entropy(softmax(r), softmax(z)) - entropy(softmax(r)),
    "js": lambda z, r, y: js(softmax(z), softmax(r)),
    "jensun": lambda z, r, y: js(softmax(z), [float(v == y) for v in range(len(z))]),
    "masc": lambda z, r, y: hinge(z, y),
    "shred": lambda z, r, y: top_two(z, lowered(r, y) if y else r),
    "undial": lambda z, r, y: cross_entropy(softmax(lowered(r, y)), softmax(z)),
    "ceu": lambda z, r, y: entropy(without(softmax(z), y)) - math.log(1.0 - softmax(z)[y]),
    "pdu": lambda z, r, y: (max(z) - sum(z) / len(z)) ** 2,
    "kl of log-probabilities": lambda z, r, y: cross_entropy(softmax(r), softmax(z)) - entropy(softmax(r)),
    "reverse kl": lambda z, r, y: cross_entropy(softmax(z), softmax(r)) - entropy(softmax(z)),
    "js of log-probabilities": lambda z, r, y: js(softmax(z), softmax(r)),
    "distance": lambda z, r, y: sum((a - b) ** 2 for a, b in zip(z, r, strict=True)) / len(z),
}


@pytest.mark.parametrize("name", OF_LOGITS)
def test_values_equal_the_plain_formula(name: str) -> None:
    z, teacher = logits(), reference().requires_grad_()
    values = OF_LOGITS[name](z, teacher, TARGETS)
    plain = [PLAIN[name](*token) for token in zip(LOGITS, REFERENCE, TARGETS.tolist(), strict=True)]
    assert values.tolist() == pytest.approx(plain)
    assert values.dtype == torch.float64
    values.sum().backward()
    assert teacher.grad is None
    assert torch.equal(z, logits())  # inputs stay as they are
    assert torch.equal(teacher, reference())


def test_worked_examples() -> None:
    first, three_to_one = torch.tensor([0]), of_probabilities(0.75, 0.25)
    assert token_nll(of_probabilities(0.25, 0.25, 0.5), first).item() == pytest.approx(math.log(4.0))
    # From the reference to the model; the other direction would be 0.130812.
    assert kl_tokens(three_to_one, of_probabilities(0.5, 0.5)).item() == pytest.approx(0.143841, abs=1e-6)
    assert js_tokens(three_to_one, of_probabilities(0.5, 0.5)).item() == pytest.approx(0.033822, abs=1e-6)
    assert js_to_token(torch.tensor(math.log(2.0))).item() == pytest.approx(0.215762, abs=1e-6)
    four = of_probabilities(0.75, 0.125, 0.0625, 0.0625)
    assert masc_margin(four, first, 1.0, 2).item() == pytest.approx(math.log(4.0))
    assert masc_tau(0.7) == pytest.approx(0.847298, abs=1e-6)
    assert masc_tokens(three_to_one, first, 0.7, 0.25, 1.0, 10).item() == pytest.approx(2.005257, abs=1e-6)
    surprise, rows = torch.tensor([1.0, 3.0, 3.0, 2.0, 5.0]), torch.tensor([0, 0, 0, 0, 1])
    assert shred_selected(surprise, rows, 0.5).tolist() == [False, True, True, False, True]
    two = of_probabilities(0.5, 0.375, 0.125).repeat(2, 1)
    values = shred_tokens(two, two, torch.tensor([0, 0]), torch.tensor([True, False]), math.log(8.0), 2)
    assert values.tolist() == pytest.approx([math.log(2.0), math.log(8 / 7)])
    assert undial_tokens(three_to_one, three_to_one, first, math.log(3.0)).item() == pytest.approx(0.836988, abs=1e-6)
    assert ceu_tokens(of_probabilities(0.5, 0.375, 0.125), first).item() == pytest.approx(1.255482, abs=1e-6)
    assert pdu_tokens(torch.tensor([[3.0, 1.0, 2.0, -2.0]])).item() == 4.0
    states = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    assert state_distance(states, torch.tensor([1.0, 0.0])).tolist() == [2.0, 0.5]
    assert state_distance(states, torch.tensor([[1.0, 0.0], [3.0, 1.0]])).tolist() == [2.0, 5.0]


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (kl_tokens, [0.0] * 3),
        (js_tokens, [0.0] * 3),
        (lambda z, ref: shred_tokens(z, ref, TARGETS, TARGETS < 0, 3.0, 5), [0.0] * 3),
        (state_distance, [0.0] * 3),
        (lambda z, ref: undial_tokens(z, ref, TARGETS, 0.0), [entropy(softmax(row)) for row in LOGITS]),
    ],
    ids=["kl", "js", "shred without a selection", "distance", "undial with beta 0"],
)
def test_there_is_no_gradient_at_the_reference(loss: Callable[..., Tensor], expected: list[float]) -> None:
    z = logits()
    values = loss(z, z.detach().clone())
    assert values.tolist() == pytest.approx(expected, abs=1e-15)
    assert torch.autograd.grad(values.sum(), z)[0].abs().max().item() < 1e-15


def test_js_is_ln_2_for_distributions_without_a_common_token() -> None:
    z = torch.tensor([[200.0, 0.0], [0.0, 0.0]], requires_grad=True)
    values = js_tokens(z, torch.tensor([[0.0, 200.0], [0.0, 0.0]]))
    assert values.tolist() == pytest.approx([math.log(2.0), 0.0])
    assert js_to_token(torch.tensor([200.0, 0.0])).tolist() == pytest.approx([math.log(2.0), 0.0])


def test_jensun_keeps_its_accuracy_at_tokens_that_are_nearly_certain() -> None:
    """Near p = 1 the value is nll ln(2) / 2: in float32 the textbook formula has no correct digit there."""
    nll = torch.tensor([1e-7], requires_grad=True)
    value = js_to_token(nll)
    assert value.item() == pytest.approx(1e-7 * math.log(2.0) / 2, rel=1e-5)
    assert torch.autograd.grad(value.sum(), nll)[0].item() == pytest.approx(math.log(2.0) / 2)


def test_masc_lets_go_of_tokens_below_the_margin_and_its_margin_is_the_log_odds() -> None:
    z = of_probabilities(0.65, 0.2, 0.15).requires_grad_()
    margin = masc_margin(z, torch.tensor([0]), 1.0, 10)
    assert margin.item() == pytest.approx(masc_tau(0.65))
    value = masc_tokens(z, torch.tensor([0]), 0.72, 0.25, 1.0, 10)
    assert value.item() == 0.0
    assert not torch.autograd.grad(value.sum(), z)[0].any()


@pytest.mark.parametrize("share", [0.01, 0.3, 0.34, 1.0])
def test_shred_selects_the_same_share_of_every_row_and_of_equal_tokens_the_first(share: float) -> None:
    lengths = (1, 3, 10)
    rows = torch.arange(3).repeat_interleave(torch.tensor(lengths))
    selected = shred_selected(torch.zeros(14), rows, share)
    expected = [t < math.ceil(share * length) for length in lengths for t in range(length)]
    assert selected.tolist() == expected


def test_ceu_gradient_is_p_minus_q() -> None:
    z = logits()
    gradients = torch.autograd.grad(ceu_tokens(z, TARGETS).sum(), z)[0].tolist()
    for row, y, gradient in zip(LOGITS, TARGETS.tolist(), gradients, strict=True):
        p = softmax(row)
        assert gradient == pytest.approx([a - b for a, b in zip(p, without(p, y), strict=True)])


def test_ceu_at_a_certain_token_spreads_over_the_others() -> None:
    # p is (1, 0, 0) in float32, so q cannot come from p: it is (0, 3/4, 1/4) all the same.
    z = torch.tensor([[200.0, math.log(3.0), 0.0]], requires_grad=True)
    gradient = torch.autograd.grad(ceu_tokens(z, torch.tensor([0])).sum(), z)[0]
    assert gradient[0].tolist() == pytest.approx([1.0, -0.75, -0.25])


def test_pdu_is_zero_without_gradient_where_all_logits_are_equal() -> None:
    z = torch.full((1, 4), 7.0, requires_grad=True)
    values = pdu_tokens(z)
    assert values.tolist() == [0.0]
    assert not torch.autograd.grad(values.sum(), z)[0].any()


@pytest.mark.parametrize("name", [name for name in OF_LOGITS if name != "ceu"])  # q moves with z: see its own test
def test_gradients_against_finite_differences(name: str) -> None:
    assert gradcheck(lambda z: OF_LOGITS[name](z, reference(), TARGETS), (logits(),))


@every_loss
def test_tokens_do_not_mix(loss: TokenLoss) -> None:
    z, ref = logits(), reference()
    chunks = [loss(z[i : i + 1], ref[i : i + 1], TARGETS[i : i + 1]) for i in range(3)]
    whole = loss(z, ref, TARGETS)
    assert torch.allclose(whole, torch.cat(chunks), rtol=1e-14)
    gradients = torch.autograd.grad(whole[1], z)[0]
    assert not gradients[[0, 2]].any()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_before_anything_else(loss: TokenLoss, dtype: torch.dtype) -> None:
    z, ref = logits(dtype), reference(dtype)
    values = loss(z, ref, TARGETS)
    assert values.dtype == torch.float32
    assert torch.equal(values, loss(z.float(), ref.float(), TARGETS))


@every_loss
def test_without_tokens_the_mean_is_0(loss: TokenLoss) -> None:
    z = torch.zeros(0, 5, requires_grad=True)
    mean = token_mean(loss(z, torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)))
    mean.backward()
    assert mean.item() == 0.0


@every_loss
@pytest.mark.parametrize("target", [0, 1, 2])
def test_extreme_logits_stay_finite(loss: TokenLoss, target: int) -> None:
    z = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    values = loss(z, torch.tensor([[-1e4, 1e4, 0.0]]), torch.tensor([target]))
    assert values.isfinite().all()
    assert torch.autograd.grad(values.sum(), z)[0].isfinite().all()


# Scalar rules beside the losses at their edges; `formulas` has the rules themselves.


def test_rmu_direction_depends_on_the_seed_alone() -> None:
    first = rmu_direction(64, seed=3)
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(rmu_direction(64, seed=3), first)
    finally:
        torch.set_default_dtype(torch.float32)
    assert not torch.equal(rmu_direction(64, seed=4), first)
    assert torch.equal(torch.get_rng_state(), state)  # the shared generator was not drawn from


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (pdu_dual(1.0, 0.1, 0.3, 50.0), 0.0),  # never below 0
        (pdu_dual(0.0, 0.4, 0.3, 1.0), 0.1),  # and it comes back
        (pdu_dual(1.0, math.nan, 0.3, 1.0), math.nan),
        (selective_weight(2.8, 2.0), 2.1),  # 0.3 * 6^0.8 + 0.8 = 2.06
        (selective_weight(2.95, 2.0), 2.3),  # 2.45
        (selective_weight(1e4, 2.0), 2.3),
        (selective_weight(math.inf, 2.0), 2.3),
        (selective_weight(math.nan, 2.0), math.nan),
        (quadratic_rate(1.0, 9.0, 4.0, 1.0), 2.0),
        (quadratic_rate(1.0, 1.0, 4.0, 9.0), -2.0),
    ],
)
def test_rules_of_pdu_selective_and_ngdiff(found: float, expected: float) -> None:
    assert found == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("minus", "zero", "plus"),
    [
        (2.0, 1.0, 0.0),  # a line
        (0.0, 1.0, 0.0),  # a hill
        (math.nan, 1.0, 2.0),
        (2.0, math.nan, 2.0),
        (2.0, 1.0, math.inf),
        (2.0, -math.inf, 2.0),
        (1e308, -1e308, 1e308),
    ],
)
def test_quadratic_rate_without_a_bottom_or_with_losses_that_are_not_finite(
    minus: float, zero: float, plus: float
) -> None:
    assert quadratic_rate(1e-5, minus, zero, plus) is None
