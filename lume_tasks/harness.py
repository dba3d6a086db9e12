"""What the task YAMLs name: data functions, result functions and aggregations, as the harness calls them.

A data function receives the model arguments and ``--metadata`` merged, and returns ``{"test": Dataset}``. A result
function returns every metric for every document (the harness drops metrics that only some documents have); a document
that does not belong to a metric gives None there, and the aggregation leaves it out.
"""

from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from lume_tasks import data, metrics, mia

SIDES = ("forget", "retain")
GENERATION_METRICS = tuple(f"{side}_{name}" for side in SIDES for name in ("regurgitation", "knowledge", "rouge1"))


class LumeTask(ConfigurableTask):  # type: ignore[misc]
    """A task whose prompt is fixed by the protocol: no chat template, no system text."""

    def __init__(self, config: dict[str, Any]) -> None:
        """Build from the YAML's dictionary; ``class`` is what led here and no field of a task."""
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Call the data function (without the harness's note about metadata, once per task, at every start)."""
        self.dataset = self.config.custom_dataset(**(self.config.metadata or {}), **(dataset_kwargs or {}))

    def build_all_requests(self, **kwargs: Any) -> None:
        """Build the requests; refuse what would silently measure something else than LUME."""
        options = ("apply_chat_template", "system_instruction")
        given = [f"--{option}" for option in options if kwargs.get(option)]
        if given:
            raise data.DataError(
                f"{self.config.task}: LUME's prompt is the bare text, without template or system text; run it without "
                f"{' and '.join(given)} (other tasks can keep them in a run of their own)."
            )
        super().build_all_requests(**kwargs)


def alternate(*groups: Iterable[Any]) -> list[Any]:
    """First item of each group, then the second of each, ...: so that ``--limit`` leaves something of every group."""
    return [item for item in chain.from_iterable(zip_longest(*groups)) if item is not None]


def task_rows(
    lume_task: str, lume_data_dir: str | None = None, lume_split: str = "all", **_: Any
) -> dict[str, Dataset]:
    """Forget and retain rows of one task ("Task1", ...), as documents with ``side`` and ``kind``.

    Raises:
        DataError: the data directory is missing or faulty, or has no row of this task in this split.
    """
    directory = data.data_dir(lume_data_dir)
    rows = data.load_rows(directory, lume_split)
    sides = [
        [
            {"id": row.id, "input": row.input, "output": row.output, "side": side, "kind": row.kind}
            for row in rows[side]
            if row.task == lume_task
        ]
        for side in SIDES
    ]
    if not any(sides):
        raise data.DataError(f"{directory}: no row of {lume_task} in split {lume_split!r}")
    return {"test": Dataset.from_list(alternate(*sides))}


def generation_result(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float | None]:
    """Score one generation: ROUGE recalls for a completion (``sc``) row, exact match for a question (``qa``) row."""
    if doc["kind"] == "sc":
        recall = metrics.rouge_recall(doc["output"], results[0])
        scores = {"regurgitation": recall["rougeL"], "rouge1": recall["rouge1"]}
    else:
        scores = {"knowledge": metrics.exact_match(doc["output"], results[0])}
    own: dict[str, float | None] = {f"{doc['side']}_{name}": score for name, score in scores.items()}
    return dict.fromkeys(GENERATION_METRICS) | own


def mean(values: Sequence[float | None]) -> metrics.Mean:
    """Mean over the documents that have this metric; NaN where ``--limit`` left none."""
    return metrics.Mean(value for value in values if value is not None)


def mia_documents(lume_data_dir: str | None = None, **metadata: Any) -> dict[str, Dataset]:
    """One request a document, members and non-members in turn.

    Raises:
        DataError: no MIA documents, no tokenizer, or documents that cannot be scored exactly.
    """
    members, nonmembers = data.load_mia(data.data_dir(lume_data_dir))
    tokenizer = mia.load_tokenizer(metadata)
    requests = mia.mia_requests(tokenizer, {"member": members, "nonmember": nonmembers})
    return {"test": Dataset.from_list(alternate(*requests.values()))}


def mia_result(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, tuple[bool, float]]:
    """(member?, mean token loss in nats) of one document, for both metrics."""
    loss = -results[0][0] / doc["scored_tokens"]
    return dict.fromkeys(("loss_auc", "mia_score"), (doc["member"], loss))


def loss_auc(items: Sequence[tuple[bool, float]]) -> float:
    """AUC of the loss attack over (member?, loss) pairs."""
    return metrics.loss_auc([loss for _, loss in items], [member for member, _ in items])


def mia_score(items: Sequence[tuple[bool, float]]) -> float:
    """``1 - 2 |AUC - 0.5|`` over (member?, loss) pairs."""
    return metrics.mia_score(loss_auc(items))
