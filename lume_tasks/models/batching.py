"""Batches that fit into memory: as many rows as are allowed, half of them wherever memory runs out."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from lm_eval.models.utils_hf import clear_torch_cache

_log = logging.getLogger("lume_tasks")

Row = TypeVar("Row")
Result = TypeVar("Result")


@dataclass
class Budget:
    """How much one batch may hold; kept as long as the model, so that what did not fit once is not tried again."""

    rows: int
    tokens: float = math.inf  # rows times the widest of them

    def fit(self, widths: Sequence[int]) -> int:
        """How many of the first rows make the next batch, at least one.

        Args:
            widths: tokens that each of the rows left needs, prompt and new ones together.
        """
        widest = 0
        for count, width in enumerate(widths[: self.rows]):
            widest = max(widest, width)
            if count and widest * (count + 1) > self.tokens:
                return count
        return min(len(widths), self.rows)


def run_in_batches(
    rows: Sequence[Row], widths: Sequence[int], budget: Budget, run: Callable[[Sequence[Row]], list[Result]]
) -> Iterator[list[Result]]:
    """Run all rows, in order; where memory runs out, the same rows again in smaller batches.

    Args:
        rows: what ``run`` takes.
        widths: tokens that each row needs.
        budget: what a batch may hold; lowered to half of what did not fit.
        run: gives the results of a batch, all or none.

    Yields:
        the results of each batch.

    Raises:
        RuntimeError: memory runs out with a single row.
    """
    start = 0
    while start < len(rows):
        count = budget.fit(widths[start:])
        results = _unless_out_of_memory(run, rows[start : start + count])
        if results is None:
            # Out here the error is gone, and with it the tensors that its traceback kept alive.
            clear_torch_cache()
            widest = max(widths[start : start + count])
            budget.tokens = count * widest / 2
            _log.warning(
                "lume-hf: no memory for %d rows of %d tokens; these again, and the rest, in batches of half as much",
                *(count, widest),
            )
            continue
        yield results
        start += count


def _unless_out_of_memory(run: Callable[[Sequence[Row]], list[Result]], batch: Sequence[Row]) -> list[Result] | None:
    try:
        return run(batch)
    except RuntimeError as error:
        if len(batch) > 1 and is_out_of_memory(error):
            return None
        raise


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch says that memory ran out, on whatever device."""
    text = str(error).lower()
    said = ("out of memory", "can't allocate memory", "not enough memory")  # GPUs; the CPU's allocator, on Windows
    return isinstance(error, torch.OutOfMemoryError) or any(words in text for words in said)
