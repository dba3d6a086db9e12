"""Token choice, RMU's direction and the scalar rules beside the losses, against values by hand."""

import math

import pytest
import torch

from lume_unlearn.methods.ceu import after_first
from lume_unlearn.methods.ngdiff import quadratic_rate
from lume_unlearn.methods.pdu import pdu_dual
from lume_unlearn.methods.rmu import rmu_direction
from lume_unlearn.methods.selective import selective_weight


def test_after_first_leaves_out_the_start_of_each_row() -> None:
    assert after_first(torch.tensor([0, 0, 0, 2]), 1).tolist() == [False, True, True, False]
    assert after_first(torch.tensor([0, 0, 0, 1, 1]), 2).tolist() == [False, False, True, False, False]
    assert after_first(torch.tensor([0, 0, 3]), 0).tolist() == [True, True, True]
    assert after_first(torch.zeros(0, dtype=torch.long), 1).tolist() == []


def test_rmu_direction_is_a_unit_vector_of_uniform_entries() -> None:
    direction = rmu_direction(4096, seed=3)
    assert (direction.shape, direction.dtype) == ((4096,), torch.float32)
    assert direction.norm().item() == pytest.approx(1.0, rel=1e-5)
    # Entries uniform in [0, 1) before scaling: mean / root mean square = (1/2) / sqrt(1/3), and none below 0.
    assert direction.min().item() >= 0.0
    assert direction.mean().item() * 64.0 == pytest.approx(math.sqrt(3.0) / 2.0, rel=0.02)


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
    ("dual", "retain_loss", "epsilon", "step", "expected"),
    [
        (100.0, 0.5, 0.3, 5.0, 101.0),
        (1.0, 0.1, 0.3, 2.0, 0.6),
        (1.0, 0.1, 0.3, 50.0, 0.0),  # never below 0
        (0.0, 0.4, 0.3, 1.0, 0.1),  # and it comes back
        (1.0, math.nan, 0.3, 1.0, math.nan),
    ],
)
def test_pdu_dual(dual: float, retain_loss: float, epsilon: float, step: float, expected: float) -> None:
    assert pdu_dual(dual, retain_loss, epsilon, step) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("excess", "expected"),
    [
        (-3.0, 1.2),
        (0.1, 1.2),  # 0.3 * 6^0.1 + 0.8 = 1.16
        (0.25, 1.3),  # 1.27
        (0.5, 1.5),  # 1.53
        (0.8, 2.1),  # 2.06
        (0.95, 2.3),  # 2.45
        (1e4, 2.3),
        (math.inf, 2.3),
        (math.nan, math.nan),
    ],
)
def test_selective_weight(excess: float, expected: float) -> None:
    assert selective_weight(2.0 + excess, 2.0) == pytest.approx(expected, rel=1e-15, nan_ok=True)


def test_quadratic_rate_finds_the_bottom_of_a_parabola() -> None:
    assert quadratic_rate(1.0, 9.0, 4.0, 1.0) == pytest.approx(2.0)
    assert quadratic_rate(1.0, 1.0, 4.0, 9.0) == pytest.approx(-2.0)
    minus, zero, plus = (3.0 * (x - 2e-4) ** 2 + 0.7 for x in (-5e-5, 0.0, 5e-5))
    assert quadratic_rate(5e-5, minus, zero, plus) == pytest.approx(2e-4, rel=1e-4)


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
