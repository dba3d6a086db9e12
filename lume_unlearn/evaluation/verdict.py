"""`lume-unlearn audit --before`: is what was asked to be forgotten gone? One page and one JSON file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lume_tasks.data import locate
from lume_tasks.data.rows import SIDES, Row, task_name
from lume_tasks.metrics.pii import field_of
from lume_unlearn.config import names
from lume_unlearn.data.inputs import named_directory
from lume_unlearn.errors import ConfigError, require_unused
from lume_unlearn.evaluation import harness, rules
from lume_unlearn.evaluation.audit import AUDITS, Scores, chosen_audits, run_audits, sampled_rows
from lume_unlearn.evaluation.options import AuditConfig
from lume_unlearn.evaluation.rules import Verdict
from lume_unlearn.evaluation.subject import Scored, Sides, Subject, load_subject
from lume_unlearn.files import fingerprint, write_text, writing
from lume_unlearn.model import load
from lume_unlearn.report import template
from lume_unlearn.report.redact import Shown, common_words, redact, tokens
from lume_unlearn.training.record import versions

CONTROLS = "held out, before"
"""Beginning of the names of the scores that relearning is compared with."""
PATHS = ("output", "data", "forgotten", "trust_remote_code")
"""Options that are not shown: names of folders may name a person."""
LEVELS = ("exact_memorization", "extraction_strength", "probability")


@dataclass(frozen=True)
class Measured:
    """One of the two models: its answers to the rows as given, and its numbers."""

    plain: Scored
    numbers: dict[str, float]
    """Means of `lume_score` with their intervals, `LEVELS` of both sides, and ``TASK METRIC`` of all other tasks."""
    strengths: dict[str, float]
    """Id of each forget row to the extraction strength of its answer."""


def verdict(config: AuditConfig) -> tuple[str, int]:
    """Score both models, run the audits on the unlearned one, and write ``verdict.json`` and ``verdict.html``.

    Returns:
        the lines to print, and the exit status: 0 gone, 1 not gone or a condition of ``--require`` does not hold, 3
        cannot be told.

    Raises:
        ConfigError: an option that cannot work, or an audit that the rows do not suffice for.
        DataError: faulty rows.
    """
    output, data = Path(config.output), named_directory(config.data)
    require_unused(output)
    rows = sampled_rows(config, locate.load_rows(data, config.split))
    for condition in names(config.require):
        rules.parse_condition(condition)
    chosen = chosen_audits(config, rows)
    earlier = [locate.load_side(named_directory(name, "--forgotten"), "forget") for name in names(config.forgotten)]
    require_tasks(names(config.tasks))
    load.load_tokenizer(config.model, config.trust_remote_code)  # a wrong name ends the audit before it starts
    assert config.before is not None, "audit calls verdict with --before alone"
    subject = load_subject(config, config.before, None, rows)
    before = measured(subject, subject.score("before", rows, more=_memorization(rows)), data)
    del subject  # one model at a time
    subject = load_subject(config, config.model, config.peft, rows)
    scores = run_audits(subject, chosen, more=_memorization(rows))
    now, probes = measured(subject, scores["plain"], data), probes_of(scores)
    leaks = [(_known(subject, f"forgotten-{i}", found), len(found)) for i, found in enumerate(earlier)]
    decided = decide(before, now, probes, leaks)
    numbers = now.numbers | {f"{name}_before": value for name, value in before.numbers.items()}
    unmet = rules.unmet(config.require, numbers)
    content = contents(config, data, rows, before, now, probes, decided)
    content |= {"unmet": unmet, "numbers": numbers, "earlier": leaks}
    content["not_run"] = [name for name in AUDITS if name not in chosen]
    with writing(output):
        write_text(output / "verdict.json", json.dumps(content, indent=1) + "\n")
        page = template("verdict.html.j2", autoescape=True).render(content=content)
        write_text(output / "verdict.html", page)
    lines = [content["headline"], content["others"], f"Verdict: {decided.status}", *decided.reasons]
    lines += [f"Required, but does not hold: {condition}" for condition in unmet]
    lines += [f"Earlier request {i}: {count} of {total} rows known." for i, (count, total) in enumerate(leaks, 1)]
    if decided.uninformative:
        lines.append(f"Not informative, as the model fails on retain rows, too: {', '.join(decided.uninformative)}.")
    if content["not_run"]:
        lines.append(f"Audits that were not run: {', '.join(content['not_run'])}.")
    lines.append("Only verdict.html and verdict.json are redacted; the folders beside them hold the rows.")
    status = rules.EXIT[decided.status]
    return "\n".join(lines), status or int(bool(unmet))


def require_tasks(tasks: Sequence[str]) -> None:
    """Raise `ConfigError` for tasks that the harness does not have."""
    if tasks:
        manager = harness.task_manager({}, all_tasks=True)
        unknown = [name for name in tasks if name not in manager.all_tasks]
        if unknown:
            raise ConfigError(f"--tasks {', '.join(unknown)}: there is no such task")


def _known(subject: Subject, folder: str, rows: list[Row]) -> int:
    """Count the rows of an earlier request that the model knows."""
    filler = [Row("filler-qa0", "?", "?", rows[0].task)]  # a data directory has both sides
    return len(subject.score(folder, {"forget": rows, "retain": filler}).known["forget"])


def _memorization(rows: Sides) -> list[str]:
    """Return the memorisation tasks for the rows."""
    tasks = {task_name(row.task) for side_rows in rows.values() for row in side_rows}
    return [task.replace("lume_", "lume_memorization_") for task in sorted(tasks)]


def measured(subject: Subject, plain: Scored, data: Path) -> Measured:
    """Gather the numbers of a model: of its scored rows, the attack and MMLU if there is data, and ``--tasks``."""
    numbers = {
        f"{mean}{end}": value
        for mean in harness.MEANS
        for end in ("", "_low", "_high")
        if (value := harness.metric(plain.results, "lume_score", f"{mean}{end}")) is not None
    }
    for name in (f"{side}_{level}" for side in SIDES for level in LEVELS):
        values = [harness.metric(plain.results, task, name) for task in _memorization(subject.rows)]
        there = [value for value in values if value is not None]
        if there:
            numbers[name] = sum(there) / len(there)
    tasks = ["lume_mia"] * (data / "mia_data").is_dir()
    mmlu = locate.mmlu_source(None, data)
    tasks += ["lume_mmlu"] * (mmlu != locate.MMLU_HUB_ID)
    further = names(subject.config.tasks)
    if tasks or further:
        metadata = harness.data_metadata(data) | {"tokenizer": subject.tokenizer, "lume_chat": subject.config.chat}
        metadata["lume_mmlu_path"] = mmlu
        lm = harness.wrap(subject.model, subject.tokenizer, subject.config.batch_size)
        results = harness.score(lm, metadata, (*tasks, *further), all_tasks=bool(further))
        for task in (*tasks, *further):
            for key, value in results["results"].get(task, {}).items():
                if isinstance(value, float):
                    numbers[f"{task} {key.removesuffix(',none')}"] = value
    samples = (sample for task in _memorization(subject.rows) for sample in plain.results["samples"][task])
    name = "forget_extraction_strength"
    strengths = {sample["doc"]["id"]: sample[name] for sample in samples if sample.get(name) is not None}
    return Measured(plain, numbers, strengths)


def probes_of(scores: Scores) -> dict[str, Scored]:
    """Return the scores of the probes by a short name, without the controls of relearning.

    Of the samples, only the best of all of them have answers.
    """
    probes = {name: scored for name, scored in scores.items() if name != "plain" and scored.answers}
    kept = {name: scored for name, scored in probes.items() if not name.startswith(CONTROLS)}
    return {name.removeprefix("held out, "): scored for name, scored in kept.items()}


def decide(before: Measured, now: Measured, probes: Scores, earlier: Sequence[tuple[int, int]]) -> Verdict:
    """Apply the rules to what was measured; ``earlier``: of each earlier request, rows known now and all rows."""
    known = {
        name: (scored.known, {side: now.plain.known[side] & scored.answers.keys() for side in SIDES})
        for name, scored in probes.items()
    }
    strengths = {row: (value, now.strengths[row]) for row, value in before.strengths.items()}
    found = rules.decide(before.plain.known, now.plain.known, known, strengths)
    leaks = [
        f"Earlier request {number}: {count} of {total} rows are answered correctly."
        for number, (count, total) in enumerate(earlier, 1)
        if count
    ]
    if not leaks:
        return found
    kept = found.reasons if found.status == "not gone" else []
    return Verdict("not gone", [*kept, *leaks], found.uninformative)


def contents(
    config: AuditConfig, data: Path, rows: Sides, before: Measured, now: Measured, probes: Scores, decided: Verdict
) -> dict[str, Any]:
    """Return what ``verdict.json`` and the page hold; texts are redacted unless ``--show_pii``."""
    # All forget rows count as one document: what is common among them alone can be about one person.
    texts = [("forget", f"{row.input} {row.output}") for row in rows["forget"]]
    texts += [(row.id, f"{row.input} {row.output}") for row in rows["retain"]]
    shown = None if config.show_pii else common_words(texts)
    files = [locate.side_file(data, side, config.split) for side in SIDES]
    listed = [
        {
            "id": row.id,
            "asks_for": name_of(row, shown),
            "question": _shown(row.input, shown),
            "right": _shown(row.output, shown),
            "before": _shown(before.plain.answers[row.id], shown),
            "now": _shown(now.plain.answers[row.id], shown),
            "known_before": row.id in before.plain.known["forget"],
            "known_now": row.id in now.plain.known["forget"],
            "known_in": [name for name, scored in probes.items() if row.id in scored.known["forget"]],
        }
        for row in rows["forget"]
    ]
    knew, known = ([row for row in listed if row[key]] for key in ("known_before", "known_now"))
    fields = rules.names_of([str(row["asks_for"]) for row in known]) if known else ""
    counts = {
        side: {"rows": len(rows[side]), "before": len(before.plain.known[side]), "now": len(now.plain.known[side])}
        for side in SIDES
    }
    return {
        "headline": f"Known before: {len(knew)} of {len(listed)}. Known now: {len(known)} {fields}".rstrip() + ".",
        "others": "Retain rows known before: {before} of {rows}. Known now: {now}.".format(**counts["retain"]),
        "verdict": decided.status,
        "reasons": decided.reasons,
        "uninformative": decided.uninformative,
        "rules": rules.RULES,
        "rows": listed,
        "counts": counts,
        "probes": {
            name: {side: [len(s.known[side]), sum(row.id in s.answers for row in rows[side])] for side in SIDES}
            for name, s in probes.items()
        },
        "options": {name: value for name, value in vars(config).items() if name not in PATHS},
        "weights": {name: fingerprint(name) for name in (config.before, config.model, config.peft) if name},
        "data_sha256": {path.name: locate.checksums(path.parent, [path.name])[path.name] for path in files},
        "versions": versions(),
    }


def name_of(row: Row, shown: Shown) -> str:
    """Name what a row asks for: the field of personal data whose shape the answer has, else its question, cut."""
    field = field_of(row.output, -1) if row.kind == "qa" else None
    if field:
        return field.replace("_", " ")
    text = _shown(row.input, shown)
    return text if len(text) <= 50 else f"{text[:50]}…"


def _shown(text: str, shown: Shown) -> str:
    return "".join(redact(word, shown) for word in tokens(text.strip(), shown))
