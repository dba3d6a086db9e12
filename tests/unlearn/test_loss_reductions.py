"""Every reduction against a value derived by hand or by loops over rows, its gradient, and what must not matter to it.

The values of each token are in test_losses.py.
"""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from lume_unlearn.methods.common import row_mean, token_mean
from lume_unlearn.methods.gradient import gradient_ascent
from lume_unlearn.methods.npo import npo, simnpo, token_npo
from lume_unlearn.methods.preference import dpo
from lume_unlearn.methods.retain import state_distance
from lume_unlearn.methods.rmu import rmu_direction
from lume_unlearn.methods.weighted import satimp, wga

# Two rows of unequal length, as flat lists and as the loops of the expectations want them.
NLL = [0.5, 1.5, 2.0, 1.0, 4.0]
REFERENCE = [0.2, 0.9, 2.4, 1.3, 0.7]
ROWS = torch.tensor([0, 0, 0, 1, 1])
SPANS = [slice(0, 3), slice(3, 5)]
OTHER_NLL = [1.2, 0.3, 0.8, 2.2, 0.1, 3.0]
OTHER_REFERENCE = [1.0, 0.6, 1.1, 0.9, 0.4, 2.5]
OTHER_ROWS = torch.tensor([0, 0, 1, 1, 1, 1])
OTHER_SPANS = [slice(0, 2), slice(2, 6)]

Reduction = Callable[[Tensor, Tensor, Tensor, int, float | None], Tensor]


def dpo_of(x: Tensor, rows: Tensor, reference: Tensor, n: int, count: float | None) -> Tensor:
    """DPO with an alternative of two tokens, the same for every row."""
    other_nll, other_reference = x.new_tensor([1.2, 0.3] * n), x.new_tensor([1.0, 0.6] * n)
    other_rows = torch.arange(n).repeat_interleave(2)
    return dpo(x, rows, reference, other_nll, other_rows, other_reference, n, 0.7, count)


OF_TOKENS: dict[str, Reduction] = {
    "token_mean": lambda x, rows, ref, n, count: token_mean(x, count),
    "ga": lambda x, rows, ref, n, count: gradient_ascent(x, count),
    "wga": lambda x, rows, ref, n, count: wga(x, 0.6, count),
    "satimp": lambda x, rows, ref, n, count: satimp(x, 0.6, 1.4, count),
    "token_npo": lambda x, rows, ref, n, count: token_npo(x, ref, 0.7, count),
}
OF_ROWS: dict[str, Reduction] = {
    "row_mean": lambda x, rows, ref, n, count: row_mean(x, rows, n, count),
    "npo": lambda x, rows, ref, n, count: npo(x, rows, ref, n, 0.7, count),
    "simnpo": lambda x, rows, ref, n, count: simnpo(x, rows, n, 0.7, 0.4, count),
    "dpo": dpo_of,
}
EVERY = {**OF_TOKENS, **OF_ROWS}
every_reduction = pytest.mark.parametrize("name", EVERY)


def f64(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def nll(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(NLL, dtype=dtype, requires_grad=True)


def gradient(loss: Tensor, values: Tensor) -> list[float]:
    found: list[float] = torch.autograd.grad(loss, values)[0].tolist()
    return found


def preference(margins: Sequence[float], beta: float) -> float:
    """-(2/beta) mean log sigmoid(beta margin), in plain arithmetic."""
    return 2.0 / beta * sum(math.log1p(math.exp(-beta * margin)) for margin in margins) / len(margins)


def sums_over_reference(values: list[float], reference: list[float], spans: list[slice]) -> list[float]:
    return [sum(values[span]) - sum(reference[span]) for span in spans]


def test_token_mean_divides_by_the_count_given() -> None:
    assert token_mean(nll()).item() == pytest.approx(1.8)
    assert token_mean(nll(), 10.0).item() == pytest.approx(0.9)
    assert token_mean(nll(), torch.tensor(10.0)).item() == pytest.approx(0.9)


def test_gradient_ascent_is_minus_the_token_mean() -> None:
    values = nll()
    loss = gradient_ascent(values)
    assert loss.item() == pytest.approx(-9.0 / 5.0)  # not the mean of row means, -(4/3 + 5/2)/2
    assert gradient(loss, values) == pytest.approx([-0.2] * 5)


def test_row_mean_is_the_mean_of_means_for_rows_of_unequal_length() -> None:
    assert row_mean(f64([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]), 2).item() == pytest.approx(3.5)
    # mean(S_b / n_b); mean(S) * mean(1 / n) would be 4.5 * 5/12 = 1.875
    values = nll()
    loss = row_mean(values, ROWS, 2)
    assert loss.item() == pytest.approx((4.0 / 3.0 + 5.0 / 2.0) / 2.0)
    assert gradient(loss, values) == pytest.approx([1 / 6] * 3 + [1 / 4] * 2)


def test_row_mean_counts_a_row_without_tokens_as_zero() -> None:
    assert row_mean(f64([4.0, 2.0]), torch.tensor([0, 2]), 3).item() == pytest.approx(2.0)


def test_rmu_forget_term_against_loops_over_padded_rows() -> None:
    states = torch.arange(24, dtype=torch.float64).view(2, 4, 3).sin()
    lengths, target = [4, 2], 2.0 * rmu_direction(3, seed=5).double()
    per_row = []
    for row, length in zip(states.tolist(), lengths, strict=True):
        squares = [(h - u) ** 2 for token in row[:length] for h, u in zip(token, target.tolist(), strict=True)]
        per_row.append(sum(squares) / 3.0 / length)
    flat = torch.cat([row[:length] for row, length in zip(states, lengths, strict=True)])
    rows = torch.tensor([0, 0, 0, 0, 1, 1])
    loss = row_mean(state_distance(flat, target), rows, 2)
    assert loss.item() == pytest.approx(sum(per_row) / 2.0)


def test_wga_worked_example() -> None:
    loss = wga(f64([math.log(2.0), math.log(4.0)]), 1.0)
    assert loss.item() == pytest.approx(-(math.log(2.0) / 2.0 + math.log(4.0) / 4.0) / 2.0)
    assert loss.item() == pytest.approx(-0.346574, abs=1e-6)


def test_wga_gradient_is_the_weight_alone() -> None:
    values = nll()
    assert gradient(wga(values, 2.0), values) == pytest.approx([-math.exp(-2.0 * x) / 5.0 for x in NLL])


def test_satimp_worked_example() -> None:
    loss = satimp(f64([math.log(2.0), math.log(4.0)]), 1.0, 1.0)
    assert loss.item() == pytest.approx(-(math.log(2.0) / 4.0 + math.log(4.0) * 3.0 / 16.0) / 2.0)
    assert loss.item() == pytest.approx(-0.216608, abs=1e-6)


def test_satimp_gradient_is_the_weight_alone() -> None:
    values = nll()
    expected = [-(math.exp(-x) ** 5) * (1.0 - math.exp(-x)) / 5.0 for x in NLL]
    assert gradient(satimp(values, 5.0, 1.0), values) == pytest.approx(expected)


def test_satimp_pushes_neither_certain_nor_forgotten_tokens() -> None:
    values = torch.tensor([0.0, 0.5, 1e4], requires_grad=True)
    certain, between, gone = gradient(satimp(values, 5.0, 1.0), values)
    assert (certain, gone) == (0.0, 0.0)
    assert between < 0.0


@pytest.mark.parametrize("loss", [lambda x: wga(x, 0.0), lambda x: satimp(x, 0.0, 0.0)])
def test_wga_and_satimp_without_weights_are_gradient_ascent(loss: Callable[[Tensor], Tensor]) -> None:
    values = torch.tensor([0.0, 0.5, 1e4], dtype=torch.float64, requires_grad=True)
    assert loss(values).item() == gradient_ascent(values).item()
    assert gradient(loss(values), values) == gradient(gradient_ascent(values), values)


def test_npo_worked_example() -> None:
    loss = npo(f64([1.0, 2.0, 5.0]), torch.tensor([0, 0, 1]), f64([0.75, 0.25, 5.0]), 2, 0.1)
    assert loss.item() == pytest.approx(20.0 * (math.log1p(math.exp(-0.2)) + math.log(2.0)) / 2.0)
    assert loss.item() == pytest.approx(12.912860, abs=1e-6)


def test_npo_against_loops_over_rows() -> None:
    expected = preference(sums_over_reference(NLL, REFERENCE, SPANS), 0.3)
    assert npo(nll(), ROWS, f64(REFERENCE), 2, 0.3).item() == pytest.approx(expected)


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.5])
def test_npo_at_the_reference(beta: float) -> None:
    values = nll()
    loss = npo(values, ROWS, values.detach(), 2, beta)
    assert loss.item() == pytest.approx(2.0 / beta * math.log(2.0))
    # There it is gradient ascent on sequence sums: -1/B for every token.
    assert gradient(loss, values) == pytest.approx([-0.5] * 5)


def test_npo_gradient_fades_as_a_row_is_forgotten_and_is_gradient_ascent_for_small_beta() -> None:
    values, reference = nll(), f64([-90.0, -3.0, -3.0, 2.0, 3.0])
    slopes = gradient(npo(values, ROWS, reference, 2, 0.1), values)
    # dL/dNLL_b = -2 sigmoid(-beta delta_b) / B: delta is 100 for the first row, 0 for the second.
    assert slopes == pytest.approx([-1.0 / (1.0 + math.exp(10.0))] * 3 + [-0.5] * 2)
    assert gradient(npo(values, ROWS, reference, 2, 1e-6), values) == pytest.approx([-0.5] * 5, rel=1e-4)


def test_golden_values_at_the_reference() -> None:
    values = nll().detach()
    assert npo(values, ROWS, values, 2, 0.1).item() == pytest.approx(13.8629436112)
    assert token_npo(values, values, 0.1).item() == pytest.approx(13.8629436112)
    same = dpo(values, ROWS, values, f64(OTHER_NLL), OTHER_ROWS, f64(OTHER_NLL), 2, 0.1)
    assert same.item() == pytest.approx(13.8629436112)
    means = f64([1.5, 1.5, 1.5])
    assert simnpo(means, torch.tensor([0, 0, 1]), 2, 4.5, 1.5).item() == pytest.approx(0.30807, abs=1e-5)
    assert simnpo(f64([0.0]), torch.tensor([0]), 1, 4.5, 0.0).item() == pytest.approx(0.30807, abs=1e-5)


def test_token_npo_worked_example_and_loops() -> None:
    assert token_npo(f64([3.0, 5.0]), f64([1.0, 5.0]), 0.1).item() == pytest.approx(12.912860, abs=1e-6)
    differences = [x - r for x, r in zip(NLL, REFERENCE, strict=True)]
    assert token_npo(nll(), f64(REFERENCE), 0.5).item() == pytest.approx(preference(differences, 0.5))


def test_simnpo_worked_example() -> None:
    loss = simnpo(f64([1.0, 3.0, 1.0]), torch.tensor([0, 0, 1]), 2, 2.0, 1.0)
    assert loss.item() == pytest.approx((math.log1p(math.exp(-2.0)) + math.log(2.0)) / 2.0)
    assert loss.item() == pytest.approx(0.410038, abs=1e-6)


def test_simnpo_against_loops_over_rows_and_the_papers_margin() -> None:
    means = [sum(NLL[span]) / len(NLL[span]) for span in SPANS]
    beta, margin = 2.5, 0.3
    loss = simnpo(nll(), ROWS, 2, beta, margin).item()
    assert loss == pytest.approx(preference([mean - margin for mean in means], beta))
    gamma = beta * margin
    paper = [-2.0 / beta * math.log(1.0 / (1.0 + math.exp(-(beta * mean - gamma)))) for mean in means]
    assert loss == pytest.approx(sum(paper) / 2.0)


def test_dpo_worked_example() -> None:
    rows = torch.tensor([0, 1])
    loss = dpo(f64([3.0, 1.0]), rows, f64([1.0, 1.0]), f64([2.0, 4.0]), rows, f64([3.0, 4.0]), 2, 0.1)
    assert loss.item() == pytest.approx(20.0 * (math.log1p(math.exp(-0.3)) + math.log(2.0)) / 2.0)
    assert loss.item() == pytest.approx(12.475024, abs=1e-6)


def test_dpo_against_loops_over_rows() -> None:
    lose = sums_over_reference(NLL, REFERENCE, SPANS)
    win = sums_over_reference(OTHER_NLL, OTHER_REFERENCE, OTHER_SPANS)
    expected = preference([a - b for a, b in zip(lose, win, strict=True)], 0.3)
    alternatives = (f64(OTHER_NLL), OTHER_ROWS, f64(OTHER_REFERENCE))
    assert dpo(nll(), ROWS, f64(REFERENCE), *alternatives, 2, 0.3).item() == pytest.approx(expected)


def test_dpo_pushes_the_forget_answer_up_and_the_alternative_down() -> None:
    values, other = nll(), f64(OTHER_NLL).requires_grad_()
    reference, other_reference = values.detach().clone(), other.detach().clone()
    loss = dpo(values, ROWS, reference, other, OTHER_ROWS, other_reference, 2, 0.1)
    assert gradient(loss, values) == pytest.approx([-0.5] * 5)
    loss = dpo(values, ROWS, reference, other, OTHER_ROWS, other_reference, 2, 0.1)
    assert gradient(loss, other) == pytest.approx([0.5] * 6)


def test_dpo_alternatives_may_come_in_any_order_and_belong_to_their_row() -> None:
    order = [5, 0, 3, 1, 4, 2]
    alternatives = (f64(OTHER_NLL)[order], OTHER_ROWS[order], f64(OTHER_REFERENCE)[order])
    mixed = dpo(nll(), ROWS, f64(REFERENCE), *alternatives, 2, 0.3)
    alternatives = (f64(OTHER_NLL), OTHER_ROWS, f64(OTHER_REFERENCE))
    whole = dpo(nll(), ROWS, f64(REFERENCE), *alternatives, 2, 0.3)
    assert mixed.item() == pytest.approx(whole.item())


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("wga", "satimp")])  # weights are constants
def test_gradients_against_finite_differences(name: str) -> None:
    assert gradcheck(lambda x: EVERY[name](x, ROWS, f64(REFERENCE), 2, None), (nll(),))


@every_reduction
def test_parts_divided_by_the_whole_count_add_up_to_the_whole(name: str) -> None:
    loss, values, reference = EVERY[name], nll().detach(), f64(REFERENCE)
    count = 5.0 if name in OF_TOKENS else 2.0
    first = loss(values[:3], ROWS[:3], reference[:3], 1, count)
    second = loss(values[3:], ROWS[3:] - 1, reference[3:], 1, count)
    whole = loss(values, ROWS, reference, 2, None)
    assert (first + second).item() == pytest.approx(whole.item(), rel=1e-12)


@every_reduction
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_stay(name: str, dtype: torch.dtype) -> None:
    loss = EVERY[name](nll(dtype), ROWS, f64(REFERENCE).to(dtype), 2, None)
    assert loss.dtype == dtype
    assert loss.shape == ()


@every_reduction
def test_a_side_without_labels_is_zero_rather_than_nan(name: str) -> None:
    empty = torch.zeros(0, requires_grad=True)
    loss = EVERY[name](empty, torch.zeros(0, dtype=torch.long), torch.zeros(0), 0, None)
    loss.backward()
    assert loss.item() == 0.0


@every_reduction
@pytest.mark.parametrize("away", [0.0, 1e4], ids=["certain", "gone"])
def test_extreme_values_stay_finite(name: str, away: float) -> None:
    values = torch.full((5,), away, requires_grad=True)
    loss = EVERY[name](values, ROWS, torch.full((5,), 1e4 - away), 2, None)
    loss.backward()
    assert loss.isfinite()
    assert values.grad is not None
    assert values.grad.isfinite().all()


def test_npo_does_not_overflow_where_sigmoid_would() -> None:
    values = torch.tensor([0.0], requires_grad=True)
    loss = npo(values, torch.tensor([0]), torch.tensor([1e5]), 1, 0.5)
    assert loss.item() == pytest.approx(2.0 * 1e5)  # -(2/b) * (b * delta) with delta = -1e5
    assert gradient(loss, values) == pytest.approx([-2.0])
