"""Token choice, RMU's direction and the scalar rules beside the losses, against values by hand."""

import math

import pytest
import torch

from lume_unlearn.methods.ceu import after_first
from lume_unlearn.methods.common import row_sums
from lume_unlearn.methods.ngdiff import quadratic_rate
from lume_unlearn.methods.pdu import pdu_dual
from lume_unlearn.methods.rmu import rmu_direction
from lume_unlearn.methods.selective import selective_weight


def test_row_sums_gives_zero_for_a_row_without_tokens() -> None:
    values = torch.tensor([1.0, 2.0, 4.0])
    assert row_sums(values, torch.tensor([0, 0, 2]), 4).tolist() == [3.0, 0.0, 4.0, 0.0]


@pytest.mark.parametrize(
    ("rows", "skip", "expected"),
    [
        ([0, 0, 0, 2], 1, [False, True, True, False]),
        ([0, 0, 0, 1, 1], 2, [False, False, True, False, False]),
        ([0, 0, 3], 0, [True, True, True]),
        ([1, 1], 5, [False, False]),
        ([], 1, []),
    ],
)
def test_after_first_leaves_out_the_start_of_each_row(rows: list[int], skip: int, expected: list[bool]) -> None:
    assert after_first(torch.tensor(rows, dtype=torch.long), skip).tolist() == expected


def test_rmu_direction_is_a_unit_vector_of_uniform_entries() -> None:
    direction = rmu_direction(4096, seed=3)
    assert direction.shape == (4096,)
    assert direction.dtype == torch.float32
    assert direction.norm().item() == pytest.approx(1.0, rel=1e-5)
    # Entries uniform in [0, 1) before scaling: mean / root mean square = (1/2) / sqrt(1/3), and none below 0.
    assert direction.min().item() >= 0.0
    assert direction.mean().item() * 64.0 == pytest.approx(math.sqrt(3.0) / 2.0, rel=0.02)


def test_rmu_direction_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = rmu_direction(64, seed=3)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    torch.rand(7)
    assert torch.equal(rmu_direction(64, seed=3), first)
    assert not torch.equal(rmu_direction(64, seed=4), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # the shared generator was not drawn from


def test_rmu_direction_does_not_follow_the_default_dtype() -> None:
    expected = rmu_direction(64, seed=3)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(rmu_direction(64, seed=3), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("dual", "retain_loss", "epsilon", "step", "expected"),
    [
        (100.0, 0.5, 0.3, 5.0, 101.0),
        (1.0, 0.1, 0.3, 2.0, 0.6),
        (1.0, 0.1, 0.3, 50.0, 0.0),  # never below 0
        (0.0, 0.4, 0.3, 1.0, 0.1),  # and it comes back
    ],
)
def test_pdu_dual(dual: float, retain_loss: float, epsilon: float, step: float, expected: float) -> None:
    assert pdu_dual(dual, retain_loss, epsilon, step) == pytest.approx(expected)


def test_pdu_dual_does_not_hide_a_loss_that_is_not_a_number() -> None:
    assert math.isnan(pdu_dual(1.0, math.nan, 0.3, 1.0))


@pytest.mark.parametrize(
    ("excess", "expected"),
    [
        (-3.0, 1.2),
        (0.0, 1.2),
        (0.1, 1.2),  # 0.3 * 6^0.1 + 0.8 = 1.16
        (0.25, 1.3),  # 1.27
        (0.5, 1.5),  # 1.53
        (0.8, 2.1),  # 2.06
        (0.89, 2.3),  # 2.28
        (0.95, 2.3),  # 2.45
        (1e4, 2.3),
        (math.inf, 2.3),
    ],
)
def test_selective_weight(excess: float, expected: float) -> None:
    assert selective_weight(2.0 + excess, 2.0) == expected


def test_selective_weight_does_not_hide_a_loss_that_is_not_a_number() -> None:
    assert math.isnan(selective_weight(math.nan, 2.0))


def test_quadratic_rate_finds_the_bottom_of_a_parabola() -> None:
    assert quadratic_rate(1.0, 9.0, 4.0, 1.0) == pytest.approx(2.0)

    def loss(x: float) -> float:
        return 3.0 * (x - 2e-4) ** 2 + 0.7

    assert quadratic_rate(5e-5, loss(-5e-5), loss(0.0), loss(5e-5)) == pytest.approx(2e-4, rel=1e-4)


def test_quadratic_rate_is_negative_where_the_loss_rises_along_the_step() -> None:
    assert quadratic_rate(1.0, 1.0, 4.0, 9.0) == pytest.approx(-2.0)


@pytest.mark.parametrize(
    ("minus", "zero", "plus"),
    [
        (2.0, 1.0, 0.0),  # a line
        (0.0, 1.0, 0.0),  # a hill
        (1.0, 1.0, 1.0),
        (math.nan, 1.0, 2.0),
        (2.0, math.nan, 2.0),
        (2.0, 1.0, math.nan),
        (math.inf, 1.0, 2.0),
        (2.0, -math.inf, 2.0),
        (2.0, 1.0, math.inf),
        (1e308, -1e308, 1e308),
    ],
)
def test_quadratic_rate_without_a_bottom_or_with_losses_that_are_not_finite(
    minus: float, zero: float, plus: float
) -> None:
    assert quadratic_rate(1e-5, minus, zero, plus) is None
