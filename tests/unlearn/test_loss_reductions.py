"""Every reduction at values derived by hand, its gradient, and its invariances.

The values of each token are in test_losses.py.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lume_unlearn.methods.base import Batch, Method, Rows, TokenCounts
from lume_unlearn.methods.common import row_mean, token_mean
from lume_unlearn.methods.gradient import GA
from lume_unlearn.methods.npo import NPO, SimNPO, TokenNPO
from lume_unlearn.methods.preference import DPO
from lume_unlearn.methods.swap import Swap, at_ranks, log_odds
from lume_unlearn.methods.weighted import WGA, SatImp

# Two rows of unequal length.
NLL = [0.5, 1.5, 2.0, 1.0, 4.0]
REFERENCE = [0.2, 0.9, 2.4, 1.3, 0.7]
ROWS = torch.tensor([0, 0, 0, 1, 1])
OTHER_NLL = [1.2, 0.3, 0.8, 2.2, 0.1, 3.0]
OTHER_ROWS = torch.tensor([0, 0, 1, 1, 1, 1])

Reduction = Callable[[Tensor, Tensor, Tensor, int, float | None], Tensor]


def loss_of(method: Method, forget: Rows, count: float, alternative: Rows | None = None) -> Tensor:
    """The loss of a method in an optimiser step of ``count`` tokens, or of as many rows."""
    counts = TokenCounts([1] * int(count), [], [])
    return method.forget_loss(Batch(forget, alternative or forget, counts, {}))


def of_tokens(method: Method, nll: Tensor, count: float | None = None, reference: Tensor | None = None) -> Tensor:
    known = nll if reference is None else reference
    rows = Rows(nll, torch.zeros(len(nll), dtype=torch.long), 1, known)
    return loss_of(method, rows, len(nll) if count is None else count)


def gradient_ascent(nll: Tensor, count: float | None = None) -> Tensor:
    return of_tokens(GA(), nll, count)


def wga(nll: Tensor, beta: float, count: float | None = None) -> Tensor:
    return of_tokens(WGA(beta), nll, count)


def satimp(nll: Tensor, beta1: float, beta2: float, count: float | None = None) -> Tensor:
    return of_tokens(SatImp(beta1, beta2), nll, count)


def token_npo(nll: Tensor, reference: Tensor, beta: float, count: float | None = None) -> Tensor:
    return of_tokens(TokenNPO(beta), nll, count, reference)


def npo(nll: Tensor, rows: Tensor, reference: Tensor, n: int, beta: float, count: float | None = None) -> Tensor:
    return loss_of(NPO(beta), Rows(nll, rows, n, reference), n if count is None else count)


def simnpo(nll: Tensor, rows: Tensor, n: int, beta: float, margin: float, count: float | None = None) -> Tensor:
    return loss_of(SimNPO(beta, margin), Rows(nll, rows, n, nll), n if count is None else count)


def dpo(nll: Tensor, rows: Tensor, reference: Tensor, *other: Any) -> Tensor:
    other_nll, other_rows, other_reference, n, beta, count = (*other, None)[:6]
    alternative = Rows(other_nll, other_rows, n, other_reference)
    return loss_of(DPO(beta), Rows(nll, rows, n, reference), n if count is None else count, alternative)


def dpo_of(x: Tensor, rows: Tensor, reference: Tensor, n: int, count: float | None) -> Tensor:
    """DPO with an alternative of two tokens, the same for every row."""
    other_nll, other_reference = x.new_tensor([1.2, 0.3] * n), x.new_tensor([1.0, 0.6] * n)
    other_rows = torch.arange(n).repeat_interleave(2)
    return dpo(x, rows, reference, other_nll, other_rows, other_reference, n, 0.7, count)


EVERY: dict[str, Reduction] = {
    "token_mean": lambda x, rows, ref, n, count: token_mean(x, count),
    "ga": lambda x, rows, ref, n, count: gradient_ascent(x, count),
    "wga": lambda x, rows, ref, n, count: wga(x, 0.6, count),
    "satimp": lambda x, rows, ref, n, count: satimp(x, 0.6, 1.4, count),
    "token_npo": lambda x, rows, ref, n, count: token_npo(x, ref, 0.7, count),
    "row_mean": lambda x, rows, ref, n, count: row_mean(x, rows, n, count),
    "npo": lambda x, rows, ref, n, count: npo(x, rows, ref, n, 0.7, count),
    "simnpo": lambda x, rows, ref, n, count: simnpo(x, rows, n, 0.7, 0.4, count),
    "dpo": dpo_of,
}
every_reduction = pytest.mark.parametrize("name", EVERY)


def f64(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def nll() -> Tensor:
    return f64(NLL).requires_grad_()


def gradient(loss: Tensor, values: Tensor) -> list[float]:
    found: list[float] = torch.autograd.grad(loss, values)[0].tolist()
    return found


P = [math.exp(-x) for x in NLL]


def test_worked_examples():
    one, two, far = torch.tensor([0, 1]), torch.tensor([0, 0, 1]), math.log(4.0)
    found = {
        "ga": gradient_ascent(nll()),
        "wga": wga(f64([math.log(2.0), far]), 1.0),
        "satimp": satimp(f64([math.log(2.0), far]), 1.0, 1.0),
        "npo": npo(f64([1.0, 2.0, 5.0]), two, f64([0.75, 0.25, 5.0]), 2, 0.1),
        "token_npo": token_npo(f64([3.0, 5.0]), f64([1.0, 5.0]), 0.1),
        "simnpo": simnpo(f64([1.0, 3.0, 1.0]), two, 2, 2.0, 1.0),
        "dpo": dpo(f64([3.0, 1.0]), one, f64([1.0, 1.0]), f64([2.0, 4.0]), one, f64([3.0, 4.0]), 2, 0.1),
        "row_mean": row_mean(f64([1.0, 3.0, 5.0]), two, 2),
        "row without tokens": row_mean(f64([4.0, 2.0]), torch.tensor([0, 2]), 3),
        "count": token_mean(nll(), torch.tensor(10.0)),
    }
    expected = {
        "ga": -1.8,
        "wga": -0.346574,
        "satimp": -0.216608,
        "npo": 12.912860,
        "token_npo": 12.912860,
        "simnpo": 0.410038,
    }
    expected |= {"dpo": 12.475024, "row_mean": 3.5, "row without tokens": 2.0, "count": 0.9}
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (gradient_ascent, [-0.2] * 5),
        (lambda x: row_mean(x, ROWS, 2), [1 / 6] * 3 + [1 / 4] * 2),
        (lambda x: wga(x, 2.0), [-(p**2) / 5 for p in P]),  # the weight alone
        (lambda x: satimp(x, 5.0, 1.0), [-(p**5) * (1 - p) / 5 for p in P]),
        # At the reference, and for a small beta: gradient ascent on sequence sums, -1/B for every token.
        (lambda x: npo(x, ROWS, x.detach(), 2, 0.1), [-0.5] * 5),
        (lambda x: npo(x, ROWS, f64([-90.0, -3.0, -3.0, 2.0, 3.0]), 2, 1e-6), [-0.5] * 5),
        # -2 sigmoid(-beta delta_b) / B: delta is 100 for the first row, which is forgotten, 0 for the second.
        (
            lambda x: npo(x, ROWS, f64([-90.0, -3.0, -3.0, 2.0, 3.0]), 2, 0.1),
            [-1.0 / (1.0 + math.exp(10.0))] * 3 + [-0.5] * 2,
        ),
        (lambda x: dpo(x, ROWS, x.detach(), f64(OTHER_NLL), OTHER_ROWS, f64(OTHER_NLL), 2, 0.1), [-0.5] * 5),
        # The alternative's NLL falls.
        (lambda x: dpo(f64(OTHER_NLL), OTHER_ROWS, f64(OTHER_NLL), x, ROWS, x.detach(), 2, 0.1), [0.5] * 5),
    ],
)
def test_gradients_by_hand(loss, expected):
    values = nll()
    assert gradient(loss(values), values) == pytest.approx(expected, rel=1e-4)


def test_satimp_pushes_neither_certain_nor_forgotten_tokens():
    values = torch.tensor([0.0, 0.5, 1e4], requires_grad=True)
    certain, between, gone = gradient(satimp(values, 5.0, 1.0), values)
    assert (certain, gone) == (0.0, 0.0)
    assert between < 0.0


def test_dpo_alternatives_belong_to_their_row_in_any_order():
    alternatives = f64(OTHER_NLL), OTHER_ROWS, f64([1.0, 0.6, 1.1, 0.9, 0.4, 2.5])
    order = [5, 0, 3, 1, 4, 2]
    found = dpo(nll(), ROWS, f64(REFERENCE), *alternatives, 2, 0.3)
    again = dpo(nll(), ROWS, f64(REFERENCE), *(part[order] for part in alternatives), 2, 0.3)
    assert again.item() == pytest.approx(found.item())


@every_reduction
def test_a_side_without_labels_is_zero_rather_than_nan(name):
    empty = torch.zeros(0, requires_grad=True)
    loss = EVERY[name](empty, torch.zeros(0, dtype=torch.long), torch.zeros(0), 0, None)
    loss.backward()
    assert loss.item() == 0.0


@every_reduction
@pytest.mark.parametrize("away", [0.0, 1e4], ids=["certain", "gone"])
def test_extreme_values_stay_finite(name, away):
    values = torch.full((5,), away, requires_grad=True)
    loss = EVERY[name](values, ROWS, torch.full((5,), 1e4 - away), 2, None)
    assert loss.isfinite()
    assert all(map(math.isfinite, gradient(loss, values)))


def test_a_token_weighs_as_in_a_mean_over_rows_or_over_tokens():
    """Rows of 1, 3 and 16 tokens: a third of the first and of the second row, a twentieth of the step's tokens."""
    rows = torch.tensor([0] + [1] * 3 + [2] * 16)
    weights = Rows(torch.zeros(20), rows, 3, torch.zeros(0)).weights(3, 20)
    assert weights.tolist() == pytest.approx([1 / 3] + [1 / 9] * 3 + [1 / 20] * 16)
    part = Rows(torch.zeros(16), torch.zeros(16, dtype=torch.long), 1, torch.zeros(0))  # a micro-batch of this step
    assert part.weights(3, 20).tolist() == pytest.approx([1 / 20] * 16)


@pytest.mark.parametrize(
    ("quantile", "control", "tie"), [(0.3, [2.0, 2.5], 0.141), (0.3, [1.0, 2.5], 0.329), (None, [2.0, 2.5], 0.235)]
)
def test_swap_by_hand(quantile, control, tie):
    """The worked example of its docstring; a control below the row weighs 2 (1 - q); without quantiles, q is 1/2."""

    def row(values: list[float], own: Sequence[float] = ()) -> Rows:
        return Rows(torch.tensor(values), torch.zeros(len(values), dtype=torch.long), 1, torch.tensor(own))

    counts = TokenCounts([2], [2], [], [2])
    batch = Batch(row([1.0, 3.0], [0.0, 1.0]), row([0.5, 1.5]), counts, {}, row(control, [0.0, 1.0]))
    batch = batch if quantile is None else replace(batch, quantiles=torch.tensor([quantile]))
    assert Swap().forget_loss(batch).item() == pytest.approx(2 * tie + 0.649937 + 1, abs=2e-6)


def test_own_words_that_the_model_is_certain_of_are_pushed_as_well():
    """Probability 0.999 has the slope to its logit that 0.37 has; a token above the level has none."""
    assert log_odds(torch.tensor([1.0, 0.1, 0.0])).tolist() == pytest.approx([-0.541331, 2.252073, 11.512925])
    nll = torch.tensor([200.0, 1.0, 1e-3], requires_grad=True)
    rows, none = torch.zeros(3, dtype=torch.long), torch.zeros(0)
    control, answers = Rows(torch.full((3,), 9.0), rows, 1, torch.ones(3)), Rows(none, rows[:0], 0, none)

    def loss(own: float) -> Tensor:
        forget = Rows(nll, rows, 1, torch.full((3,), own))
        return Swap().forget_loss(Batch(forget, answers, TokenCounts([3], [], [], []), {}, control))

    (slope,) = torch.autograd.grad(loss(1.0) - loss(0.0), nll)
    to_logit = slope * -(1 - (-nll.detach()).exp())  # an NLL's slope to its logit is p - 1
    assert to_logit.tolist() == pytest.approx([0, 1 / 6, 1 / 6], abs=0.002)


def test_a_text_is_tied_token_by_token_and_an_answer_by_its_mean():
    """Two rows with the NLLs (20, 1), controls (3, 30), whose quantiles 3/4 and 1/4 are 23.25 and 9.75."""
    assert at_ranks(torch.tensor([5.0, 1.0]), torch.tensor([3.0, 30.0])).tolist() == [23.25, 9.75]
    none, rows = torch.zeros(4), torch.tensor([0, 0, 1, 1])
    values, counts = torch.tensor([20.0, 1.0] * 2, requires_grad=True), TokenCounts([2, 2], [], [], [2, 2])
    control = Rows(torch.tensor([3.0, 30.0] * 2), rows, 2, none)
    empty, texts = Rows(none[:0], rows[:0], 0, none), torch.tensor([True, False])
    batch = Batch(Rows(values, rows, 2, none), empty, counts, {}, control, texts=texts)
    loss = Swap().forget_loss(batch)
    assert loss.item() == pytest.approx((3.25 + 8.75) / 2 - 0.015 + (33 - 21) / 2 - 0.015)
    assert torch.autograd.grad(loss, values)[0].tolist() == [-0.5] * 4
    far = replace(batch, forget=Rows(torch.tensor([40.0, 1.0] * 2, requires_grad=True), rows, 2, none))
    (slope,) = torch.autograd.grad(Swap().forget_loss(far), far.forget.values)
    assert slope.tolist() == [0.5, -0.5, 0.5, 0.5]  # the mean of the text's is above its control's, a token is below


def test_rows_come_to_their_quantiles_of_the_invented_persons():
    """4000 controls from a normal distribution: gradient descent on the tie alone leads each row to its quantile."""
    generator, quantiles = torch.Generator().manual_seed(0), torch.tensor([0.125, 0.5, 0.75])
    values, none = torch.zeros(3, requires_grad=True), torch.zeros(3)
    rows, counts = torch.arange(3), TokenCounts([1] * 3, [], [], [1] * 3)
    for step in range(4000):
        control = Rows(torch.randn(3, generator=generator), rows, 3, none)
        batch = Batch(Rows(values, rows, 3, none), Rows(none[:0], rows[:0], 0, none), counts, {}, control, quantiles)
        (slope,) = torch.autograd.grad(Swap().forget_loss(batch), values)
        values = (values - 0.3 * (1 - step / 4000) * slope).detach().requires_grad_()
    found = torch.distributions.Normal(0.0, 1.0).cdf(values)
    torch.testing.assert_close(found, quantiles, rtol=0, atol=0.05)
