"""Read the user's own files in the usual formats; each object keeps its line."""

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lume_tasks.data.encodings import decoded
from lume_tasks.data.fields import Options, lower_names, names_of
from lume_tasks.data.files import Fault, parse_jsonl, read_parquet, unreadable, without_surrogates
from lume_tasks.data.sheets import read_xlsx
from lume_tasks.errors import quote

TABLES = (".csv", ".tsv")
TEXTS = (".txt", ".md")
SOURCE_SUFFIXES = (*TABLES, ".jsonl", ".json", ".parquet", ".xlsx", *TEXTS)
DELIMITERS = ",;\t|"


@dataclass
class Source:
    """The content of one file: objects by line, faults, the number of empty lines, and the encoding ("" for UTF-8)."""

    objects: dict[int, dict[str, Any]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    empty: int = 0
    encoding: str = ""


def source_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files, with each folder replaced by the supported files directly inside, sorted by name."""
    files: list[Path] = []
    for path in paths:
        inside = sorted(path.iterdir()) if path.is_dir() else []
        supported = [file for file in inside if file.is_file() and file.suffix.lower() in SOURCE_SUFFIXES]
        files += supported or [path]  # read_source reports a folder without a supported file
    return files


def read_source(path: Path, options: Options) -> Source:
    """Read one file and return its objects by line, with lower-case field names.

    The line of a CSV record is the one it starts on. Rows of parquet and XLSX files and objects of ``.json`` files
    count from 1. A text file is one object with the field ``text``, on line 0.
    """
    suffix = path.suffix.lower()
    try:
        if path.is_dir():
            return Source(faults=[(0, f"holds no supported file: use {', '.join(SOURCE_SUFFIXES)}")])
        if suffix not in SOURCE_SUFFIXES:
            return Source(faults=[(0, f"is of an unknown type: use {', '.join(SOURCE_SUFFIXES)}")])
        if suffix == ".parquet":
            source = Source(*read_parquet(path))
        elif suffix == ".xlsx":
            source = Source(*read_xlsx(path))
        else:
            source = _parse(path.read_bytes(), suffix, options)
    except OSError as error:
        return Source(faults=[unreadable(error)])
    if not source.objects and not source.faults:
        source.faults = [(0, "is empty: it holds no rows")]
    objects = {line: lower_names(obj) for line, obj in source.objects.items() if isinstance(obj, dict)}
    source.faults += [(line, "is not a JSON object") for line in source.objects.keys() - objects.keys()]
    source.objects = objects
    return source


def _parse(content: bytes, suffix: str, options: Options) -> Source:
    text, encoding, faults = decoded(content, options.encoding)
    if faults:
        return Source(faults=faults)
    if suffix == ".jsonl":
        lines = dict(enumerate(text.split("\n"), 1))
        blank = sum(not line.strip() for line in lines.values()) - (not text.rpartition("\n")[2].strip())
        return Source(*parse_jsonl(lines, []), blank, encoding)
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


def _parse_csv(text: str) -> tuple[dict[int, Any], list[Fault], int]:
    """Parse a table with a header line; the delimiter is the one that occurs most often in the header line.

    Returns:
        The rows by line, the faults, and the number of empty rows.
    """
    header_line = text.lstrip().partition("\n")[0]
    delimiter = max(DELIMITERS, key=header_line.count)
    # Strict: otherwise an unclosed quotation mark turns the rest of the file into one cell.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    usual = csv.field_size_limit(len(text) + 1)  # its default is 131,072 characters
    header: list[str] = []
    objects: dict[int, Any] = {}
    faults: list[Fault] = []
    line, empty = 1, 0
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                empty += 1
            elif not header:
                header = cells
            elif len(cells) == len(header):
                objects[line] = dict(zip(header, cells, strict=True))
            else:
                counts = f"has {len(cells)} cells, but the header line has {len(header)}"
                faults.append((line, f'{counts}: put quotation marks around a cell that contains "{delimiter}"'))
            line = reader.line_num + 1
    except csv.Error as error:
        faults.append((line, f"is bad CSV: {error}: check the quotation marks, and write one inside a cell twice"))
    finally:
        csv.field_size_limit(usual)
    if header and not objects and not faults:
        faults.append((0, f"is empty: a table needs rows after its header line, which is {quote(header_line)}"))
    return objects, faults, empty
