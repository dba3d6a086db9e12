"""Read the file of alternatives: plausible but untrue answers to the forget rows, for `dpo` and `altpo`."""

import string
from collections.abc import Sequence
from pathlib import Path

from lume_tasks.data.files import place, scan
from lume_tasks.data.rows import Row, text_problems
from lume_tasks.errors import first_few, quote, raise_problems

FIELDS = ("id", "alternative")


def read_alternatives(path: Path, rows: Sequence[Row]) -> dict[str, list[str]]:
    """Read a file with ``{"id": <of a row>, "alternative": <text>}`` on each line; return the alternatives by row id.

    Raises:
        DataError: the message lists the first ten faults with their lines; faults include alternatives that equal
            their row's output (see `bare`), and rows without an alternative.
    """
    objects, faults = scan(path, FIELDS, lambda obj: text_problems(obj, *FIELDS))
    by_id = {row.id: row for row in rows}
    found: dict[str, list[str]] = {}
    for line, obj in objects.items():
        row = by_id.get(obj["id"])
        if row is None:
            faults.append((line, f"id {quote(obj['id'])} is not that of a forget row of this run"))
        elif bare(obj["alternative"]) == bare(row.output):
            faults.append((line, f"alternative of {row.id} is the row's own output"))
        else:
            found.setdefault(row.id, []).append(obj["alternative"])
    missing = [row.id for row in rows if row.id not in found]
    if missing and objects:
        named = ", ".join(first_few(missing, 3))
        faults.append((0, f"has no usable alternative for {len(missing)} of {len(rows)} forget rows: {named}"))
    raise_problems(place(str(path), faults), most=10)
    return found


def bare(text: str) -> str:
    """Return the text in lower case, without punctuation and white space at its ends."""
    return text.strip(string.whitespace + string.punctuation).casefold()
