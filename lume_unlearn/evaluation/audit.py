"""`lume-unlearn audit`: change an unlearned model or the rows, and score again.

Each audit writes its rows as a data directory and scores them with the tasks of the harness.
"""

import json
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils.import_utils import is_bitsandbytes_available

from lume_tasks.data import locate
from lume_tasks.data.rows import Row, text_key
from lume_tasks.metrics.text import exact_match
from lume_unlearn.config import names
from lume_unlearn.data.inputs import named_directory
from lume_unlearn.errors import ConfigError, require_unused
from lume_unlearn.evaluation import harness
from lume_unlearn.evaluation.options import AuditConfig
from lume_unlearn.evaluation.quantisation import rounded_copy, weight_layers
from lume_unlearn.evaluation.subject import Scored, Sides, Subject, load_subject
from lume_unlearn.files import write_text, writing
from lume_unlearn.training.relearning import trained_copy

_log = logging.getLogger("lume_unlearn")

REPHRASINGS = (
    "Please answer briefly: {}",
    "I would like to know the following. {}",
    "Here is a question from a reader: {} What is the answer?",
)
PREFIX = "The weather was mild that day, and the market had just opened. "

Scores = dict[str, Scored]


def audit(config: AuditConfig) -> Scores:
    """Run the audits and write ``audit.json``: audit to the four overall means (see `lume_score`).

    Returns:
        audit to the scores. ``plain`` is always included.

    Raises:
        ConfigError: an option that cannot work, rows that an audit cannot be run on, a model that cannot be quantised,
            or an output that cannot be written.
        DataError: faulty rows.
    """
    output = Path(config.output)
    require_unused(output)
    rows = locate.load_rows(named_directory(config.data), config.split)
    rows = sampled_rows(config, rows)
    chosen = chosen_audits(config, rows)
    return run_audits(load_subject(config, config.model, config.peft, rows), chosen)


def sampled_rows(config: AuditConfig, rows: Sides) -> Sides:
    """Return the rows of each side that ``--limit`` keeps."""
    if not config.limit:
        return rows
    return {side: _sample(side_rows, config.limit, config.seed) for side, side_rows in rows.items()}


def run_audits(subject: Subject, chosen: Sequence[str], **plain: Any) -> Scores:
    """Run the chosen audits and write ``audit.json`` after each; ``plain`` are options of scoring the rows as given."""
    if "quantised" in chosen:
        weight_layers(subject.model)  # refuse a model that cannot be quantised before the first audit
    results: Scores = {"plain": subject.score("plain", subject.rows, **plain)}
    output = Path(subject.config.output)
    for name in chosen:
        if name != "plain":
            results |= AUDITS[name](subject)
        with writing(output):  # after each audit, so that a later failure loses nothing
            means = {audit: scored.means for audit, scored in results.items()}
            write_text(output / "audit.json", json.dumps(means, indent=1) + "\n")
    return results


def audit_table(results: Scores) -> str:
    """Return the results as a Markdown table, one audit a row; a dash where a score has no value."""
    lines = ["| audit | " + " | ".join(harness.MEANS) + " |", "|---" * (len(harness.MEANS) + 1) + "|"]
    for name, scored in results.items():
        cells = (f"{scored.means[column]:.3f}" if column in scored.means else "-" for column in harness.MEANS)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def chosen_audits(config: AuditConfig, rows: Sides) -> list[str]:
    """Return the audits to run: ``plain``, then those of ``--audits``, or all audits that the rows suffice for.

    Raises:
        ConfigError: an audit of ``--audits`` is unknown, or the rows do not suffice for it.
    """
    named = names(config.audits)
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
        scores[f"{bits}-bit ({how})"] = subject.score(f"{bits}-bit", subject.rows, model)
    return scores


def _sample(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    return random.Random(seed).sample(rows, min(count, len(rows)))


def _relearning_rows(config: AuditConfig, rows: Sides, side: str) -> tuple[list[Row], Sides]:
    """Sample rows of one side to train on; return them, and the rows whose documents are not in the sample to score.

    If all forget rows are of one document, the rows that are not in the sample themselves are scored. Rows with the
    answer of a row in the sample are not, because training teaches it.
    """
    sample = _sample(rows[side], min(config.relearn_rows, len(rows[side]) // 2), config.seed)
    several = len({row.stem for row in rows["forget"]}) > 1
    used = {row.stem if several else row.id for row in sample}
    taught = {row.output.strip().lower() for row in sample}
    left = [row for row in rows["forget"] if (row.stem if several else row.id) not in used]
    return sample, rows | {"forget": [row for row in left if row.output.strip().lower() not in taught]}


def _relearned(side: str, subject: Subject) -> Scores:
    """Train a copy on a sample of one side, then score forget rows of other documents with both models."""
    config = subject.config
    sample, held_out = _relearning_rows(config, subject.rows, side)
    setting = (config.relearn_epochs, config.relearn_rate, config.seed, config.chat)
    model = trained_copy(subject.model, subject.tokenizer, sample, "answer", *setting)
    name = f"relearned on {len(sample)} {side} rows"
    return {
        f"held out, before it was {name}": subject.score(f"relearn-{side}-before", held_out),
        f"held out, {name}": subject.score(f"relearn-{side}", held_out, model),
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
    return {name: subject.score(f"words-{i}", changed[name]) for i, name in enumerate(changed)}


def _with_inputs(rows: Sides, change: Callable[[str], str]) -> Sides:
    """Return the rows with changed inputs, without those that the change makes equal."""
    changed = {side: [replace(row, input=change(row.input)) for row in side_rows] for side, side_rows in rows.items()}
    return {side: list({text_key(row): row for row in side_rows}.values()) for side, side_rows in changed.items()}


def _samples(subject: Subject) -> Scores:
    """Sample several answers to each question at temperature 1; a question counts as known if one of them is right."""
    config = subject.config
    rows = _questions(subject.rows)
    right: dict[str, set[str]] = {side: set() for side in rows}
    known: dict[str, set[str]] = {side: set() for side in rows}
    for number in range(config.samples):
        scored = subject.score(
            "samples",
            rows,
            gen_kwargs={"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
            torch_random_seed=config.seed + number,
        )
        for side, side_rows in rows.items():
            known[side] |= scored.known[side]
            right[side] |= {row.id for row in side_rows if exact_match(row.output, scored.answers[row.id])}
    shares = {f"{side}_knowledge": len(right[side]) / len(rows[side]) for side in rows}
    return {f"any of {config.samples} samples": Scored(shares, known, scored.answers)}


AUDITS: dict[str, Callable[[Subject], Scores]] = {
    "plain": lambda subject: {"plain": subject.score("plain", subject.rows)},
    "quantised": _quantised,
    "relearn_forget": partial(_relearned, "forget"),
    "relearn_retain": partial(_relearned, "retain"),
    "other_words": _other_words,
    "samples": _samples,
}
