"""Reading one data file: what a row is, and everything that can be wrong with it."""

import codecs
import json
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

TASKS = ("Task1", "Task2", "Task3")
FIELDS = ("id", "input", "output", "task")
SUFFIXES = (".jsonl", ".parquet")

_KIND = re.compile(r"(sc|qa)[0-9]\Z")
_SURROGATE = re.compile("[\ud800-\udfff]")
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
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")

# A small file can unfold into more than the memory holds, and a line of each fault too.
MOST_BYTES = 2**30  # of text in one file
MOST_ROWS = 10_000_000  # in one parquet file
MOST_FAULTS = 10_000  # listed of one file

# A fault is (line, message); line 0 stands for the file as a whole. Lines of JSONL and rows of parquet count from 1.
Fault = tuple[int, str]
Record = tuple[int, object, list[str]]  # line, what stands there, faults of its encoding or syntax


class DataError(ValueError):
    """Data that cannot be used. The message is meant for the user and lists everything wrong at once."""

    def __str__(self) -> str:
        """The message without control characters, which a name in it could carry to the terminal."""
        return visible(super().__str__())


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


def visible(text: str) -> str:
    r"""The text with control and invisible characters written out, such as ``\x1b`` or ``\u202e``; line feeds stay."""
    if text.isprintable():
        return text
    return "".join(
        char if char == "\n" or unicodedata.category(char) not in _HIDDEN else ascii(char)[1:-1] for char in text
    )


def quote(text: str) -> str:
    """Show ``text`` as JSON in ASCII, cut at 80 characters: printable whatever it holds, and found by a search."""
    return json.dumps(text if len(text) <= 80 else text[:77] + "...")


def place(shown: str, faults: list[Fault]) -> list[str]:
    """Turn faults of the file ``shown`` into lines such as ``forget.jsonl:17: field "output" is empty``, in order."""
    ordered = sorted(faults, key=lambda fault: fault[0])
    return [f"{shown}:{line}: {message}" if line else f"{shown}: {message}" for line, message in ordered]


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, printable, or its class where it has none."""
    return visible(str(error).strip().partition("\n")[0]) or type(error).__name__


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


def scan_rows(path: Path) -> tuple[dict[int, Row], list[Fault]]:
    """Return the sound rows of a file by line, and the faults of the others and of the file."""
    objects, faults = scan(path, FIELDS, row_problems)
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
    objects, faults = scan(path, ("document",), document_problems)
    documents = {line: obj["document"] for line, obj in objects.items()}
    first_line: dict[str, int] = {}
    for line, document in documents.items():
        if (first := first_line.setdefault(document.strip(), line)) != line:
            faults.append((line, f"document is that of line {first}"))
    return documents, faults


def text_key(row: Row) -> tuple[str, str]:
    """What makes two rows the same test: input and output without the white space around them."""
    return row.input.strip(), row.output.strip()


def scan(
    path: Path, fields: tuple[str, ...], problems_of: Callable[[object], list[str]]
) -> tuple[dict[int, dict[str, str]], list[Fault]]:
    """Sound objects of a file by line, and its faults, none of which is raised; ``problems_of`` finds an object's."""
    sound: dict[int, dict[str, str]] = {}
    faults: list[Fault] = []
    for line, obj, broken in _records(path, fields):
        # None with a fault of its own was never parsed; None without one is a JSON null.
        wrong = [] if obj is None and broken else problems_of(obj)
        faults += [(line, message) for message in broken + wrong]
        if not wrong and isinstance(obj, dict):
            sound[line] = obj
        if len(faults) >= MOST_FAULTS:
            faults.append((line, f"so many faults ({len(faults)}) that the file was read no further"))
            break
    return sound, faults or ([] if sound else [(0, "is empty: it holds no rows")])


def _records(path: Path, fields: tuple[str, ...]) -> Iterator[Record]:
    if path.suffix not in SUFFIXES:
        yield 0, None, ["is neither .jsonl nor .parquet"]
        return
    try:
        if path.suffix == ".parquet":
            yield from parquet_records(path, fields)
        elif fault := _file_fault(path):
            yield 0, None, [fault]
        else:
            yield from _jsonl_records(path)
    except OSError as error:
        yield 0, None, [f"cannot be read: {error.strerror or first_line(error)}"]


def _file_fault(path: Path) -> str | None:
    """Say why a file must not even be opened: a pipe lets the reader wait for ever, a device never ends."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):  # a folder has an error of its own
        return "is no file but a pipe, socket or device"
    return _too_much(found.st_size) if found.st_size > MOST_BYTES else None


def _too_much(size: int) -> str:
    return f"holds {size:,} bytes of text; at most {MOST_BYTES:,} are read"


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


def parquet_records(source: Path | BinaryIO, fields: tuple[str, ...]) -> Iterator[Record]:
    """Yield (row number from 1, dict of those ``fields`` that are columns, faults) for each row of a parquet file.

    A file with more than ``MOST_ROWS`` rows or ``MOST_BYTES`` of text is a fault, the latter when it is reached.

    Raises:
        OSError: the file cannot be read.
    """
    import pyarrow
    from pyarrow import parquet

    if isinstance(source, Path) and (fault := _file_fault(source)):
        yield 0, None, [fault]
        return
    try:
        with parquet.ParquetFile(source) as file:
            columns = [field for field in fields if field in file.schema_arrow.names]
            if fault := _parquet_fault(file, columns):
                yield 0, None, [fault]
                return
            leaves = [file.schema.column(number) for number in range(len(file.schema))]
        # Strings that repeat stay one string each until their row is reached.
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        with parquet.ParquetFile(source, read_dictionary=texts) as file:
            yield from _parquet_rows(file, columns)
    except (pyarrow.ArrowException, ValueError) as error:
        yield 0, None, [f"cannot be read as parquet: {first_line(error)}"]


def _parquet_fault(file: Any, columns: list[str]) -> str | None:
    """Look at what the file says of itself, before anything is unpacked."""
    for field in columns:
        if file.schema_arrow.names.count(field) > 1:
            return f"has the column {quote(field)} twice"
        kind = _inside_lists(file.schema_arrow.field(field).type)
        if kind.num_fields:
            return f"column {quote(field)} holds {quote(str(kind))}, neither text nor a list"
    if file.metadata.num_rows > MOST_ROWS:
        return f"has {file.metadata.num_rows:,} rows; at most {MOST_ROWS:,} are read"
    # Not column by column: where those figures are damaged, pyarrow 26 ends the whole process.
    size = sum(file.metadata.row_group(number).total_byte_size for number in range(file.metadata.num_row_groups))
    return _too_much(size) if size > MOST_BYTES else None


def _inside_lists(kind: Any) -> Any:
    from pyarrow import types

    while types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
    return kind


def _parquet_rows(file: Any, columns: list[str]) -> Iterator[Record]:
    number = size = 0
    for batch in file.iter_batches(columns=columns, batch_size=1024):
        size += sum(map(_text_bytes, batch.columns))
        if size > MOST_BYTES:
            yield 0, None, [f"{_too_much(size)}, counted up to row {number + batch.num_rows}"]
            return
        for index in range(batch.num_rows):
            number += 1
            yield number, *_parquet_row(batch, index)


def _text_bytes(column: Any) -> int:
    """What the strings of a column take when each row has a copy of its own."""
    from pyarrow import compute

    while hasattr(column, "flatten") and not hasattr(column, "dictionary"):
        column = column.flatten()
    if not hasattr(column, "dictionary"):
        return int(column.nbytes)
    lengths = compute.take(compute.binary_length(column.dictionary), column.indices)
    return int(compute.sum(lengths).as_py() or 0)


def _parquet_row(batch: Any, index: int) -> tuple[object, list[str]]:
    try:
        return {name: column[index].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)}, []
    except UnicodeDecodeError:
        return None, ["is not valid UTF-8"]
    except (ValueError, ArithmeticError, LookupError) as error:  # dates out of range, time zones that nobody knows
        return None, [f"holds a value that is not text and cannot be read ({type(error).__name__})"]
