"""Read the user's own files in the usual formats; each object keeps its line."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from lume_tasks.data.encodings import decoded
from lume_tasks.data.fields import Options, lower_names, names_of, quoted, repeated
from lume_tasks.data.files import Fault, parse_jsonl, read_parquet, unreadable, without_surrogates
from lume_tasks.data.sheets import EMPTY, Table, read_xlsx, table

TABLES = (".csv", ".tsv")
TEXTS = (".txt", ".md")
SOURCE_SUFFIXES = (*TABLES, ".jsonl", ".json", ".parquet", ".xlsx", *TEXTS)
DELIMITERS = ",;\t|"
_TRIED = 200  # records from which the delimiter is found


@dataclass
class Source:
    """The content of one file: objects by line, faults, what the summary counts by line, encoding ("" for UTF-8)."""

    objects: dict[int, dict[str, Any]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    notes: list[Fault] = field(default_factory=list)
    encoding: str = ""


def source_files(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Return the files, with each folder replaced by the supported files directly inside, and what else is inside."""
    files: list[Path] = []
    others: list[Path] = []
    for path in paths:
        inside = sorted(path.iterdir()) if path.is_dir() else []
        supported = [file for file in inside if file.is_file() and file.suffix.lower() in SOURCE_SUFFIXES]
        files += supported or [path]  # read_source reports a folder without a supported file
        others += [file for file in inside if file not in supported]
    return files, others


def read_source(path: Path, options: Options) -> dict[str, Source]:
    """Read one file and return its objects by line, with lower-case field names.

    The line of a CSV record is the one it starts on. Rows of parquet and XLSX files and objects of ``.json`` files
    count from 1. A text file is one object with the field ``text``, on line 0.

    Returns:
        The content by its name in messages: the path, followed by the name of the sheet if there are several.
    """
    suffix = path.suffix.lower()
    try:
        if path.is_dir():
            return {str(path): Source(faults=[(0, f"holds no supported file: use {', '.join(SOURCE_SUFFIXES)}")])}
        if suffix not in SOURCE_SUFFIXES:
            return {str(path): Source(faults=[(0, f"is of an unknown type: use {', '.join(SOURCE_SUFFIXES)}")])}
        if suffix == ".xlsx":
            return _sheets(path, options)
        source = Source(*read_parquet(path)) if suffix == ".parquet" else _parse(path.read_bytes(), suffix, options)
    except OSError as error:
        return {str(path): Source(faults=[unreadable(error)])}
    return {str(path): _checked(source)}


def _checked(source: Source) -> Source:
    """Add the faults of the objects and give their fields lower-case names."""
    if not source.objects and not source.faults:
        source.faults = [(0, "is empty: it holds no rows")]
    objects: dict[int, dict[str, Any]] = {}
    for line, obj in source.objects.items():
        twice = repeated(obj) if isinstance(obj, dict) else None
        if not isinstance(obj, dict):
            source.faults.append((line, "is not a JSON object"))
        elif twice:
            source.faults.append((line, f"has two fields with the name {quoted(twice)}: rename or remove one"))
        else:
            objects[line] = {name: _decoded(value) for name, value in lower_names(obj).items()}
    source.objects = objects
    return source


def _decoded(value: Any) -> Any:
    """Return UTF-8 as text: parquet has columns of bytes."""
    with suppress(UnicodeDecodeError):
        return value.decode() if isinstance(value, bytes) else value
    return value


def _sheets(path: Path, options: Options) -> dict[str, Source]:
    """Read the sheets of a workbook; beside one with usual fields, leave out those without, such as a legend."""
    tables, faults = read_xlsx(path)
    if len(tables) < 2:
        return {str(path): _checked(Source(*next(iter(tables.values()), ({}, faults))))}
    sources = {f"{path} (sheet {title})": _checked(Source(*found)) for title, found in tables.items()}
    usual = {name for name, found in sources.items() if any(names_of(obj, options) for obj in found.objects.values())}
    for name, source in sources.items() if usual else ():
        if name not in usual and not any(line for line, _ in source.faults):
            sources[name] = Source(notes=[(0, "sheets left out, since they have no question and answer or text")])
    return sources


def _parse(content: bytes, suffix: str, options: Options) -> Source:
    text, encoding, faults = decoded(content, options.encoding)
    if faults:
        return Source(faults=faults)
    if suffix == ".jsonl":
        lines = dict(enumerate(text.split("\n"), 1))
        blank = sum(not line.strip() for line in lines.values()) - (not text.rpartition("\n")[2].strip())
        return Source(*parse_jsonl(lines, []), [(0, EMPTY)] * blank, encoding)
    if suffix == ".json":
        return Source(*_parse_json(text, options), encoding=encoding)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if suffix in TABLES:
        return Source(*_parse_csv(text), encoding)
    return Source({0: {"text": text}} if text.strip() else {}, encoding=encoding)


def _parse_json(text: str, options: Options) -> tuple[dict[int, Any], list[Fault]]:
    """Parse a list of objects, one object that holds such a list, a single object, or a single chat."""
    try:
        objects = json.loads(text)
    except json.JSONDecodeError as error:
        return {}, [(error.lineno, f"is bad JSON: {error.msg} (column {error.colno})")]
    if isinstance(objects, dict) and objects:
        lists = [v for v in objects.values() if isinstance(v, list) and any(isinstance(one, dict) for one in v)]
        objects = lists[0] if len(lists) == 1 and names_of(lower_names(objects), options) is None else [objects]
    if isinstance(objects, list) and objects and all(map(_is_turn, objects)):
        objects = [{"messages": objects}]
    if not isinstance(objects, list):
        return {}, [(0, "is neither a list of JSON objects nor one with fields: write [...] around the objects")]
    return without_surrogates(dict(enumerate(objects, 1)), [])


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys())


def _parse_csv(text: str) -> Table:
    """Parse a table with a header line; a first line such as ``sep=;``, which Excel knows, names the delimiter."""
    named = re.match(rf'"?sep=([{DELIMITERS}])"?\n', text, re.IGNORECASE)
    faults: list[Fault] = []
    usual = csv.field_size_limit(len(text) + 1)  # its default is 131,072 characters
    try:
        delimiter = named[1] if named else max(DELIMITERS, key=lambda one: _fit(text, one))
        return table(islice(_records(text, delimiter, faults), 1 if named else 0, None), faults, delimiter)
    finally:
        csv.field_size_limit(usual)


def _fit(text: str, delimiter: str) -> tuple[int, int]:
    """Return how many of the first records have as many cells as the header, at least two, and this number of cells."""
    widths = [len(cells) for _, cells in islice(_records(text, delimiter, []), _TRIED) if any(cells)] or [0]
    return widths.count(widths[0]) if widths[0] > 1 else 0, widths[0]


def _records(text: str, delimiter: str, faults: list[Fault]) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each record and the line it starts on; bad CSV ends them and is added to ``faults``."""
    # Strict: otherwise an unclosed quotation mark turns the rest of the file into one cell.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    line = 1
    try:
        for cells in reader:
            yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        faults.append((line, f"is bad CSV: {error}: check the quotation marks, and write one inside a cell twice"))
