"""The model that is audited, and how it does on changed rows or with changed weights."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lume_tasks.data.rows import SIDES, TASKS, Row
from lume_unlearn.data.inputs import named_directory
from lume_unlearn.evaluation import harness
from lume_unlearn.evaluation.options import AuditConfig
from lume_unlearn.evaluation.rules import is_known
from lume_unlearn.files import write_text, writing
from lume_unlearn.model import load

Sides = dict[str, list[Row]]

NEW_TOKENS = 256
"""Most tokens that the protocol generates."""


@dataclass(frozen=True)
class Scored:
    """How a model did on some rows."""

    means: dict[str, float]
    """The overall means of `lume_score`, ``TASK MEAN`` of each task, and the AUCs of the attack if it was run.

    Means that have no value are left out."""
    known: dict[str, set[str]]
    """Side to the ids of the rows that the model knows (`rules.is_known`)."""
    answers: dict[str, str]
    """Id of each row to the generated text."""
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    """Mean to the scores of the rows that it is the mean of, by the row's id."""
    results: dict[str, Any] = field(default_factory=dict)
    """The harness's results."""


@dataclass(frozen=True)
class Subject:
    """The model to audit, its tokenizer and its rows."""

    config: AuditConfig
    model: Any
    tokenizer: Any
    rows: Sides

    def score(
        self,
        name: str,
        rows: Sides,
        model: Any = None,
        more: Sequence[str] = (),
        attack: bool = False,
        **options: Any,
    ) -> Scored:
        """Write the rows to ``<output>/<name>``, and score the model (or a changed one) on them.

        Args:
            name: folder to write to.
            rows: rows to score.
            model: scored instead of the model itself.
            more: further tasks on the rows.
            attack: run the membership attack as well, if the data has ``mia_data``.
            **options: of `harness.score`.
        """
        folder = Path(self.config.output) / name
        write_sides(folder, rows)
        tasks = [task for task in harness.tasks_for(folder) if task in (*harness.ROW_TASKS, "lume_score")]
        limit = self.new_tokens(rows)
        shorter = {"max_gen_toks": limit} if limit < NEW_TOKENS else {}
        options["gen_kwargs"] = shorter | options.get("gen_kwargs", {})
        if not options["gen_kwargs"]:
            del options["gen_kwargs"]
        lm = harness.wrap(model or self.model, self.tokenizer, self.config.batch_size)
        metadata = harness.data_metadata(folder) | {"tokenizer": self.tokenizer, "lume_chat": self.config.chat}
        no_score = harness.without_messages("lume_tasks", "lume_score: no final score")
        with no_score, harness.without_messages("lm_eval.evaluator", "generation_kwargs: "):
            results = harness.score(lm, metadata, (*tasks, *more), log_samples=True, **options)
        values = {mean: harness.metric(results, "lume_score", mean) for mean in harness.MEANS}
        values |= {f"{t} {mean}": harness.metric(results, t, mean) for t in harness.ROW_TASKS for mean in harness.MEANS}
        values |= self._attacked(model) if attack else {}
        means = {mean: value for mean, value in values.items() if value is not None}
        samples = [sample for task in harness.ROW_TASKS for sample in results["samples"].get(task, [])]
        answers = {sample["doc"]["id"]: sample["filtered_resps"][0] for sample in samples}
        scores = {
            mean: {sample["doc"]["id"]: sample[mean] for sample in samples if sample[mean] is not None}
            for mean in harness.MEANS
        }
        return Scored(means, known_rows(rows, answers), answers, scores, results)

    def _attacked(self, model: Any) -> dict[str, float | None]:
        """Return the AUCs of the membership attack on the model (or a changed one); empty without ``mia_data``."""
        data = named_directory(self.config.data)
        if not (data / "mia_data").is_dir():
            return {}
        metadata = harness.data_metadata(data, self.config.split) | {"tokenizer": self.tokenizer}
        lm = harness.wrap(model or self.model, self.tokenizer, self.config.batch_size)
        repeated = () if model is None else ("lume_mia: ",)  # what the task warns of was said of the model itself
        with harness.without_messages("lume_tasks", *repeated):
            results = harness.score(lm, metadata, ("lume_mia",))
        return {name: harness.metric(results, "lume_mia", name) for name in harness.ATTACKS}

    def new_tokens(self, rows: Sides) -> int:
        """Return the most tokens of an answer: on rows that are not LUME's, twice the longest right one, and 32."""
        scored = [row for side_rows in rows.values() for row in side_rows]
        if any(row.task in TASKS for row in scored):
            return NEW_TOKENS
        longest = max(len(self.tokenizer.encode(row.output)) for row in scored)
        return min(NEW_TOKENS, 2 * longest + 32)


def known_rows(rows: Mapping[str, Sequence[Row]], answers: Mapping[str, str]) -> dict[str, set[str]]:
    """Return the ids of the rows on each side whose answer the model knows."""
    return {
        side: {row.id for row in rows.get(side, []) if is_known(row.kind, row.output, answers[row.id])}
        for side in SIDES
    }


def write_sides(folder: Path, rows: Sides) -> None:
    """Write rows as a data directory; ConfigError if they cannot be written."""
    with writing(folder.parent):
        folder.mkdir(parents=True, exist_ok=True)
        for side, side_rows in rows.items():
            lines = (json.dumps(vars(row), ensure_ascii=False) for row in side_rows)
            write_text(folder / f"{side}.jsonl", "\n".join(lines) + "\n")


def load_subject(config: AuditConfig, model: str, peft: str | None, rows: Sides) -> Subject:
    """Load a model and its tokenizer; ConfigError if that is not possible."""
    if peft:
        loaded = load.merged_model(model, peft, config.trust_remote_code, option="--peft")
    else:
        loaded = load.load_model(model, torch.float32, config.trust_remote_code)
    loaded.to(config.device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    return Subject(config, loaded, load.load_tokenizer(model, config.trust_remote_code), rows)
