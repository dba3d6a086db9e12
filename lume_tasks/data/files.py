"""Reading one file of rows, and everything that can be wrong with it."""

import codecs
import json
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lume_tasks.data.rows import FIELDS, TEXT, Row, document_problems, row_problems, text_key
from lume_tasks.errors import DataError, first_line, quote

SUFFIXES = (".jsonl", ".parquet")

_BEGINNINGS = {  # of files that are no lines of text -> what the user is told
    codecs.BOM_UTF16_LE: "is UTF-16: save it as UTF-8",
    codecs.BOM_UTF16_BE: "is UTF-16: save it as UTF-8",
    b"\x1f\x8b": "is compressed (gzip): unpack it",
    b"PK\x03\x04": "is compressed (zip): unpack it",
    b"BZh": "is compressed (bzip2): unpack it",
    b"\xfd7zXZ\0": "is compressed (xz): unpack it",
    b"(\xb5/\xfd": "is compressed (zstd): unpack it",
    b"PAR1": "is parquet: let its name end in .parquet",
}

# A small file can unfold into more than the memory holds, and a line of each fault too.
MOST_BYTES = 2**30  # of text in one file
MOST_FAULTS = 10_000  # listed of one file

# A fault is (line, message); line 0 stands for the file as a whole. Lines of JSONL and rows of parquet count from 1.
Fault = tuple[int, str]
Record = tuple[int, Any, list[str]]  # line, what stands there, faults of its encoding or syntax


class Faults(list[Fault]):
    """Faults of one file, ``MOST_FAULTS`` of them at most, and how many ``more`` there are."""

    more = 0

    def add(self, faults: Iterable[Fault]) -> None:
        """List them, or count those that are too many."""
        for fault in faults:
            if len(self) < MOST_FAULTS:
                self.append(fault)
            else:
                self.more += 1


def place(shown: str, faults: Faults) -> list[str]:
    """Turn faults of the file ``shown`` into lines such as ``forget.jsonl:17: field "output" is empty``, in order."""
    ordered = sorted(faults, key=lambda fault: fault[0])
    lines = [f"{shown}:{line}: {message}" if line else f"{shown}: {message}" for line, message in ordered]
    return [*lines, f"{shown}: and {faults.more:,} more faults"] if faults.more else lines


def find_file(folder: Path, stem: str, shown: str) -> Path:
    """Return ``<folder>/<stem>.jsonl`` or ``.parquet``.

    Raises:
        DataError: neither or both are there, or the folder is closed; the file is called ``shown`` (a path without
            suffix) in the message.
    """
    try:
        there = [path for path in (folder / f"{stem}{suffix}" for suffix in SUFFIXES) if path.exists()]
    except OSError as error:  # a folder that may not be entered
        raise DataError(f"{shown}.jsonl: cannot be read: {error.strerror}") from error
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


def scan_rows(path: Path) -> tuple[dict[int, Row], Faults]:
    """Return the sound rows of a file by line, and the faults of the others and of the file."""
    objects, faults = scan(path, FIELDS, row_problems)
    rows = {line: Row(*(obj[field] for field in FIELDS)) for line, obj in objects.items()}
    faults.add(_twice(rows))
    return rows, faults


def _twice(rows: dict[int, Row]) -> Iterator[Fault]:
    first_id: dict[str, int] = {}
    first_text: dict[tuple[str, str], int] = {}
    for line, row in rows.items():
        if (first := first_id.setdefault(row.id, line)) != line:
            yield line, f"id {quote(row.id)} is already on line {first}"
        if (first := first_text.setdefault(text_key(row), line)) != line:
            yield line, f"input and output are those of line {first}"


def scan_documents(path: Path) -> tuple[dict[int, str], Faults]:
    """Return the sound documents of a file by line, and the faults of the others and of the file."""
    objects, faults = scan(path, {"document": TEXT}, document_problems)
    documents = {line: obj["document"] for line, obj in objects.items()}
    first_line: dict[str, int] = {}
    firsts = ((line, first_line.setdefault(document.strip(), line)) for line, document in documents.items())
    faults.add((line, f"document is that of line {first}") for line, first in firsts if first != line)
    return documents, faults


def scan(
    path: Path, fields: Mapping[str, str], problems_of: Callable[[Any], list[str]]
) -> tuple[dict[int, dict[str, Any]], Faults]:
    """Sound objects of a file by line, and its faults, none of which is raised.

    Args:
        path: a ``.jsonl`` or ``.parquet`` file.
        fields: what to read, see `parquet.parquet_records`.
        problems_of: finds what is wrong with an object.
    """
    sound: dict[int, dict[str, Any]] = {}
    faults = Faults()
    for line, obj, broken in _records(path, fields):
        # None with a fault of its own was never parsed; None without one is a JSON null.
        wrong = [] if obj is None and broken else problems_of(obj)
        faults.add((line, message) for message in broken + wrong)
        if not wrong and isinstance(obj, dict):
            sound[line] = obj
        if len(faults) >= MOST_FAULTS:
            faults.append((line, f"so many faults ({len(faults)}) that the file was read no further"))
            break
    if not sound and not faults:
        faults.append((0, "is empty: it holds no rows"))
    return sound, faults


def _records(path: Path, fields: Mapping[str, str]) -> Iterator[Record]:
    if path.suffix not in SUFFIXES:
        yield 0, None, ["is neither .jsonl nor .parquet"]
        return
    try:
        if path.suffix == ".parquet":
            from lume_tasks.data.parquet import parquet_records

            yield from parquet_records(path, fields)
        elif fault := file_fault(path):
            yield 0, None, [fault]
        else:
            yield from _jsonl_records(path)
    except OSError as error:
        yield 0, None, [f"cannot be read: {error.strerror or first_line(error)}"]


def file_fault(path: Path) -> str | None:
    """Say why a file must not even be opened: a pipe lets the reader wait for ever, a device never ends.

    Raises:
        OSError: the file is not there.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):  # a folder has an error of its own
        return "is no file but a pipe, socket or device"
    return too_much(found.st_size) if found.st_size > MOST_BYTES else None


def too_much(size: int) -> str:
    """The fault of a file with so many bytes of text."""
    return f"holds {size:,} bytes of text; at most {MOST_BYTES:,} are read"


def read_text(path: Path) -> str:
    """The text of a file in UTF-8.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8, or must not be opened (see `file_fault`).
    """
    if fault := file_fault(path):
        raise DataError(fault)
    return path.read_text(encoding="utf-8")


def _jsonl_records(path: Path) -> Iterator[Record]:
    filled = 0  # the last line that was not blank; blank ones are a fault only if something follows
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            if number == 1 and (message := next((m for b, m in _BEGINNINGS.items() if raw.startswith(b)), None)):
                yield 0, None, [message]
                return
            if number == 1 and raw.startswith(codecs.BOM_UTF8):
                yield 0, None, ["starts with a UTF-8 byte order mark: save it without one"]
                raw = raw[len(codecs.BOM_UTF8) :]
            if raw.strip():
                yield from ((line, None, ["is blank: remove the line"]) for line in range(filled + 1, number))
                filled = number
                yield number, *_parse(raw)


def _parse(raw: bytes) -> tuple[object, list[str]]:
    if b"\0" in raw:
        return None, ["contains a NUL byte"]
    twice: list[str] = []

    def to_dict(pairs: list[tuple[str, object]]) -> dict[str, object]:
        counts = Counter(key for key, _ in pairs)
        twice[:] = [key for key, count in counts.items() if count > 1]  # the last call is the outermost object's
        return dict(pairs)

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    try:
        text = raw.decode("utf-8").rstrip(" \t\r\n")
        obj = json.loads(text, object_pairs_hook=to_dict, parse_constant=refuse, parse_int=_integer)
    except UnicodeDecodeError as error:
        return None, [f"is not valid UTF-8 (byte {error.start + 1} of the line)"]
    except json.JSONDecodeError as error:
        return None, [f"is bad JSON: {error.msg} (column {error.pos + 1})"]
    except ValueError as error:
        return None, [f"is bad JSON: {error}"]
    except RecursionError:
        return None, ["is bad JSON: nested too deeply"]
    return obj, [f"key {quote(key)} stands twice in the object" for key in twice]


def _integer(digits: str) -> int:
    # Python's own limit can be switched off, and then a million digits take minutes.
    if len(digits) > 4300:
        raise ValueError("a number has too many digits")
    return int(digits)
