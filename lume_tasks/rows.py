"""Reading one data file: what a row is, and everything that can be wrong with it."""

import codecs
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TASKS = ("Task1", "Task2", "Task3")
FIELDS = ("id", "input", "output", "task")
SUFFIXES = (".jsonl", ".parquet")

_KIND = re.compile(r"(sc|qa)[0-9]\Z")
_SURROGATE = re.compile("[\ud800-\udfff]")
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

# A fault is (line, message); line 0 stands for the file as a whole. Lines of JSONL and rows of parquet count from 1.
Fault = tuple[int, str]
Record = tuple[int, object, list[str]]  # line, what stands there, faults of its encoding or syntax


class DataError(ValueError):
    """Data that cannot be used. The message is meant for the user and lists everything wrong at once."""


@dataclass(frozen=True)
class Row:
    """One test of the benchmark, its strings exactly as in the file.

    ``id`` ends in ``sc<digit>`` (sentence completion) or ``qa<digit>`` (question answering).
    """

    id: str
    input: str
    output: str
    task: str

    @property
    def kind(self) -> str:
        """``"sc"`` (regurgitation test) or ``"qa"`` (knowledge test)."""
        return self.id[-3:-1]

    @property
    def stem(self) -> str:
        """The id without its kind and digit: what the tests of one document or person share."""
        return self.id[:-3]


def quote(text: str) -> str:
    """Show ``text`` as JSON in ASCII, cut at 80 characters: printable whatever it holds, and found by a search."""
    return json.dumps(text if len(text) <= 80 else text[:77] + "...")


def place(shown: str, faults: list[Fault]) -> list[str]:
    """Turn faults of the file ``shown`` into lines such as ``forget.jsonl:17: field "output" is empty``, in order."""
    ordered = sorted(faults, key=lambda fault: fault[0])
    return [f"{shown}:{line}: {message}" if line else f"{shown}: {message}" for line, message in ordered]


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its class where it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def describe(value: object) -> str:
    """Name the JSON type of ``value`` as a user would."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, bytes):
        return "binary data"
    if isinstance(value, (int, float)):
        return "a number"
    names: dict[type, str] = {str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def text_problem(obj: dict[str, object], field: str) -> str | None:
    """Say what is wrong with one field that has to hold text, or return None."""
    if field not in obj:
        return f'field "{field}" is missing'
    value = obj[field]
    if not isinstance(value, str):
        return f'field "{field}" is {describe(value)}, not a string'
    if not value.strip():
        return f'field "{field}" is empty'
    if "\0" in value:
        return f'field "{field}" contains a NUL character'
    if _SURROGATE.search(value):
        return f'field "{field}" contains half a surrogate pair (such as \\ud800), which UTF-8 cannot hold'
    return None


def row_problems(obj: object) -> list[str]:
    """List everything wrong with one parsed row of forget or retain; extra fields are fine."""
    if not isinstance(obj, dict):
        return [f"is {describe(obj)}, not an object with the fields {', '.join(FIELDS)}"]
    found = {field: text_problem(obj, field) for field in FIELDS}
    problems = [problem for problem in found.values() if problem]
    if found["task"] is None and obj["task"] not in TASKS:
        problems.append(f"task {quote(obj['task'])} is unknown: use one of {', '.join(TASKS)}")
    if found["id"] is None and not _KIND.search(obj["id"]):
        problems.append(f"id {quote(obj['id'])} ends neither in sc<digit> nor in qa<digit>")
    return problems


def document_problems(obj: object) -> list[str]:
    """List everything wrong with one parsed membership-inference document; extra fields are fine."""
    if not isinstance(obj, dict):
        return [f'is {describe(obj)}, not an object with the field "document"']
    problem = text_problem(obj, "document")
    return [problem] if problem else []


def find_file(folder: Path, stem: str, shown: str) -> Path:
    """Return ``<folder>/<stem>.jsonl`` or ``.parquet``.

    Raises:
        DataError: neither or both are there; the file is called ``shown`` (a path without suffix) in the message.
    """
    there = [path for path in (folder / f"{stem}{suffix}" for suffix in SUFFIXES) if path.exists()]
    if not there:
        raise DataError(f"{shown}.jsonl: is missing ({stem}.parquet would do as well)")
    if len(there) > 1:
        raise DataError(f"{shown}.jsonl: stands beside {stem}.parquet: keep only one of them")
    return there[0]


def read_rows(path: Path) -> list[Row]:
    """Read and validate one ``.jsonl`` or ``.parquet`` file of forget or retain rows.

    Raises:
        DataError: lists every fault of the file, one a line, with its line number.
    """
    rows, faults = scan_rows(path)
    if faults:
        raise DataError("\n".join(place(str(path), faults)))
    return list(rows.values())


def read_documents(path: Path) -> list[str]:
    """Read and validate one file of membership-inference documents (field ``document``).

    Raises:
        DataError: lists every fault of the file, one a line, with its line number.
    """
    documents, faults = scan_documents(path)
    if faults:
        raise DataError("\n".join(place(str(path), faults)))
    return list(documents.values())


def scan_rows(path: Path) -> tuple[dict[int, Row], list[Fault]]:
    """Return the sound rows of a file by line, and the faults of the others and of the file."""
    objects, faults = _scan(path, FIELDS, row_problems)
    rows = {line: Row(*(obj[field] for field in FIELDS)) for line, obj in objects.items()}
    first_id: dict[str, int] = {}
    first_text: dict[tuple[str, str], int] = {}
    for line, row in rows.items():
        if (first := first_id.setdefault(row.id, line)) != line:
            faults.append((line, f"id {quote(row.id)} is already on line {first}"))
        if (first := first_text.setdefault(text_key(row), line)) != line:
            faults.append((line, f"input and output are those of line {first}"))
    return rows, faults


def scan_documents(path: Path) -> tuple[dict[int, str], list[Fault]]:
    """Return the sound documents of a file by line, and the faults of the others and of the file."""
    objects, faults = _scan(path, ("document",), document_problems)
    documents = {line: obj["document"] for line, obj in objects.items()}
    first_line: dict[str, int] = {}
    for line, document in documents.items():
        if (first := first_line.setdefault(document.strip(), line)) != line:
            faults.append((line, f"document is that of line {first}"))
    return documents, faults


def text_key(row: Row) -> tuple[str, str]:
    """What makes two rows the same test: input and output without the white space around them."""
    return row.input.strip(), row.output.strip()


def _scan(
    path: Path, fields: tuple[str, ...], problems_of: Callable[[object], list[str]]
) -> tuple[dict[int, dict[str, str]], list[Fault]]:
    sound: dict[int, dict[str, str]] = {}
    faults: list[Fault] = []
    empty = True
    for line, obj, broken in _records(path, fields):
        empty = False
        # None with a fault of its own was never parsed; None without one is a JSON null.
        wrong = [] if obj is None and broken else problems_of(obj)
        faults += [(line, message) for message in broken + wrong]
        if not wrong and isinstance(obj, dict):
            sound[line] = obj
    return sound, faults or ([(0, "is empty: it holds no rows")] if empty else [])


def _records(path: Path, fields: tuple[str, ...]) -> Iterator[Record]:
    if path.suffix not in SUFFIXES:
        yield 0, None, ["is neither .jsonl nor .parquet"]
        return
    try:
        yield from parquet_records(path, fields) if path.suffix == ".parquet" else _jsonl_records(path)
    except OSError as error:
        yield 0, None, [f"cannot be read: {error.strerror or error}"]


def _jsonl_records(path: Path) -> Iterator[Record]:
    blank: list[int] = []
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            marked = number == 1 and raw.startswith(codecs.BOM_UTF8)
            if marked:
                yield 0, None, ["starts with a UTF-8 byte order mark: save it without one"]
                raw = raw[len(codecs.BOM_UTF8) :]
            if number == 1 and raw.startswith(_UTF16_MARKS):
                yield 0, None, ["is UTF-16: save it as UTF-8"]
                return
            if not raw.strip():
                blank.append(number)  # a fault only if something follows
                continue
            yield from ((line, None, ["is blank: remove the line"]) for line in blank)
            blank.clear()
            yield number, *_parse(raw)


def _parse(raw: bytes) -> tuple[object, list[str]]:
    if b"\0" in raw:
        return None, ["contains a NUL byte"]
    twice: list[str] = []

    def to_dict(pairs: list[tuple[str, object]]) -> dict[str, object]:
        counts = Counter(key for key, _ in pairs)
        twice[:] = [key for key, count in counts.items() if count > 1]  # the last call is the outermost object's
        return dict(pairs)

    try:
        obj = json.loads(raw.decode("utf-8").rstrip(), object_pairs_hook=to_dict)
    except UnicodeDecodeError as error:
        return None, [f"is not valid UTF-8 (byte {error.start + 1} of the line)"]
    except json.JSONDecodeError as error:
        return None, [f"is bad JSON: {error.msg} (column {error.pos + 1})"]
    except (ValueError, RecursionError):
        return None, ["is bad JSON: nested too deeply, or a number with too many digits"]
    return obj, [f"key {quote(key)} stands twice in the object" for key in twice]


def parquet_records(path: Path, fields: tuple[str, ...]) -> Iterator[Record]:
    """Yield (row number from 1, dict of those ``fields`` that are columns, faults) for each row of a parquet file."""
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = [field for field in fields if field in file.schema_arrow.names]
            for batch in file.iter_batches(columns=columns):
                for index in range(batch.num_rows):
                    number += 1
                    yield number, *_parquet_row(batch, index)
    except (pyarrow.ArrowException, ValueError) as error:
        yield 0, None, [f"cannot be read as parquet: {first_line(error)}"]


def _parquet_row(batch: Any, index: int) -> tuple[object, list[str]]:
    try:
        return {name: column[index].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)}, []
    except UnicodeDecodeError:
        return None, ["is not valid UTF-8"]
