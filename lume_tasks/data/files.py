"""Read the rows and documents of one file, and find everything wrong with it."""

import codecs
import json
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lume_tasks.data.rows import (
    FIELDS,
    OPTIONAL,
    SWAP,
    TURNS,
    Row,
    completed,
    row_object,
    row_of,
    row_problems,
    text_key,
    text_problems,
)
from lume_tasks.errors import DataError, first_line, quote, raise_problems

SUFFIXES = (".jsonl", ".parquet")

# (line, message). JSONL lines and parquet rows count from 1; line 0 means the whole file.
Fault = tuple[int, str]


def place(shown: str, faults: Iterable[Fault]) -> list[str]:
    """Turn faults of the file ``shown`` into lines such as ``forget.jsonl:17: field "output" is empty``, in order."""
    ordered = sorted(faults, key=lambda fault: fault[0])
    return [f"{shown}:{line}: {message}" if line else f"{shown}: {message}" for line, message in ordered]


def find_file(folder: Path, stem: str, shown: str) -> Path:
    """Return ``<folder>/<stem>.jsonl`` or ``.parquet``; if neither or both exist, a DataError names ``shown``."""
    there = [folder / f"{stem}{suffix}" for suffix in SUFFIXES if (folder / f"{stem}{suffix}").exists()]
    if not there:
        raise DataError(f"{shown}.jsonl: is missing ({stem}.parquet would do as well)")
    if len(there) > 1:
        raise DataError(f"{shown}.jsonl: {stem}.parquet is in the same folder: keep only one of them")
    return there[0]


def read_rows(path: Path) -> list[Row]:
    """Read the forget or retain rows of a ``.jsonl`` or ``.parquet`` file; DataError lists all faults by line."""
    rows, faults = scan_rows(path)
    raise_problems(place(str(path), faults))
    return list(rows.values())


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSONL for `read_rows`; create the folder if it does not exist.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row_object(row), ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def scan_rows(path: Path) -> tuple[dict[int, Row], list[Fault]]:
    """Return the valid rows of a file by line number, and the file's faults."""
    objects, faults = scan(path, (*FIELDS, *SWAP, *OPTIONAL, TURNS), lambda obj: row_problems(completed(obj)))
    rows = {line: row_of(completed(obj)) for line, obj in objects.items()}
    for line, earlier in _repeated({line: row.id for line, row in rows.items()}):
        faults.append((line, f"id {quote(rows[line].id)} is already on line {earlier}"))
    for line, earlier in _repeated({line: text_key(row) for line, row in rows.items()}):
        faults.append((line, f"has the same input and output as line {earlier}"))
    return rows, faults


def scan_documents(path: Path) -> tuple[dict[int, str], list[Fault]]:
    """Return the valid membership-inference documents of a file by line number, and the file's faults."""
    objects, faults = scan(path, ("document",), lambda obj: text_problems(obj, "document"))
    documents = {line: obj["document"] for line, obj in objects.items()}
    for line, earlier in _repeated({line: document.strip() for line, document in documents.items()}):
        faults.append((line, f"has the same document as line {earlier}"))
    return documents, faults


def _repeated(keys: dict[int, Hashable]) -> Iterator[tuple[int, int]]:
    """Yield each line whose key is on an earlier line, and that earlier line."""
    first: dict[Hashable, int] = {}
    for line, key in keys.items():
        earlier = first.setdefault(key, line)
        if earlier != line:
            yield line, earlier


def scan(
    path: Path, fields: Iterable[str], problems_of: Callable[[Any], list[str]]
) -> tuple[dict[int, dict[str, Any]], list[Fault]]:
    """Read a ``.jsonl`` or ``.parquet`` file and return its valid objects by line number, and all faults.

    ``fields`` are the parquet columns to read; ``complete`` adds missing fields to an object; ``problems_of``
    lists what is wrong with the completed object.
    """
    if path.suffix not in SUFFIXES:
        return {}, [(0, "is neither .jsonl nor .parquet")]
    try:
        objects, faults = read_parquet(path, fields) if path.suffix == ".parquet" else parse_jsonl(*read_lines(path))
    except OSError as error:
        return {}, [unreadable(error)]
    valid: dict[int, dict[str, Any]] = {}
    for line, obj in objects.items():
        problems = problems_of(obj)
        faults += [(line, problem) for problem in problems]
        if not problems:
            valid[line] = obj
    if not valid and not faults:
        faults.append((0, "is empty: it holds no rows"))
    return valid, faults


def unreadable(error: OSError) -> Fault:
    """Return the fault of a file that cannot be opened or read."""
    return 0, f"cannot be read: {error.strerror or first_line(error)}"


def read_lines(path: Path) -> tuple[dict[int, str], list[Fault]]:
    """Return the lines of a UTF-8 file by number, without a byte-order mark, and a fault for each that is not UTF-8.

    Raises:
        OSError: the file cannot be read.
    """
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    if b"\0" in content[:8000]:
        return {}, [(0, "is not a text file: save it as UTF-8 and uncompressed")]
    return utf8_lines(content)


def utf8_lines(content: bytes) -> tuple[dict[int, str], list[Fault]]:
    """Return the lines of a UTF-8 text by number, and a fault for each that is not UTF-8."""
    lines: dict[int, str] = {}
    faults: list[Fault] = []
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            lines[number] = line.decode("utf-8")
        except UnicodeDecodeError as error:
            faults.append((number, f"is not valid UTF-8 (byte {error.start + 1} of the line): save the file as UTF-8"))
    return lines, faults


def parse_jsonl(lines: dict[int, str], faults: list[Fault]) -> tuple[dict[int, Any], list[Fault]]:
    """Return the objects of JSONL lines by number, and ``faults`` with the faults of these lines added."""
    objects: dict[int, Any] = {}
    for number, line in lines.items():
        if not line.strip():
            continue
        try:
            objects[number] = json.loads(line)
        except json.JSONDecodeError as error:
            faults.append((number, f"is bad JSON: {error.msg} (column {error.pos + 1})"))
    return without_surrogates(objects, faults)


def without_surrogates(objects: dict[int, Any], faults: list[Fault]) -> tuple[dict[int, Any], list[Fault]]:
    r"""Move objects with an unpaired surrogate to the faults: JSON may hold one (``\ud83d``), UTF-8 cannot."""
    whole = {}
    for number, obj in objects.items():
        try:
            json.dumps(obj, ensure_ascii=False).encode()
            whole[number] = obj
        except UnicodeEncodeError as error:
            code = ascii(error.object[error.start])[1:-1]
            faults.append((number, f"holds {code}, half of a character (an unpaired surrogate): write both halves"))
    return whole, faults


def read_parquet(path: Path, fields: Iterable[str] | None = None) -> tuple[dict[int, Any], list[Fault]]:
    """Return the rows of a parquet file by number, with the columns ``fields`` (None: all), and its faults.

    Raises:
        OSError: the file cannot be read.
    """
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            rows = file.read(columns=names if fields is None else [f for f in fields if f in names]).to_pylist()
    except (ArrowException, ValueError) as error:
        return {}, [(0, f"cannot be read as parquet: {first_line(error)}")]
    return dict(enumerate(rows, 1)), []
