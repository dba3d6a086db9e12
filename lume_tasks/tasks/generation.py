"""What the task YAMLs name: data functions, result functions and aggregations, as the harness calls them.

A data function receives the model arguments and ``--metadata`` merged, and returns ``{"test": Dataset}``. A result
function returns every metric for every document (the harness drops metrics that only some documents have); a document
that does not belong to a metric gives None there, and the aggregation leaves it out.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain, zip_longest
from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from lume_tasks.data import locate, published
from lume_tasks.data.rows import SIDES
from lume_tasks.errors import DataError
from lume_tasks.metrics import aggregate, bootstrap
from lume_tasks.metrics.text import exact_match, rouge_recall
from lume_tasks.tasks import model_checks, options, reference

GENERATION_METRICS = tuple(f"{side}_{name}" for side in SIDES for name in ("regurgitation", "knowledge", "rouge1"))
MAIN_METRICS = tuple(name for name in GENERATION_METRICS if not name.endswith("rouge1"))
INTERVAL_METRICS = tuple(f"{name}_{end}" for name in MAIN_METRICS for end in bootstrap.ENDS)


class RowsTask(ConfigurableTask):
    """A task on the rows that its data function returns."""

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Call the data function (without the harness's note about metadata, once per task, at every start)."""
        metadata = self.config.metadata or {}
        options.check_metadata(metadata)
        self.dataset = self.config.custom_dataset(**metadata, **(dataset_kwargs or {}))
        # The results hold a deep copy of the configuration: keep a model or tokenizer that came as an object out of it.
        plain = (str, int, float, list, dict)
        self.config.metadata = {key: value for key, value in metadata.items() if isinstance(value, plain)}

    def build_all_requests(self, **kwargs: Any) -> None:
        """Build the requests, never from ``--cache_requests``: that cache knows neither the rows nor the tokenizer."""
        super().build_all_requests(**kwargs | {"cache_requests": False})


class LumeTask(RowsTask):
    """A task whose prompt is fixed by the protocol: no chat template, no system text."""

    def __init__(self, config: dict[str, Any]) -> None:
        """Build from the YAML's dictionary; ``class`` is what led here and no field of a task."""
        super().__init__(config={key: value for key, value in config.items() if key != "class"})
        self._generation = dict(self.config.generation_kwargs or {})  # before --gen_kwargs changes them

    def aggregation(self) -> dict[str, Callable[[Sequence[Any]], float]]:
        """The aggregations by metric; each ``aggregate.Score`` that they give knows the number of documents."""
        documents = len(self.eval_docs)
        return {name: _with_documents(function, documents) for name, function in super().aggregation().items()}

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **options: Any) -> None:
        """Call the data function, and let the results tell which documents were scored."""
        super().download(dataset_kwargs, **options)
        documents = map(self.document, self.dataset[self.config.test_split])
        self.config.metadata[published.DIGEST] = published.documents_digest(documents)

    def document(self, doc: dict[str, Any]) -> list[Any]:
        """What a document is, for its digest, without what the tokenizer or a reference adds."""
        return [doc["side"], doc["id"], doc["input"], doc["output"]]

    def build_all_requests(self, **kwargs: Any) -> None:
        """Build the requests; refuse what would silently measure something else than LUME.

        Raises:
            DataError: a chat template, a system instruction or other generation options were asked for, or the model
                would not get the requests as they are.
        """
        options = ("apply_chat_template", "system_instruction")
        given = [f"--{option}" for option in options if kwargs.get(option)]
        if given:
            raise DataError(
                f"{self.config.task}: LUME's prompt is the bare text, without template or system text; run it without "
                f"{' and '.join(given)} (other tasks can keep them in a run of their own)."
            )
        self._check_generation()
        super().build_all_requests(**kwargs)
        model_checks.check_model(self.config.task, self.instances, self.config.metadata)

    def _check_generation(self) -> None:
        """Refuse ``--gen_kwargs`` that differ from the protocol's, unless metadata ``lume_gen_kwargs`` is true."""
        own = self._generation
        given = self.config.generation_kwargs or {}
        changed = [f"{name}={value!r}" for name, value in given.items() if name not in own or own[name] != value]
        if changed and self.config.metadata.get("lume_gen_kwargs") is not True:
            raise DataError(
                f"{self.config.task}: LUME generates greedily, at most 256 new tokens, until EOS; leave "
                f"{', '.join(changed)} out of --gen_kwargs (for numbers that are not LUME's: --metadata "
                "'{\"lume_gen_kwargs\": true}')"
            )


def _with_documents(function: Callable[[Sequence[Any]], float], documents: int) -> Callable[[Sequence[Any]], float]:
    """The aggregation, which notes on a ``aggregate.Score`` how many documents the task has."""

    def counted(items: Sequence[Any]) -> float:
        value = function(items)
        if isinstance(value, aggregate.Score):
            value.documents = documents
        return value

    return counted


class NewTokens(int):
    """``max_gen_toks`` of one row: the number itself, which is equal to others only where rows should share a batch.

    A batch generates until its last row is done, and backends batch requests whose generation options are equal. So
    two of these are equal only within a group of rows. With plain numbers, in JSON and in arithmetic it is the number
    and nothing more: to no backend does it say that a row may generate more or less than another.
    """

    group: str

    def __new__(cls, number: int, group: str) -> "NewTokens":
        """Take the most new tokens and the name of the row's group."""
        tokens = super().__new__(cls, number)
        tokens.group = group
        return tokens

    def __eq__(self, other: object) -> bool:
        """Tell whether the numbers are equal and, of two of these, the groups too."""
        return int(self) == other and (not isinstance(other, NewTokens) or self.group == other.group)

    def __ne__(self, other: object) -> bool:
        """Tell the opposite (``int`` has a comparison of its own for it)."""
        return not self == other

    __hash__ = int.__hash__

    def __reduce__(self) -> tuple[object, ...]:
        """Keep all of it through copies and pickling."""
        return NewTokens, (int(self), self.group)


class GenerationTask(LumeTask):
    """A task whose long and short rows do not share batches, nor those that a model still knows and those it forgot.

    Completions (``sc``) are long and answers (``qa``) short; what an unlearned model says about forget rows often runs
    on, what it says about retain rows ends like the reference.
    """

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> Any:
        """Build the request, on which ``NewTokens`` stands for the number of new tokens."""
        request = super().construct_requests(doc, ctx, **kwargs)
        context, options = request.arguments
        if isinstance(options.get("max_gen_toks"), int):
            tokens = NewTokens(options["max_gen_toks"], f"{doc['side']} {doc['kind']}")
            request.arguments = (context, options | {"max_gen_toks": tokens})
        return request


def alternate(*groups: Iterable[Any]) -> list[Any]:
    """First item of each group, then the second of each, ...: so that ``--limit`` leaves something of every group."""
    return [item for item in chain.from_iterable(zip_longest(*groups)) if item is not None]


def side_rows(lume_task: str, lume_data_dir: str | None = None, lume_split: str = "all") -> list[dict[str, Any]]:
    """Forget and retain rows of one task ("Task1", ...) in turn, with ``side`` and ``kind``.

    Raises:
        DataError: the data directory is missing or faulty, or has no row of this task in this split.
    """
    directory = locate.data_dir(lume_data_dir)
    rows = locate.load_rows(directory, lume_split)
    sides = [
        [
            {"id": row.id, "input": row.input, "output": row.output, "side": side, "kind": row.kind}
            for row in rows[side]
            if row.task == lume_task
        ]
        for side in SIDES
    ]
    if not any(sides):
        raise DataError(f"{directory}: no row of {lume_task} in split {lume_split!r}")
    return alternate(*sides)


def task_rows(
    lume_task: str,
    lume_data_dir: str | None = None,
    lume_split: str = "all",
    lume_reference_results: str | None = None,
    version: Any = None,
    **_: Any,
) -> dict[str, Dataset]:
    """Forget and retain rows of one task as documents, with the ``reference``'s scores where its results are named.

    Raises:
        DataError: the rows or the reference's results are missing or faulty.
    """
    docs = side_rows(lume_task, lume_data_dir, lume_split)
    task = f"lume_{lume_task.lower()}"
    docs = reference.with_reference(docs, lume_reference_results, task, version, _main_metric)
    return {"test": Dataset.from_list(docs)}


def _main_metric(doc: dict[str, Any]) -> str:
    """The one of the protocol's twelve numbers that a row counts for."""
    return f"{doc['side']}_{'regurgitation' if doc['kind'] == 'sc' else 'knowledge'}"


def generation_result(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Score one generation: ROUGE recalls for a completion (``sc``) row, exact match for a question (``qa``) row.

    For the intervals the scores stand beside the document's stem, for the comparison beside the reference's score.
    """
    if doc["kind"] == "sc":
        recall = rouge_recall(doc["output"], results[0])
        scores = {"regurgitation": recall["rougeL"], "rouge1": recall["rouge1"]}
    else:
        scores = {"knowledge": exact_match(doc["output"], results[0])}
    own: dict[str, Any] = {f"{doc['side']}_{name}": score for name, score in scores.items()}
    own |= {
        f"{name}_{end}": (doc["id"][:-3], own.get(name))
        for name in MAIN_METRICS
        for end in bootstrap.ENDS
        if name.startswith(doc["side"])
    }
    result = dict.fromkeys(GENERATION_METRICS + INTERVAL_METRICS) | own
    return result | _against_reference(doc, own) if "reference" in doc else result


def _against_reference(doc: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """(own score, the reference's) of the row, for each metric that it counts for."""
    name = _main_metric(doc)
    pair = (own[name], doc["reference"])
    distances = {f"distance_{metric}": pair if metric == name else None for metric in MAIN_METRICS}
    return {"forget_quality": pair if name == "forget_regurgitation" else None} | distances


def mean(values: Sequence[float | None]) -> aggregate.Mean:
    """Mean over the documents that have this metric; NaN where ``--limit`` left none."""
    return aggregate.Mean(value for value in values if value is not None)
