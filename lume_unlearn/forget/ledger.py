"""The ledger of a model: a line for each request, without names, each with the hash of the line before."""

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

from lume_unlearn.audit.verdict import Verdict
from lume_unlearn.errors import ConfigError
from lume_unlearn.files import write_text, writing

LEDGER = "requests.jsonl"


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """Read the entries of a ledger; none if there is no file.

    Raises:
        ConfigError: a line cannot be read.
    """
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error


def entry_of(found: Verdict, earlier: Sequence[dict[str, Any]], request: str = "") -> dict[str, Any]:
    """Return the entry of a verdict, to be written after earlier ones.

    It holds the date, hashes of the models, rows and request, and the results, also those for earlier requests.

    Args:
        found: verdict of the request.
        earlier: entries of earlier requests.
        request: name of the request; the entry holds only its hash.
    """
    return {
        "number": len(earlier) + 1,
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d}",
        "request_sha256": _sha256(request) if request else "",
        "model_before": found.models["before"]["sha256"],
        "model_now": found.models["now"]["sha256"],
        "rows": found.data_sha256,
        "status": found.status,
        "kept": found.kept,
        "given_away": [found.given, len(found.counted)],
        "swap": found.swaps.get("now", {}).get("forget"),
        "earlier": [one.line() for one in found.earlier],
        "previous_sha256": _hash(earlier[-1]) if earlier else "",
    }


def write_ledger(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write a ledger, atomically; ConfigError if it cannot be written."""
    with writing(path.parent):
        write_text(path, "".join(f"{json.dumps(entry)}\n" for entry in entries))


def ledger_faults(entries: Sequence[dict[str, Any]], model: str, rows: str) -> list[str]:
    """Return a sentence for each entry of a ledger that was changed, and for a last entry of another model or rows.

    Args:
        entries: entries of the ledger.
        model: SHA-256 of the model that the last entry should be about.
        rows: SHA-256 of its forget rows.
    """
    changed = [n for n, (entry, after) in enumerate(pairwise(entries), 1) if after["previous_sha256"] != _hash(entry)]
    faults = [f"Entry {n} of {LEDGER} was changed, or one before {n + 1} is missing." for n in changed]
    if entries and entries[-1]["model_now"] != model:
        faults.append(f"The last entry of {LEDGER} belongs to another model.")
    if entries and entries[-1]["rows"]["forget"] != rows:
        faults.append(f"The last entry of {LEDGER} belongs to other forget rows.")
    return faults


def _hash(entry: dict[str, Any]) -> str:
    return _sha256(json.dumps(entry, sort_keys=True))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
