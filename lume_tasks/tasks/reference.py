"""How far a model is from a reference, such as one trained on the retain rows alone: row by row, from its samples."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lume_tasks.errors import DataError, quote
from lume_tasks.metrics import aggregate
from lume_tasks.tasks.results import read_reference

Pair = tuple[float, float]  # score of a row by the model under evaluation, and by the reference


def with_reference(
    docs: list[dict[str, Any]],
    path: str | None,
    task: str,
    version: Any,
    metric_of: Callable[[dict[str, Any]], str],
) -> list[dict[str, Any]]:
    """The documents, each with what the reference scored on the same row as ``reference``; as they are without a path.

    Args:
        docs: rows with ``id``, ``input`` and ``output``.
        path: results of the reference, written by the harness with ``--log_samples``.
        task: name of the task in the harness.
        version: of the task, which the reference's has to be.
        metric_of: names the metric that a row is scored by.

    Raises:
        DataError: the results cannot be read, are of other rows, or lack the score of a row.
    """
    if path is None:
        return docs
    samples = {sample["doc"].get("id"): sample for sample in read_reference(path).samples(task, version)}
    found = []
    for doc in docs:
        sample = samples.get(doc["id"], {"doc": {}})
        score = sample.get(metric_of(doc))
        if isinstance(score, (int, float)) and all(
            sample["doc"].get(field) == doc[field] for field in ("input", "output")
        ):
            found.append(doc | {"reference": float(score)})
    if len(found) < len(docs):
        known = {doc["id"] for doc in found}
        first = next(doc["id"] for doc in docs if doc["id"] not in known)
        raise DataError(
            f"lume_reference_results: {path} lacks a score in {task} for {len(docs) - len(found)} of {len(docs)} rows; "
            f"the first is {quote(first)}. Evaluate the reference on the same data and split, with --log_samples, "
            "without --limit."
        )
    return found


def forget_quality(items: Sequence[Pair | None]) -> float:
    """p-value of the two-sample Kolmogorov-Smirnov test between both models' scores of the forget rows.

    Maini et al. 2024, "TOFU" (arXiv 2401.06121), there over truth ratios. Near 1: the scores are
    distributed as those of the reference; under 0.05: they can be told apart. The test sees ranks only, so that losses
    and the probabilities that follow from them give the same value. NaN where there are no rows.
    """
    from scipy.stats import ks_2samp

    own, reference = _columns(items)
    return float(ks_2samp(own, reference).pvalue) if own else np.nan


def distance(items: Sequence[Pair | None]) -> float:
    """Absolute difference between both models' means over the same rows; NaN where there are none."""
    own, reference = _columns(items)
    return abs(aggregate.Mean(own) - aggregate.Mean(reference))


def _columns(items: Sequence[Pair | None]) -> tuple[list[float], list[float]]:
    pairs = [item for item in items if item is not None]
    return [own for own, _ in pairs], [reference for _, reference in pairs]
