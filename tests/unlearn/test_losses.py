"""Every loss against a value derived by hand, its gradient's sign and size, and what must not matter to it."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from lume_unlearn import losses

NLL = [0.5, 1.5, 2.0, 1.0, 4.0]
ROWS = torch.tensor([0, 0, 0, 1, 1])


def nll(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(NLL, dtype=dtype, requires_grad=True)


def test_token_nll_is_minus_log_softmax_of_the_target() -> None:
    # log(1 + e^0 + e^ln2) with logits (0, 0, ln 2): p = (1/4, 1/4, 1/2).
    logits = torch.tensor([[0.0, 0.0, math.log(2.0)]])
    assert losses.token_nll(logits, torch.tensor([2])).item() == pytest.approx(math.log(2.0))
    assert losses.token_nll(logits, torch.tensor([0])).item() == pytest.approx(math.log(4.0))


def test_token_nll_widens_half_precision_and_keeps_float64() -> None:
    logits = torch.randn(4, 11)
    targets = torch.tensor([1, 2, 3, 4])
    assert losses.token_nll(logits.bfloat16(), targets).dtype == torch.float32
    assert losses.token_nll(logits.double(), targets).dtype == torch.float64


def test_gradient_ascent_is_minus_the_token_mean() -> None:
    values = nll()
    loss = losses.gradient_ascent(values)
    loss.backward()
    assert loss.item() == pytest.approx(-9.0 / 5.0)  # not the mean of row means, -(4/3 + 5/2)/2
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([-0.2] * 5)


def test_nll_mean_is_the_opposite_of_gradient_ascent() -> None:
    assert losses.nll_mean(nll()).item() == pytest.approx(1.8)
    assert losses.nll_mean(nll(), count=10.0).item() == pytest.approx(0.9)


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.5])
def test_npo_at_the_reference(beta: float) -> None:
    values = nll()
    reference = losses.row_sums(values.detach(), ROWS, 2)
    loss = losses.npo(values, ROWS, reference, beta)
    loss.backward()
    assert loss.item() == pytest.approx(2.0 / beta * math.log(2.0))
    # There it is gradient ascent on sequence sums: -1/B for every token.
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([-0.5] * 5)


def test_npo_golden_value_at_beta_point_one() -> None:
    values = nll().detach()
    assert losses.npo(values, ROWS, losses.row_sums(values, ROWS, 2), 0.1).item() == pytest.approx(13.8629436112)


def test_npo_worked_example_of_the_docstring() -> None:
    values = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    loss = losses.npo(values, torch.tensor([0, 0, 1]), torch.tensor([1.0, 5.0], dtype=torch.float64), 0.1)
    by_hand = 20.0 * (math.log1p(math.exp(-0.2)) + math.log(2.0)) / 2.0
    assert loss.item() == pytest.approx(by_hand)
    assert loss.item() == pytest.approx(12.912860, abs=1e-6)


def test_npo_gradient_fades_as_a_row_is_forgotten_and_is_gradient_ascent_for_small_beta() -> None:
    values = nll()
    losses.npo(values, ROWS, torch.tensor([-96.0, 5.0], dtype=torch.float64), 0.1).backward()
    forgotten, not_yet = values.grad[0].item(), values.grad[3].item()  # type: ignore[index]
    # dL/dNLL_b = -2 sigmoid(-beta delta_b) / B: delta is 100 for the first row, 0 for the second.
    assert forgotten == pytest.approx(-1.0 / (1.0 + math.exp(10.0)))
    assert not_yet == pytest.approx(-0.5)
    small = nll()
    losses.npo(small, ROWS, torch.tensor([2.0, 5.0], dtype=torch.float64), 1e-6).backward()
    assert small.grad is not None
    assert small.grad.tolist() == pytest.approx([-0.5] * 5, rel=1e-4)


def test_npo_does_not_overflow_where_sigmoid_would() -> None:
    values = torch.tensor([0.0], requires_grad=True)
    loss = losses.npo(values, torch.tensor([0]), torch.tensor([1e5]), 0.5)
    loss.backward()
    assert loss.item() == pytest.approx(2.0 * 1e5)  # -(2/b) * (b * delta) with delta = -1e5
    assert values.grad is not None
    assert values.grad.item() == pytest.approx(-2.0)


def test_kl_is_zero_with_zero_gradient_at_the_reference() -> None:
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    loss = losses.kl_to_reference(logits, logits.detach().clone())
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-15)
    assert logits.grad is not None
    assert logits.grad.abs().max().item() < 1e-15


def test_kl_runs_from_the_reference_to_the_model() -> None:
    # p_ref = (1/2, 1/2), p = (3/4, 1/4): KL(ref || p) = ln(2/3)/2 + ln(2)/2; the other direction would be 0.130812.
    logits = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    reference = torch.zeros(1, 2, dtype=torch.float64)
    assert losses.kl_to_reference(logits, reference).item() == pytest.approx(0.5 * math.log(4.0 / 3.0))


def test_kl_gives_the_reference_no_gradient() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    reference = torch.randn(2, 3, requires_grad=True)
    losses.kl_to_reference(logits, reference).backward()
    assert reference.grad is None


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: losses.gradient_ascent(x),
        lambda x: losses.nll_mean(x),
        lambda x: losses.npo(x, ROWS, torch.tensor([3.0, 6.0], dtype=torch.float64), 0.7),
        lambda x: losses.kl_to_reference(x.view(1, 5), torch.linspace(-1, 1, 5, dtype=torch.float64).view(1, 5)),
    ],
    ids=["ga", "nll", "npo", "kl"],
)
def test_gradients_against_finite_differences(loss) -> None:  # type: ignore[no-untyped-def]
    assert gradcheck(loss, (nll(),))


def test_parts_divided_by_the_whole_count_add_up_to_the_whole() -> None:
    values, reference = nll().detach(), torch.tensor([3.0, 6.0], dtype=torch.float64)
    whole = losses.npo(values, ROWS, reference)
    parts = [
        losses.npo(values[:3], ROWS[:3], reference[:1], count=2.0),
        losses.npo(values[3:], ROWS[3:] - 1, reference[1:], count=2.0),
    ]
    assert sum(parts).item() == pytest.approx(whole.item())  # type: ignore[union-attr]
    tokens = losses.gradient_ascent(values[:3], 5.0) + losses.gradient_ascent(values[3:], 5.0)
    assert tokens.item() == pytest.approx(losses.gradient_ascent(values).item())


def test_a_side_without_labels_is_zero_rather_than_nan() -> None:
    empty = torch.zeros(0)
    assert losses.gradient_ascent(empty).item() == 0.0
    assert losses.nll_mean(empty).item() == 0.0
