"""How hypothesis runs in the fault tests."""

from hypothesis import HealthCheck, settings


def examples(count: int) -> settings:
    """The same examples in each run, without a limit on the time of one; fixtures may be shared between them."""
    return settings(
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=count,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
