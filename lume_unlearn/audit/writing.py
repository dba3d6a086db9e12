"""Write a verdict as pages and as JSON, redacted and without local paths, and check it later."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lume_tasks.data.source import Data
from lume_tasks.metrics.matching import FEW
from lume_unlearn.audit import rules
from lume_unlearn.audit.rows import limited, rows_digest
from lume_unlearn.audit.verdict import Verdict
from lume_unlearn.errors import ConfigError
from lume_unlearn.files import write_text, writing
from lume_unlearn.model.fingerprint import fingerprint
from lume_unlearn.report import template
from lume_unlearn.report.redact import Shown, common_words, redacted, tokens
from lume_unlearn.training.callbacks.record import versions

WAYS = {
    "plain": "with the original questions",
    "other_words": "in other words",
    "other_forms": "step by step, as lists and forms, and the other way round",
    "languages": "in other languages",
    "conversation": "within a conversation",
    "persons": "by asking for all about the person",
    "invented": "about persons who do not exist",
    "own_words": "in the model's own words",
    "multiple_choice": "by offering several answers",
    "quantised": "with a version of the model that is compressed to save memory",
    "repair": "after further training on other data",
    "relearn_forget": "after further training on a part of the data itself",
    "unrelated": "after further training on unrelated texts",
    "samples": "several times, with random sampling",
}
"""The description of each probe in the summary."""
VERDICT = "verdict.json"
SCHEMA = 2
"""Version of the fields of ``verdict.json``."""
NEEDED = (
    *("status", "kept", "given", "counted", "options.limit", "options.seed"),
    *("models.now.sha256", "data_sha256.forget", "data_sha256.retain"),
)
"""Fields of ``verdict.json`` that `verify` reads."""


def write_verdict(verdict: Verdict, output: str | Path, show_pii: bool = False, request: str = "") -> None:
    """Write ``verdict.json``, ``verdict.html`` and ``summary.html``, one page to print, to a folder.

    All answers go to ``transcript.jsonl`` without redaction; only the user can read this file.

    Args:
        verdict: what `verdict` returned.
        output: folder; it is created if it does not exist.
        show_pii: do not redact rare words, names and numbers.
        request: what the verdict is for, such as a number, a date and a name; printed unchanged.

    Raises:
        ConfigError: the files cannot be written.
    """
    output, content = Path(output), contents(verdict, show_pii) | {"request": request}
    with writing(output):
        write_text(output / VERDICT, json.dumps(content, indent=1) + "\n")
        for name in ("verdict.html", "summary.html"):
            write_text(output / name, template(f"{name}.j2", autoescape=True).render(content=content, ways=WAYS))
        transcript = output / "transcript.jsonl"
        transcript.touch(mode=0o600)
        lines = (
            json.dumps({"probe": probe, "row": row, "answer": text}, ensure_ascii=False)
            for probe, answers in verdict.answers.items()
            for row, text in answers.items()
        )
        transcript.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def verify(content: Mapping[str, Any], model: Any, data: Data) -> list[str]:
    """Return a sentence for everything that no longer matches a verdict: the weights, and each side's rows.

    Args:
        content: content of ``verdict.json``.
        model: the model that was judged, in the same form as for `verdict`.
        data: its rows.

    Raises:
        ConfigError: ``content`` is no verdict of this version.
    """
    require_verdict(content)
    options = content["options"]
    data = limited(data, options["limit"], options["seed"])
    hashes = {"weights of the model": (content["models"]["now"]["sha256"], fingerprint(model)["sha256"])}
    for side, rows in data.rows.items():
        hashes[f"{side} rows"] = content["data_sha256"][side], rows_digest(rows)
    return [f"The {name} differ from those of the verdict." for name, (then, now) in hashes.items() if then != now]


def require_verdict(content: Any) -> None:
    """Raise `ConfigError` unless this is the content of a ``verdict.json`` of this version."""
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise ConfigError(f"{VERDICT}: its schema is {schema}, not {SCHEMA}: audit the model again")
    for path in NEEDED:
        found = content
        for name in path.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        if found is None:
            raise ConfigError(f"{VERDICT}: {path} is missing, so the file was changed: restore it, or audit again")


def contents(verdict: Verdict, show_pii: bool) -> dict[str, Any]:
    """Return the content of ``verdict.json`` and the pages."""
    forget = [(found["row"].input, found["row"].output) for found in verdict.rows]
    retain = [(row.id, f"{row.input} {row.output}") for row in verdict.retain]
    shown = None if show_pii else common_words(retain, forget)
    plain = {name: value for name, value in vars(verdict).items() if name not in ("rows", "retain", "answers")}
    now = verdict.swaps["now"].get("forget")
    return plain | {
        "earlier": [asdict(one) | {"line": one.line()} for one in verdict.earlier],
        "schema": SCHEMA,
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d}",
        "rows": [_row(found, shown) for found in verdict.rows],
        "headline": verdict.headline,
        "queries": verdict.queries,
        "counted": len(verdict.counted),
        "given": verdict.given,
        "limit": rules.upper_limit(0, len(verdict.counted)),
        "compared": rules.compared(now) if now else "",
        "lines": verdict.lines()[2:],
        "reasons_in_words": [_in_words(reason) for reason in verdict.reasons],
        "rules": template("rules.txt.j2").render(vars(rules), FEW=FEW).splitlines(),
        "show_pii": show_pii,
        "versions": versions(),
    }


def _row(found: Mapping[str, Any], shown: Shown) -> dict[str, Any]:
    """Return an entry of `Verdict.rows` for the page; ``asks_for``: the beginning of the question."""
    row, numbers = found["row"], ("known_before", "known_now", "known_in", "excused", "rank")
    texts = {"question": row.input, "right": row.output, "before": found["before"], "now": found["now"]}
    for name, text in texts.items():
        texts[name] = "".join(redacted(tokens(text.strip(), shown), shown))
    question = texts["question"]
    first = question if len(question) <= 50 else f"{question[:50]}…"
    return {"id": row.id, "asks_for": first, **texts, **{name: found[name] for name in numbers}}


def _in_words(reason: str) -> str:
    """Return a reason with the probes' names in the words of `WAYS`."""
    return re.sub(r"\w+(?=: \d)", lambda match: WAYS.get(match[0], match[0]), reason)
