"""The classes that the LUME tasks share, and helpers of their data functions.

A data function (``custom_dataset`` in the YAML) receives the model arguments and ``--metadata`` merged. A result
function (``process_results``) returns every metric for every document, since the harness drops metrics that only some
documents have. The value is None if the document does not count for the metric; aggregations skip None.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from itertools import chain, zip_longest
from typing import Any, ClassVar

from lm_eval.api.task import ConfigurableTask

from lume_tasks.data import locate, published
from lume_tasks.data.chat import chat_prompt, plain_prompt, through_template
from lume_tasks.data.rows import OWN, ROW_TASKS, SIDES, TASKS, Row, task_name
from lume_tasks.data.source import Data
from lume_tasks.errors import DataError, quote
from lume_tasks.metrics import aggregate
from lume_tasks.tasks import model_checks, reference
from lume_tasks.tasks.model_checks import load_tokenizer as load_tokenizer

Aggregation = Callable[[Sequence[Any]], float]
Metrics = Mapping[str, tuple[Aggregation, bool | None]]  # name to aggregation, and whether a higher value is better

OPTIONS = (
    *("lume_data_dir", "lume_split", "lume_mmlu_path", "lume_mmlu_subjects", "lume_mmlu_limit", "lume_min_k"),
    *("lume_min_k_plus_plus", "lume_reference_results", "lume_partial", "lume_gen_kwargs", "lume_chat"),
    *("lume_swap_controls", "lume_swap_rows", "lume_swap_seed", "lume_short_answers"),
)

GENERATION: dict[str, Any] = {"until": [], "do_sample": False, "max_gen_toks": 256}
"""The generation options of the protocol, as in the task YAMLs."""


class RowsTask(ConfigurableTask):
    """A task on the rows that its data function returns."""

    metrics: ClassVar[Metrics] = {}  # set by classes whose YAML has no metric_list

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Build the task from the YAML's dictionary, whose ``class`` is not a field of a task."""
        fields = {key: value for key, value in config.items() if key != "class"}
        if self.metrics:
            fields["metric_list"] = [
                {"metric": name, "aggregation": aggregation, "higher_is_better": higher}
                for name, (aggregation, higher) in self.metrics.items()
            ]
        super().__init__(config=fields)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Call the data function, without the note about metadata that the harness logs for each task."""
        metadata = self.config.metadata or {}
        check_metadata(metadata)
        self.dataset = self.config.custom_dataset(**metadata, **(dataset_kwargs or {}))
        # The results hold a deep copy of the configuration: keep rows, models and tokenizers (objects) out of it.
        plain = (str, int, float, list, dict)
        self.config.metadata = {key: value for key, value in metadata.items() if isinstance(value, plain)}

    def build_all_requests(self, **kwargs: Any) -> None:
        """Build the requests without ``--cache_requests``, whose cache ignores changed rows and tokenizers."""
        super().build_all_requests(**kwargs | {"cache_requests": False})


class LumeTask(RowsTask):
    """A task whose prompt and generation options are fixed by the protocol."""

    def aggregation(self) -> dict[str, Aggregation]:
        """Return the aggregation of each metric. An ``aggregate.Score`` records how many documents the task has."""
        documents = len(self.eval_docs)
        return {name: _noting(documents, function) for name, function in super().aggregation().items()}

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **options: Any) -> None:
        """Call the data function, and write the digest of the documents into the results."""
        super().download(dataset_kwargs, **options)
        documents = map(self.document, self.dataset[self.config.test_split])
        self.config.metadata[published.DIGEST] = published.documents_digest(documents)

    def document(self, doc: dict[str, Any]) -> list[Any]:
        """Return the fields that the digest covers: none that depends on the tokenizer or the reference model."""
        return [doc["side"], doc["id"], doc["input"], doc["output"]]

    def build_all_requests(self, **kwargs: Any) -> None:
        """Build the requests; refuse options and models that would change the protocol."""
        task = self.config.task
        model_checks.refuse_chat_endpoint(task)
        options = ("apply_chat_template", "system_instruction")
        given = [f"--{option}" for option in options if kwargs.get(option)]
        if given:
            why = "LUME's prompt is the bare text, without template or system text"
            if task in ("lume_rows", "lume_memorization_rows", "lume_swap"):
                why = "this task puts questions into the chat template by itself, after the system text of their turns"
            drop = f"drop {' and '.join(given)} (and run other tasks that need them separately)."
            raise DataError(f"{task}: {why}; {drop}")
        if self.config.num_fewshot or self.config.description:
            raise DataError(
                f"{task}: LUME's prompt is the bare text, without examples or description; leave num_fewshot and "
                "description out of your YAML file, or give them to the other tasks of a group one by one"
            )
        generation = (self.config.generation_kwargs or {}).items()
        changed = [f"{name}={value!r}" for name, value in generation if GENERATION.get(name) != value]
        if changed and self.config.metadata.get("lume_gen_kwargs") is not True:
            raise DataError(
                f"{task}: LUME generates greedily, at most 256 new tokens, until EOS; leave {', '.join(changed)} out "
                "of --gen_kwargs and of the YAML file of a group (for numbers that are not LUME's: --metadata "
                "'{\"lume_gen_kwargs\": true}')"
            )
        reference.check_options(task, self.dump_config())
        super().build_all_requests(**kwargs)
        model_checks.check_model(task, self.instances, self.config.metadata)


def _noting(documents: int, function: Aggregation) -> Aggregation:
    def aggregation(items: Sequence[Any]) -> float:
        value = function(items)
        if isinstance(value, aggregate.Score):
            value.documents = documents
        return value

    return aggregation


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Refuse misspelt LUME options; accept the model arguments, which metadata holds too."""
    data = metadata.get("lume_data")
    if data is not None and not isinstance(data, Data):
        raise DataError(
            f"--metadata: lume_data must be a lume_tasks.data.source.Data object, from Python, not {data!r}; on the "
            "command line, give a data directory in lume_data_dir"
        )
    for name in metadata:
        if name in (*OPTIONS, "lume_data") or not (name.startswith("lume") or f"lume_{name}" in OPTIONS):
            continue
        near = get_close_matches(f"lume_{name.removeprefix('lume_')}", OPTIONS, 1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise DataError(
            f"--metadata: LUME has no option {quote(name)}, so it would be ignored. {hint}Its options are: "
            f"{', '.join(OPTIONS)}"
        )


def alternate(*groups: Iterable[Any]) -> list[Any]:
    """Return the first item of each group, then the second of each, ..., so that ``--limit`` keeps some of each."""
    return [item for item in chain.from_iterable(zip_longest(*groups)) if item is not None]


def side_rows(lume_task: str, metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the forget and retain rows of one task alternately, with ``side`` and ``kind``.

    ``lume_task`` is "Task1", "Task2", "Task3", or ``OWN`` for the rows of all other tasks, which get a ``prompt`` (see
    `add_prompts`). In ``metadata``, ``lume_data`` takes precedence over ``lume_data_dir`` and ``lume_split``.
    """
    rows, place = rows_of(metadata)
    documents = (
        [
            {"id": row.id, "input": row.input, "output": row.output, "side": side, "kind": row.kind, "turns": row.turns}
            for row in rows[side]
            if lume_task == (row.task if row.task in TASKS else OWN)
        ]
        for side in SIDES
    )
    docs = alternate(*documents)
    if not docs:
        named = "a task of your own" if lume_task == OWN else lume_task
        split = metadata.get("lume_split", "all")
        present = {task_name(row.task) for side in SIDES for row in rows[side]}
        tasks = ",".join(name for name in ROW_TASKS if name in present)
        advice = f"; it has rows of {tasks}: use --tasks {tasks},lume_score" if tasks else ""
        raise DataError(f"{place}: no row of {named} in split {split!r}{advice}")
    if lume_task == OWN:
        add_prompts(docs, metadata)
    for doc in docs:
        turns = doc.pop("turns")
        if lume_task != OWN:  # its prompt is the bare text
            doc["input"] = plain_prompt(doc["input"], turns)
    return docs


def rows_of(metadata: Mapping[str, Any]) -> tuple[Mapping[str, list[Row]], str]:
    """Return the rows of both sides, and their source for messages."""
    data = metadata.get("lume_data")
    if data is not None:
        return data.rows, "the data in memory"
    directory = locate.data_dir(metadata.get("lume_data_dir"))
    return locate.load_rows(directory, metadata.get("lume_split", "all")), str(directory)


def add_prompts(docs: Sequence[dict[str, Any]], metadata: Mapping[str, Any]) -> None:
    """Add ``prompt`` to rows of other tasks: the input after its turns, in the chat template if `through_template`.

    Raises:
        DataError: ``lume_chat`` is neither true nor false, the tokenizer or its template cannot be used, or the model
            arguments change the template.
    """
    chat = flag_of(metadata, "lume_chat", True)
    tokenizer = load_tokenizer(metadata) if chat else None
    for doc in docs:
        doc["chat"] = through_template(tokenizer, OWN, doc["kind"], chat)
        render = partial(chat_prompt, tokenizer) if doc["chat"] else plain_prompt
        doc["prompt"] = render(doc["input"], doc["turns"])
    check_template_arguments(metadata, any(doc["chat"] for doc in docs))


def check_template_arguments(metadata: Mapping[str, Any], chat: bool) -> None:
    """Refuse model arguments that would change the chat template, if ``chat``: it is rendered without them."""
    given = [name for name in ("enable_thinking", "chat_template_args") if metadata.get(name) is not None]
    if chat and given:
        raise DataError(
            f"--model_args {' and '.join(given)}: not supported with rows of your own tasks, whose chat template LUME "
            "renders with its default arguments, as in training; leave it out, or change the tokenizer's chat template"
        )


def flag_of(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    """Return an option of the metadata; `DataError` if it is neither true nor false."""
    flag = metadata.get(name, default)
    if not isinstance(flag, bool):
        raise DataError(f"metadata {name} has to be true or false, not {flag!r}")
    return flag
