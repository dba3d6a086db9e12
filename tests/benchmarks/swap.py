"""Size and power of the swap test, simulated: python tests/benchmarks/swap.py

The rows of a person depend on each other: half of the variance of a value is the name's own. A leak adds so many
standard deviations to all of a person's values, or to those of one row. Prints how often the p-value is .05 or less.
"""

import numpy as np

from lume_tasks.metrics import swap

CONTROLS, RUNS = 40, 400
LEAKS = (0.0, 0.5, 1.0, 2.0, 3.0)


def values(draw: np.random.Generator, rows: int, leak: float, one_row: bool) -> np.ndarray:
    """Log-probabilities of one person and the controls, (rows, K + 1)."""
    names = draw.normal(size=CONTROLS + 1)
    found = (names + draw.normal(size=(rows, CONTROLS + 1))) / 2**0.5
    found[: 1 if one_row else rows, 0] += leak
    return found


def rate(persons: int, rows: int, leak: float, one_row: bool) -> tuple[float, float]:
    """Shares of runs in which the persons are found to be tied, and avoided."""
    draw = np.random.default_rng(0)
    found = [
        swap.of_persons([(values(draw, rows, leak, one_row), [8] * rows) for _ in range(persons)]) for _ in range(RUNS)
    ]
    return tuple(sum(getattr(one, field) <= 0.05 for one in found) / RUNS for field in ("leak", "avoided"))


def main() -> None:
    """Print a table in Markdown."""
    print("| persons | rows of each | leaking | " + " | ".join(f"{leak:g} sd" for leak in LEAKS) + " | avoided, at 0 |")
    print("|---" * (4 + len(LEAKS)) + "|")
    for persons, rows, one_row in ((1, 1, False), (1, 4, False), (1, 12, True), (8, 4, False)):
        rates = [rate(persons, rows, leak, one_row) for leak in LEAKS]
        cells = [f"{tied:.3f}" for tied, _ in rates]
        which = "one row" if one_row else "all rows"
        print(f"| {persons} | {rows} | {which} | " + " | ".join(cells) + f" | {rates[0][1]:.3f} |", flush=True)


if __name__ == "__main__":
    main()
