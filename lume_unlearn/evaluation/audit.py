"""`lume-unlearn audit`: change an unlearned model or the rows, and score again.

Each audit writes its rows as a data directory and scores them with the tasks of the harness.
"""

import json
import logging
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils.import_utils import is_bitsandbytes_available

from lume_tasks.data import locate
from lume_tasks.data.rows import Row, text_key
from lume_tasks.metrics.unlearning import leak_at_k
from lume_unlearn.config import names
from lume_unlearn.data.documents import read_texts
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
    """Run the audits and write ``audit.json`` (see `run_audits`).

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
    """Run the chosen audits; ``plain`` are options of scoring the rows as given.

    After each, write ``audit.json``: the model (the adapter's folder, if there is one), the split, and each audit's
    means (`Scored.means`).
    """
    if "quantised" in chosen:
        weight_layers(subject.model)  # refuse a model that cannot be quantised before the first audit
    results: Scores = {"plain": subject.score("plain", subject.rows, attack=True, **plain)}
    config = subject.config
    written = {"model": config.peft or config.model, "split": config.split}
    for name in chosen:
        if name != "plain":
            results |= AUDITS[name](subject)
        with writing(Path(config.output)):  # after each audit, so that a later failure loses nothing
            means = {audit: scored.means for audit, scored in results.items()}
            write_text(Path(config.output) / "audit.json", json.dumps(written | {"audits": means}, indent=1) + "\n")
    return results


def audit_table(results: Scores) -> str:
    """Return the results as a Markdown table, one audit a row; a dash where a score has no value.

    The AUCs are columns if there is ``mia_data``. Of the leak@k, the first and the last are rows.
    """
    columns = [*harness.MEANS, *(name for name in harness.ATTACKS if name in results["plain"].means)]
    lines = ["| audit | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    left_out = [name for name in results if "leak@" in name][1:-1]
    for name, scored in results.items():
        if name in left_out:
            continue
        means = scored.means
        cells = (f"{means[column]:.3f}" if column in means else "-" for column in columns)
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
    if name == "repair" and not _repair_rows(config, rows):
        return "needs a retain row whose answer is not that of a forget row"
    if name == "unrelated":
        if config.unrelated is None:
            return "needs texts that have nothing to do with the rows; name a file of them by --unrelated"
        read_texts("unrelated", config.unrelated)  # a faulty file ends the audit before it starts
    if name == "relearn_forget":
        sample, held_out = _relearning_rows(config, rows)
        if not sample:
            return "relearning needs at least two forget rows"
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
        scores[f"{bits}-bit ({how})"] = subject.score(f"{bits}-bit", subject.rows, model, attack=True)
    return scores


def _sample(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    return random.Random(seed).sample(rows, min(count, len(rows)))


def _relearning_rows(config: AuditConfig, rows: Sides) -> tuple[list[Row], Sides]:
    """Sample forget rows to train on; return them, and the rows whose documents are not in the sample to score.

    If all forget rows are of one document, the rows that are not in the sample themselves are scored. Rows with the
    answer of a row in the sample are not, because training teaches it.
    """
    sample = _sample(rows["forget"], min(config.relearn_rows, len(rows["forget"]) // 2), config.seed)
    several = len({row.stem for row in rows["forget"]}) > 1
    used = {row.stem if several else row.id for row in sample}
    taught = _answers(sample)
    left = [row for row in rows["forget"] if (row.stem if several else row.id) not in used]
    return sample, rows | {"forget": [row for row in left if row.output.strip().lower() not in taught]}


def _repair_rows(config: AuditConfig, rows: Sides) -> list[Row]:
    """Sample retain rows to train on, without those that teach the answer of a forget row."""
    taught = _answers(rows["forget"])
    kept = [row for row in rows["retain"] if row.output.strip().lower() not in taught]
    return _sample(kept, config.relearn_rows, config.seed)


def _answers(rows: Sequence[Row]) -> set[str]:
    return {row.output.strip().lower() for row in rows}


def _trained(subject: Subject, rows: Sequence[Row], loss_on: Literal["answer", "text"] = "answer") -> Any:
    """Return a copy of the model that was trained on rows."""
    config = subject.config
    setting = (config.relearn_epochs, config.relearn_rate, config.seed, config.chat)
    return trained_copy(subject.model, subject.tokenizer, rows, loss_on, *setting)


def _relearned(subject: Subject) -> Scores:
    """Train a copy on a sample of the forget rows, then score forget rows of other documents with both models."""
    sample, held_out = _relearning_rows(subject.config, subject.rows)
    name = f"relearned on {len(sample)} forget rows"
    before = subject.score("relearn-forget-before", held_out)
    after = subject.score("relearn-forget", held_out, _trained(subject, sample), attack=True)
    return {f"held out, before it was {name}": before, f"held out, {name}": after}


def _repaired(subject: Subject) -> Scores:
    """Train a copy on retain rows alone, then score all rows."""
    sample = _repair_rows(subject.config, subject.rows)
    scored = subject.score("repair", subject.rows, _trained(subject, sample), attack=True)
    return {f"repaired on {len(sample)} retain rows": scored}


def _unrelated(subject: Subject) -> Scores:
    """Train a copy on texts that have nothing to do with the rows, then score all rows."""
    config = subject.config
    sample = _sample(read_texts("unrelated", str(config.unrelated)), config.relearn_rows, config.seed)
    scored = subject.score("unrelated", subject.rows, _trained(subject, sample, "text"), attack=True)
    return {f"trained on {len(sample)} unrelated texts": scored}


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
    """Sample several answers to each row, and return the means of the rows' leak@k for k = 1, 2, 4, ... and all.

    A row counts as known if one of all its answers is right.
    """
    config, rows = subject.config, subject.rows
    count, total, limit = config.samples, sum(map(len, rows.values())), subject.new_tokens(rows)
    cost = f"{total} rows, {count * total:,} generations of at most {limit} tokens"
    print(f"samples: {count} answers to each of {cost}", file=sys.stderr, flush=True)
    sampling = {"do_sample": True, "temperature": config.temperature, "top_k": 0, "top_p": config.top_p}
    known: dict[str, set[str]] = {side: set() for side in rows}
    found: dict[str, dict[str, list[float]]] = {mean: {} for mean in harness.MEANS}
    for number in range(count):
        scored = subject.score("samples", rows, gen_kwargs=sampling, torch_random_seed=config.seed + number)
        for side in rows:
            known[side] |= scored.known[side]
        for mean, scores in scored.scores.items():
            for row, score in scores.items():
                found[mean].setdefault(row, []).append(score)
    curve = {
        k: {mean: fmean(leak_at_k(scores, k) for scores in row.values()) for mean, row in found.items() if row}
        for k in sorted({count, *(2**i for i in range(count.bit_length()))})
    }
    return {
        f"best of {k} samples (leak@{k})": Scored(means, known, scored.answers) if k == count else Scored(means, {}, {})
        for k, means in curve.items()
    }


AUDITS: dict[str, Callable[[Subject], Scores]] = {
    "plain": lambda subject: {"plain": subject.score("plain", subject.rows, attack=True)},
    "quantised": _quantised,
    "relearn_forget": _relearned,
    "repair": _repaired,
    "unrelated": _unrelated,
    "other_words": _other_words,
    "samples": _samples,
}
