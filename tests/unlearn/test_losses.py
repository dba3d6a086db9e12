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
from lume_unlearn.methods.common import token_mean, token_nll
from lume_unlearn.methods.pdu import pdu_tokens
from lume_unlearn.methods.retain import kl_tokens, state_distance
from lume_unlearn.methods.undial import undial_tokens

TARGETS = torch.tensor([2, 0, 4])
LOGITS = [[0.3, -1.2, 0.8, 0.1, -0.4], [2.0, 0.5, -0.7, 1.1, 0.0], [-0.2, 0.9, 0.4, -1.5, 0.6]]
REFERENCE = [[0.1, 0.7, 1.9, -0.3, 0.2], [-0.6, 0.4, 1.3, 0.9, -1.1], [0.5, -0.8, 0.0, 0.2, 1.4]]

TokenLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
OF_LOGITS: dict[str, TokenLoss] = {
    "nll": lambda z, _, y: token_nll(z, y),
    "kl": lambda z, ref, _: kl_tokens(z, ref),
    "undial": lambda z, ref, y: undial_tokens(z, ref, y, 3.0),
    "ceu": lambda z, _, y: ceu_tokens(z, y),
    "pdu": lambda z, _, y: pdu_tokens(z),
    "distance": lambda z, ref, _: state_distance(z, ref),
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


def test_token_nll_is_minus_log_softmax_of_the_target() -> None:
    z = of_probabilities(0.25, 0.25, 0.5)
    assert token_nll(z, torch.tensor([2])).tolist() == pytest.approx([math.log(2.0)])
    assert token_nll(z, torch.tensor([0])).tolist() == pytest.approx([math.log(4.0)])


def test_kl_worked_example_runs_from_the_reference_to_the_model() -> None:
    # The other direction would be 0.130812.
    value = kl_tokens(of_probabilities(0.75, 0.25), of_probabilities(0.5, 0.5)).item()
    assert value == pytest.approx(0.5 * math.log(4.0 / 3.0))
    assert value == pytest.approx(0.143841, abs=1e-6)


def test_kl_is_cross_entropy_minus_entropy_of_the_reference() -> None:
    expected = [
        cross_entropy(softmax(r), softmax(z)) - entropy(softmax(r)) for z, r in zip(LOGITS, REFERENCE, strict=True)
    ]
    assert kl_tokens(logits(), reference()).tolist() == pytest.approx(expected)


def test_kl_is_zero_with_zero_gradient_at_the_reference() -> None:
    z = logits()
    values = kl_tokens(z, z.detach().clone())
    values.sum().backward()
    assert values.tolist() == pytest.approx([0.0] * 3, abs=1e-15)
    assert z.grad is not None
    assert z.grad.abs().max().item() < 1e-15


def test_undial_worked_example() -> None:
    z = of_probabilities(0.75, 0.25)
    value = undial_tokens(z, z, torch.tensor([0]), math.log(3.0)).item()
    assert value == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2.0)
    assert value == pytest.approx(0.836988, abs=1e-6)


def test_undial_teacher_is_the_reference_with_the_target_lowered() -> None:
    expected = []
    for z, r, y in zip(LOGITS, REFERENCE, TARGETS.tolist(), strict=True):
        lowered = [value - 3.0 if v == y else value for v, value in enumerate(r)]
        expected.append(cross_entropy(softmax(lowered), softmax(z)))
    assert undial_tokens(logits(), reference(), TARGETS, 3.0).tolist() == pytest.approx(expected)


def test_undial_with_beta_zero_starts_at_the_entropy_without_gradient() -> None:
    z = logits()
    values = undial_tokens(z, z.detach(), TARGETS, 0.0)
    values.sum().backward()
    assert values.tolist() == pytest.approx([entropy(softmax(row)) for row in LOGITS])
    assert z.grad is not None
    assert z.grad.abs().max().item() < 1e-15


def test_ceu_worked_example() -> None:
    value = ceu_tokens(of_probabilities(0.5, 0.375, 0.125), torch.tensor([0])).item()
    assert value == pytest.approx(-0.75 * math.log(0.375) - 0.25 * math.log(0.125))
    assert value == pytest.approx(1.255482, abs=1e-6)


def test_ceu_is_the_entropy_of_the_others_minus_log_one_minus_p() -> None:
    expected = []
    for z, y in zip(LOGITS, TARGETS.tolist(), strict=True):
        p = softmax(z)
        expected.append(entropy(without(p, y)) - math.log(1.0 - p[y]))
    assert ceu_tokens(logits(), TARGETS).tolist() == pytest.approx(expected)


def test_ceu_gradient_is_p_minus_q() -> None:
    z = logits()
    ceu_tokens(z, TARGETS).sum().backward()
    assert z.grad is not None
    for row, y, gradient in zip(LOGITS, TARGETS.tolist(), z.grad.tolist(), strict=True):
        p = softmax(row)
        assert gradient == pytest.approx([a - b for a, b in zip(p, without(p, y), strict=True)])
        assert gradient[y] == pytest.approx(p[y])


def test_ceu_at_a_certain_token_spreads_over_the_others() -> None:
    # p is (1, 0, 0) in float32, so q cannot come from p: it is (0, 3/4, 1/4) all the same.
    z = torch.tensor([[200.0, math.log(3.0), 0.0]], requires_grad=True)
    ceu_tokens(z, torch.tensor([0])).sum().backward()
    assert z.grad is not None
    assert z.grad[0].tolist() == pytest.approx([1.0, -0.75, -0.25])


def test_pdu_worked_example_and_zero_where_all_logits_are_equal() -> None:
    z = torch.tensor([[3.0, 1.0, 2.0, -2.0], [7.0, 7.0, 7.0, 7.0]], requires_grad=True)
    values = pdu_tokens(z)
    values.sum().backward()
    assert values.tolist() == [4.0, 0.0]
    # d/dz = 2 (max - mean) (1[v is the largest] - 1/V) = 4 (1 - 1/4) and 4 (-1/4)
    assert z.grad is not None
    assert z.grad.tolist() == [[3.0, -1.0, -1.0, -1.0], [0.0, 0.0, 0.0, 0.0]]


def test_state_distance_worked_example_with_one_target_and_one_for_each() -> None:
    states = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    assert state_distance(states, torch.tensor([1.0, 0.0])).tolist() == [2.0, 0.5]
    assert state_distance(states, torch.tensor([[1.0, 0.0], [3.0, 1.0]])).tolist() == [2.0, 5.0]


def test_state_distance_is_zero_with_zero_gradient_at_the_reference() -> None:
    states = logits()
    values = state_distance(states, states.detach().clone())
    values.sum().backward()
    assert values.tolist() == [0.0, 0.0, 0.0]
    assert states.grad is not None
    assert not states.grad.any()


@pytest.mark.parametrize("name", [name for name in OF_LOGITS if name != "ceu"])  # q moves with z: see its own test
def test_gradients_against_finite_differences(name: str) -> None:
    assert gradcheck(lambda z: OF_LOGITS[name](z, reference(), TARGETS), (logits(),))


@every_loss
def test_the_reference_gets_no_gradient(loss: TokenLoss) -> None:
    teacher = reference().requires_grad_()
    loss(logits(), teacher, TARGETS).sum().backward()
    assert teacher.grad is None


@every_loss
def test_tokens_do_not_mix(loss: TokenLoss) -> None:
    z, ref = logits(), reference()
    chunks = [loss(z[i : i + 1], ref[i : i + 1], TARGETS[i : i + 1]) for i in range(3)]
    whole = loss(z, ref, TARGETS)
    assert torch.allclose(whole, torch.cat(chunks), rtol=1e-14)
    assert whole.shape == (3,)
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
def test_float64_stays(loss: TokenLoss) -> None:
    assert loss(logits(), reference(), TARGETS).dtype == torch.float64


@every_loss
def test_without_tokens_there_are_no_values(loss: TokenLoss) -> None:
    z = torch.zeros(0, 5, requires_grad=True)
    values = loss(z, torch.zeros(0, 5), torch.zeros(0, dtype=torch.long))
    assert values.shape == (0,)
    loss_of_it = token_mean(values)
    loss_of_it.backward()
    assert loss_of_it.item() == 0.0


@every_loss
@pytest.mark.parametrize("target", [0, 1, 2])
def test_extreme_logits_stay_finite(loss: TokenLoss, target: int) -> None:
    z = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    values = loss(z, torch.tensor([[-1e4, 1e4, 0.0]]), torch.tensor([target]))
    values.sum().backward()
    assert values.isfinite().all()
    assert z.grad is not None
    assert z.grad.isfinite().all()


@every_loss
def test_inputs_are_left_as_they_are(loss: TokenLoss) -> None:
    z, ref = logits(), reference()
    loss(z, ref, TARGETS)
    assert torch.equal(z, logits())
    assert torch.equal(ref, reference())
