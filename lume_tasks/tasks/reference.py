"""Compare a model with a reference model (such as one trained on the retain rows alone), row by row."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from lume_tasks.errors import DataError, quote
from lume_tasks.metrics import aggregate
from lume_tasks.tasks.results import find_results, read_results, read_samples, samples_file

OPTION = "lume_reference_results"

Doc = dict[str, Any]
MetricOf = Callable[[Doc], str]
Pair = tuple[float, float]  # score of a row by the model under evaluation, and by the reference model


def add_scores(docs: Sequence[Doc], metadata: Mapping[str, Any], task: str, metric_of: MetricOf) -> None:
    """Add the reference model's score of each row as ``reference`` if metadata names its results."""
    if metadata.get(OPTION) is not None:
        samples, _ = reference_samples(docs, metadata, task, _row_key, metric_of)
        for doc, sample in zip(docs, samples, strict=True):
            doc["reference"] = float(sample[metric_of(doc)])


def _row_key(doc: Doc) -> Hashable:
    return doc.get("id"), doc.get("input"), doc.get("output")


def reference_samples(
    docs: Sequence[Doc], metadata: Mapping[str, Any], task: str, key: Callable[[Doc], Hashable], metric_of: MetricOf
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the reference model's logged sample of each document, matched by ``key``, and its task's metadata.

    ``metadata`` names the results file that ``lm_eval --log_samples --output_path ...`` wrote, or its folder.
    ``metric_of`` returns the metric that a document's sample must have.

    Raises:
        DataError: the results cannot be read, are of another version, lack the samples, or lack a document's score.
    """
    version = metadata.get("version")
    try:
        file = find_results(metadata[OPTION])
        content = read_results(file)
        found_version = content.get("versions", {}).get(task)
        log = samples_file(file, task)
        if task not in content["results"]:
            raise DataError(f"{file} has no results of {task}; it has: {', '.join(content['results'])}")
        if version not in (None, found_version):
            raise DataError(f"{file} has {task} in version {found_version}, not {version}: score the reference again")
        if not log.is_file():
            raise DataError(f"{log} is missing: evaluate the reference with --log_samples and keep its whole folder")
        by_key = {key(sample["doc"]): sample for sample in read_samples(log)}
    except DataError as error:
        raise DataError(f"{OPTION}: {error}") from error
    samples = [by_key.get(key(doc), {}) for doc in docs]
    lacking = [doc for doc, sample in zip(docs, samples, strict=True) if sample.get(metric_of(doc)) is None]
    if lacking:
        raise DataError(
            f"{OPTION}: {file} has no score in {task} for {len(lacking)} of {len(docs)} documents, the first "
            f"being {document_name(lacking[0])}: evaluate the reference on the same data and split, with "
            "--log_samples, without --limit"
        )
    return samples, content.get("configs", {}).get(task, {}).get("metadata") or {}


def check_options(task: str, config: Mapping[str, Any]) -> None:
    """Refuse results of a reference model that were made with other options, if metadata names such results.

    ``config`` is that of the task in this run, with its final generation options, as the harness writes it.
    """
    path = (config.get("metadata") or {}).get(OPTION)
    if path is None:
        return
    theirs = read_results(find_results(path)).get("configs", {}).get(task, {})
    found, own = _options(task, theirs), _options(task, config)
    names = [name for name in found | own if found.get(name) != own.get(name)]
    if theirs and names:
        different = ", ".join(f"{name}={found.get(name)!r} (in this run {own.get(name)!r})" for name in names)
        raise DataError(f"{OPTION}: {path} has {task} with {different}; score both models with the same options")


def _options(task: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the generation options of a task's configuration, and the metadata that changes prompts or answers."""
    metadata, options = config.get("metadata") or {}, dict(config.get("generation_kwargs") or {})
    if task.endswith("_rows"):
        options["lume_chat"] = metadata.get("lume_chat", True)
    if config.get("output_type") == "generate_until":
        options["lume_short_answers"] = metadata.get("lume_short_answers", False)
    return options


def document_name(doc: Doc) -> str:
    """Name a row or a membership-inference document in a message, without its text."""
    if "id" in doc:
        return f"row {quote(doc['id'])}"
    return f"{'member' if doc['member'] else 'nonmember'} document {doc['number']}"


def forget_quality(items: Sequence[Pair | None]) -> float:
    """Compute the p-value of the two-sample Kolmogorov-Smirnov test between both models' scores of the forget rows.

    Maini et al. 2024, "TOFU" (arXiv 2401.06121), who compare truth ratios. Near 1: the scores are distributed like the
    reference model's; below 0.05: the test tells them apart. The test uses ranks only, so losses and the probabilities
    computed from them give the same value. NaN if there are no rows.
    """
    from scipy.stats import ks_2samp

    pairs = [item for item in items if item is not None]
    return float(ks_2samp(*zip(*pairs, strict=True)).pvalue) if pairs else math.nan


def distance(items: Sequence[Pair | None]) -> float:
    """Compute the mean absolute difference between both models' scores of the same row; NaN if there are no rows."""
    return aggregate.mean(abs(own - reference) for own, reference in filter(None, items))
