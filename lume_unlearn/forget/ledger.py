"""The ledger of a model: a line for each request, without names, each with the hash of the line before."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lume_unlearn.audit.verdict import Verdict
from lume_unlearn.errors import ConfigError
from lume_unlearn.files import write_text, writing

LEDGER = "requests.jsonl"
FIELDS = {"number": int, "previous_sha256": str, "model_now": str, "rows": dict, "status": str}
"""Fields that an entry must have, with their types."""


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """Read the entries of a ledger; none if there is no file.

    Raises:
        ConfigError: a line cannot be read, or is no entry.
    """
    if not path.is_file():
        return []
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); restore the file from a copy") from error
    for line, entry in enumerate(entries, 1):
        found = entry if isinstance(entry, dict) else {}
        wrong = [name for name, kind in FIELDS.items() if not isinstance(found.get(name), kind)]
        if wrong:
            raise ConfigError(f"{path}:{line}: no entry of a ledger, since {wrong[0]} is missing; restore the file")
    return entries


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
        "request_sha256": hashlib.sha256(request.encode()).hexdigest() if request else "",
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


def ledger_faults(entries: Sequence[dict[str, Any]], verdict: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each entry of a ledger that was changed, and for a last entry of another verdict.

    Args:
        entries: entries of the ledger.
        verdict: content of ``verdict.json``, which the last entry should be about.
    """
    hashes = ["", *map(_hash, entries)]
    faults = [
        f"Entry {n} of {LEDGER} does not follow from the one before it: an entry was changed or removed."
        for n, (entry, before) in enumerate(zip(entries, hashes, strict=False), 1)
        if (entry["number"], entry["previous_sha256"]) != (n, before)
    ]
    if not entries:
        return faults
    last = entries[-1]
    expected = {"model": (last["model_now"], verdict["models"]["now"]["sha256"])}
    expected["forget rows"] = last["rows"].get("forget"), verdict["data_sha256"]["forget"]
    expected["status"] = last["status"], verdict["status"]
    expected["result for the retain rows"] = last.get("kept"), verdict["kept"]
    expected["number of rows given away"] = last.get("given_away"), [verdict["given"], verdict["counted"]]
    differ = [name for name, (here, there) in expected.items() if here != there]
    return faults + [f"The last entry of {LEDGER} has another {name} than the verdict." for name in differ]


def _hash(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
