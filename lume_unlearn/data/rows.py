"""Convert rows in memory, passed as forget and retain rows, to lists of `Row`."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from lume_tasks.data.chats import Key, shared_questions
from lume_tasks.data.checks import check_sides
from lume_tasks.data.fields import CHATS, Options, names_of
from lume_tasks.data.reading import converted
from lume_tasks.data.rows import OWN, SWAP, Row, completed, row_of, row_problems, text_key
from lume_tasks.errors import DataError, quote, raise_problems
from lume_unlearn.errors import log

RowsLike: TypeAlias = Any
"""A list of `Row` or of dictionaries, a datasets.Dataset, or a pandas.DataFrame."""


def as_rows(rows: RowsLike, name: str = "rows") -> list[Row]:
    """Return rows of any kind as a list of `Row`, in their order.

    A row is a `Row` or a mapping with the fields

    - ``input`` and ``output``, and optionally ``id``, ``task``, ``document`` and ``kind`` ("qa", the default, for a
      question and its answer; "sc" for a text to complete), as in a data directory; for the swap test ``subject``, the
      name of the person, and ``question``, a question about them whose answer is ``output``; ``turns``, a list of
      ``{"role", "content"}``, is what comes before the question in a chat;
    - or ``question`` and ``answer``, ``prompt`` and ``completion`` or ``response``, or Alpaca's ``instruction``,
      ``input`` and ``output``;
    - or ``text``: a text, cut in two at the sentence end nearest to its middle; a long one becomes several rows;
    - or ``messages`` or ``conversations``: a chat. Each user turn that an assistant turn answers becomes a question
      after the turns before it, and one without them. A question that another chat has, too, is one row.

    Args:
        rows: a list of `Row` or of dictionaries, a `datasets.Dataset`, or a `pandas.DataFrame`.
        name: name of the argument, for messages.

    Raises:
        DataError: the message lists everything wrong with the rows.
    """
    if isinstance(rows, (str, Path, Mapping)):
        raise DataError(f"{name}: give a list of rows, a Dataset or a DataFrame, not a {type(rows).__name__}")
    if hasattr(rows, "columns") and hasattr(rows, "to_dict"):
        rows = rows.astype(object).where(rows.notna(), None).to_dict("records")
    rows = list(rows)
    found: list[Row] = []
    chats: set[object] = set()
    problems: list[str] = []
    for number, row in enumerate(rows, 1):
        made, faults = ([row], []) if isinstance(row, Row) else _from_mapping(row)
        if isinstance(row, Mapping) and names_of(row, Options()) in CHATS:  # many chats begin or end alike
            made = [one for one in made if text_key(one) not in chats]
            chats |= set(map(text_key, made))
        found += made
        problems += [f"{name}, row {number}: {fault}" for fault in faults]
    unnamed = rows and (not isinstance(rows[0], Mapping) or names_of(rows[0], Options()) is None)
    if problems and not found and unnamed and len({problem.partition(": ")[2] for problem in problems}) <= 2:
        given = ", ".join(map(str, rows[0])) if isinstance(rows[0], Mapping) else type(rows[0]).__name__
        problems = [f"{name}: none of the {len(rows)} rows has question and answer, text or messages, but {given}"]
    raise_problems(problems)
    return found


def both_sides(forget: RowsLike, retain: RowsLike | None) -> tuple[list[Row], list[Row]]:
    """Return forget and retain rows (see `as_rows`) without `shared_questions`; no retain rows for None.

    Raises:
        DataError: faulty rows, two rows with the same id, or a row that is on both sides.
    """
    sides = {"forget": as_rows(forget, "forget"), "retain": as_rows([] if retain is None else retain, "retain")}
    shared = shared_questions(*map(_asked_alone, sides.values()))
    if any(shared):
        log.warning("%d and %d chat questions left out of forget and retain: both sides have them", *map(len, shared))
    for (name, rows), out in zip(sides.items(), shared, strict=True):
        sides[name] = [row for row in rows if text_key(row) not in out]
    problems = [] if sides["forget"] else ["forget: there are no rows"]
    for name, rows in sides.items():
        first: dict[str, int] = {}
        for number, row in enumerate(rows, 1):
            if first.setdefault(row.id, number) != number:
                problems.append(f"{name}, row {number}: id {quote(row.id)} is also that of row {first[row.id]}")
    raise_problems(problems + check_sides("forget and retain", *sides.values()))
    return sides["forget"], sides["retain"]


def _asked_alone(rows: Sequence[Row]) -> dict[Key, bool]:
    """Return the `text_key` of each row, to whether another row asks the same question of the document after turns."""
    after = {(row.stem, text_key(row)[:2]) for row in rows if row.turns}
    return {text_key(row): not row.turns and (row.stem, text_key(row)[:2]) in after for row in rows}


def _from_mapping(given: Any) -> tuple[list[Row], list[str]]:
    """Return the rows of one mapping, and its faults."""
    if not isinstance(given, Mapping):
        return [], ["is neither a Row nor a mapping"]
    fields = {field: None if _missing(value) else _as_list(value) for field, value in given.items()}
    names = names_of(fields, Options())
    row = {field: value for field, value in fields.items() if value is not None}
    if names in (None, ("input", "output"), ("content",), ("document",)):
        return _checked([row])
    made = converted(fields, names)
    shared = {"task": row.get("task", OWN)} | {name: row[name] for name in SWAP if name in row.keys() - {*names}}
    if "document" in row or len(names) == 1:  # one text or chat may give several rows
        shared["document"] = str(row.get("document", row[names[0]]))
    rows, problems = _checked([{**vars(item), **shared} for item in made.items])
    return rows, made.faults + [made.skipped] * bool(made.skipped) + problems


def _checked(made: Iterable[Mapping[str, Any]]) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    problems: list[str] = []
    for one in made:
        whole: Any = completed(dict(one))
        faults = row_problems(whole)
        problems += faults
        if not faults:
            rows.append(row_of(whole))
    return rows, problems


def _as_list(value: Any) -> Any:
    """Return an array as a list: a DataFrame that was read from parquet holds lists as arrays."""
    return value.tolist() if hasattr(value, "tolist") else value


def _missing(value: Any) -> bool:
    """Return whether a value is missing: None, or NaN as in pandas."""
    return value is None or (isinstance(value, float) and value != value)
