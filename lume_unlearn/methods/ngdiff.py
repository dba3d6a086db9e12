"""NGDiff: both gradients normalised before they are subtracted; the trainer is in `training.ngdiff`."""

import math

from lume_unlearn.methods.spec import Method, Param


def quadratic_rate(rate: float, minus: float, zero: float, plus: float) -> float | None:
    """Return the learning rate at the minimum of the parabola through three losses, or None.

    It is ``(rate/2) (minus - plus) / curvature`` with ``curvature = plus - 2 zero + minus``; not bounded, and negative
    where the loss rises along the step.

    Worked example: losses (x - 2)^2 at x = -1, 0, 1 are 9, 4, 1: (1/2) * 8 / 2 = 2.

    Source: Bu et al. 2024 (arXiv 2410.22086), the automatic learning rate of NGDiff.

    Args:
        rate: the current rate.
        minus: loss after a step of -rate along the update direction.
        zero: loss without a step.
        plus: loss after a step of rate.

    Returns:
        None where the parabola has no minimum or a loss is not finite: the current rate should stay.
    """
    curvature = plus - 2.0 * zero + minus
    if not 0.0 < curvature < math.inf:  # false for NaN, too
        return None
    return rate / 2.0 * (minus - plus) / curvature


METHODS = (
    Method(
        "ngdiff",
        "normalised gradient difference",
        "Bu et al. 2024, arXiv 2410.22086",
        "gradients g_R/|g_R| - g_F/|g_F| of the NLL; learning rate searched every 10 steps",
        retain_terms=("nll",),
        normalised=True,
        params={
            "rate_every": Param(
                10, "steps between two searches for ngdiff's learning rate; 0 for none", zero=True, whole=True
            ),
            "rate_range": Param(10.0, "ngdiff's learning rate stays within so many times the first, up and down"),
        },
        defaults={
            "epochs": 15,
            "learning_rate": {"full": 5e-5},
            "lr_schedule": "constant",
            "warmup": 0.0,
            "max_grad_norm": 0.0,
        },
    ),
)
