"""`lume-unlearn audit`: change an unlearned model or the rows, and score again.

Each audit writes its rows as a data directory and scores them with the tasks of the harness.
"""

import copy
import json
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils.import_utils import is_bitsandbytes_available

from lume_tasks.data import locate
from lume_tasks.data.rows import Row
from lume_tasks.metrics.text import exact_match
from lume_unlearn.data.encode import encode_rows
from lume_unlearn.data.inputs import named_directory
from lume_unlearn.errors import ConfigError, require_unused
from lume_unlearn.evaluation import harness
from lume_unlearn.evaluation.options import AuditConfig
from lume_unlearn.evaluation.quantisation import rounded_copy, weight_layers
from lume_unlearn.files import write_text, writing
from lume_unlearn.model import load
from lume_unlearn.model.forward import use_packing
from lume_unlearn.training.relearning import fine_tune

_log = logging.getLogger("lume_unlearn")

REPHRASINGS = (
    "Please answer briefly: {}",
    "I would like to know the following. {}",
    "Here is a question from a reader: {} What is the answer?",
)
PREFIX = "The weather was mild that day, and the market had just opened. "

Sides = dict[str, list[Row]]
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Subject:
    """The model to audit, its tokenizer and its rows."""

    config: AuditConfig
    model: Any
    tokenizer: Any
    rows: Sides

    def results(self, name: str, rows: Sides, model: Any = None, **options: Any) -> dict[str, Any]:
        """Write the rows to ``<output>/<name>`` and return the harness's results of the model (or a changed one)."""
        folder = Path(self.config.output) / name
        with writing(Path(self.config.output)):
            folder.mkdir(parents=True, exist_ok=True)
            for side, side_rows in rows.items():
                lines = (json.dumps(vars(row), ensure_ascii=False) for row in side_rows)
                write_text(folder / f"{side}.jsonl", "\n".join(lines) + "\n")
        lm = harness.wrap(model or self.model, self.tokenizer, self.config.batch_size)
        tasks = tuple(task for task in harness.tasks_for(folder) if task in (*harness.ROW_TASKS, "lume_score"))
        with harness.without_messages("lume_tasks", "lume_score: no final score"):
            return harness.score(lm, harness.data_metadata(folder) | {"tokenizer": self.tokenizer}, tasks, **options)

    def means(self, name: str, rows: Sides, model: Any = None) -> dict[str, float]:
        """Return the four overall means of `results`, without those that have no value."""
        results = self.results(name, rows, model)
        values = {mean: harness.metric(results, "lume_score", mean) for mean in harness.MEANS}
        return {mean: value for mean, value in values.items() if value is not None}


def audit(config: AuditConfig) -> Scores:
    """Run the audits and write ``audit.json``.

    Returns:
        audit to the four overall means (see `lume_score`). ``plain`` is always included.

    Raises:
        ConfigError: an option that cannot work, rows that an audit cannot be run on, a model that cannot be quantised,
            or an output that cannot be written.
        DataError: faulty rows.
    """
    output = Path(config.output)
    require_unused(output)
    rows = locate.load_rows(named_directory(config.data), config.split)
    if config.limit:
        rows = {side: _sample(all_rows, config.limit, config.seed) for side, all_rows in rows.items()}
    chosen = chosen_audits(config, rows)
    if config.peft:
        model = load.merged_model(config.model, config.peft, config.trust_remote_code, option="--peft")
    else:
        model = load.load_model(config.model, torch.float32, config.trust_remote_code)
    model.to(config.device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    subject = Subject(config, model, load.load_tokenizer(config.model, config.trust_remote_code), rows)
    if "quantised" in chosen:
        weight_layers(model)  # refuse a model that cannot be quantised before the first audit
    results: Scores = {}
    for name in chosen:
        results |= AUDITS[name](subject)
        with writing(output):  # after each audit, so that a later failure loses nothing
            write_text(output / "audit.json", json.dumps(results, indent=1) + "\n")
    return results


def audit_table(results: Scores) -> str:
    """Return the results as a Markdown table, one audit a row; a dash where a score has no value."""
    lines = ["| audit | " + " | ".join(harness.MEANS) + " |", "|---" * (len(harness.MEANS) + 1) + "|"]
    for name, scores in results.items():
        cells = (f"{scores[column]:.3f}" if column in scores else "-" for column in harness.MEANS)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def chosen_audits(config: AuditConfig, rows: Sides) -> list[str]:
    """Return the audits to run: ``plain``, then those of ``--audits``, or all audits that the rows suffice for.

    Raises:
        ConfigError: an audit of ``--audits`` is unknown, or the rows do not suffice for it.
    """
    named = [name.strip() for name in (config.audits or "").split(",") if name.strip()]
    found = {name: _fault(name, config, rows) for name in ("plain", *(named or AUDITS))}
    faults = [f"{name}: {fault}" for name, fault in found.items() if fault]
    if named and faults:
        raise ConfigError("\n".join(f"--audits {fault}" for fault in faults))
    for fault in faults:
        _log.warning("audit left out: %s", fault)
    return [name for name, fault in found.items() if not fault]


def _fault(name: str, config: AuditConfig, rows: Sides) -> str | None:
    """Say why an audit cannot be run, or return None."""
    if name not in AUDITS:
        return f"choose from {', '.join(AUDITS)}"
    if name == "samples" and not all(_questions(rows).values()):
        return "needs questions (qa rows) among the forget rows and among the retain rows"
    if name.startswith("relearn_"):
        side = name.removeprefix("relearn_")
        sample, held_out = _relearning_rows(config, rows, side)
        if not sample:
            return f"relearning needs at least two {side} rows"
        if not held_out["forget"]:
            return f"--relearn_rows {config.relearn_rows} leaves no forget row to score; lower it"
    return None


def _questions(rows: Sides) -> Sides:
    return {side: [row for row in side_rows if row.kind == "qa"] for side, side_rows in rows.items()}


def _quantised(subject: Subject) -> Scores:
    """Score with weights of 8 and of 4 bits: by bitsandbytes on a GPU if it is installed, else rounded."""
    config = subject.config
    use_bitsandbytes = is_bitsandbytes_available() and subject.model.device.type == "cuda" and not config.peft
    scores = {}
    for bits in (8, 4):
        if use_bitsandbytes:
            options = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)  # type: ignore[no-untyped-call]
            model = AutoModelForCausalLM.from_pretrained(
                config.model, quantization_config=options, trust_remote_code=config.trust_remote_code
            )
        else:
            model = rounded_copy(subject.model, bits)
        how = "bitsandbytes" if use_bitsandbytes else "rounded"
        scores[f"{bits}-bit ({how})"] = subject.means(f"{bits}-bit", subject.rows, model)
    return scores


def _sample(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    return random.Random(seed).sample(rows, min(count, len(rows)))


def _relearning_rows(config: AuditConfig, rows: Sides, side: str) -> tuple[list[Row], Sides]:
    """Sample rows of one side to train on; return them, and the rows whose documents are not in the sample to score."""
    sample = _sample(rows[side], min(config.relearn_rows, len(rows[side]) // 2), config.seed)
    stems = {row.stem for row in sample}
    return sample, rows | {"forget": [row for row in rows["forget"] if row.stem not in stems]}


def _relearned(side: str, subject: Subject) -> Scores:
    """Train a copy on a sample of one side, then score forget rows of other documents with both models."""
    config = subject.config
    sample, held_out = _relearning_rows(config, subject.rows, side)
    model = copy.deepcopy(subject.model)
    use_packing(model)
    texts = encode_rows(subject.tokenizer, sample, "answer", None, load.context_length(model))
    fine_tune(model, texts, config.relearn_epochs, config.relearn_rate, batch_size=8, seed=config.seed)
    model.set_attn_implementation("sdpa")
    name = f"relearned on {len(sample)} {side} rows"
    return {
        f"held out, before it was {name}": subject.means(f"relearn-{side}-before", held_out),
        f"held out, {name}": subject.means(f"relearn-{side}", held_out, model),
    }


def _other_words(subject: Subject) -> Scores:
    """Score the rows with changed prompts: rephrased, upper case, after a prefix, after answered retain rows."""
    rows = subject.rows
    questions = _questions(rows)
    changed: dict[str, Sides] = {}
    if all(questions.values()):
        for number, text in enumerate(REPHRASINGS, 1):
            changed[f"rephrased {number}"] = _with_inputs(questions, text.format)
    changed["upper case"] = _with_inputs(rows, str.upper)
    changed["prefix"] = _with_inputs(rows, (PREFIX + "{}").format)
    shots = questions["retain"][:3]
    if shots:
        front = "".join(f"{row.input} {row.output}\n\n" for row in shots)
        changed[f"{len(shots)} answered retain rows in front"] = _with_inputs(rows, lambda text: front + text)
    return {name: subject.means(f"words-{i}", changed[name]) for i, name in enumerate(changed)}


def _with_inputs(rows: Sides, change: Callable[[str], str]) -> Sides:
    return {side: [replace(row, input=change(row.input)) for row in side_rows] for side, side_rows in rows.items()}


def _samples(subject: Subject) -> Scores:
    """Sample several answers to each question at temperature 1; a question counts as known if one of them is right."""
    config = subject.config
    rows = _questions(subject.rows)
    known: dict[str, set[str]] = {side: set() for side in rows}
    for number in range(config.samples):
        results = subject.results(
            "samples",
            rows,
            gen_kwargs={"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
            torch_random_seed=config.seed + number,
            log_samples=True,
        )
        for samples in results["samples"].values():
            for sample in samples:
                doc = sample["doc"]
                if exact_match(doc["output"], sample["filtered_resps"][0]) == 1.0:
                    known[doc["side"]].add(doc["id"])
    shares = {f"{side}_knowledge": len(known[side]) / len(rows[side]) for side in rows}
    return {f"any of {config.samples} samples": shares}


AUDITS: dict[str, Callable[[Subject], Scores]] = {
    "plain": lambda subject: {"plain": subject.means("plain", subject.rows)},
    "quantised": _quantised,
    "relearn_forget": partial(_relearned, "forget"),
    "relearn_retain": partial(_relearned, "retain"),
    "other_words": _other_words,
    "samples": _samples,
}
