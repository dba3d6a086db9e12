"""Read the user's own files in the usual formats; each object keeps its line."""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lume_tasks.data.files import Fault, read_jsonl, read_lines, read_parquet, unreadable, without_surrogates
from lume_tasks.errors import quote

TABLES = (".csv", ".tsv")
TEXTS = (".txt", ".md")
SOURCE_SUFFIXES = (*TABLES, ".jsonl", ".json", ".parquet", *TEXTS)
DELIMITERS = ",;\t|"


def source_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files, with each folder replaced by the supported files directly inside, sorted by name."""
    files: list[Path] = []
    for path in paths:
        inside = sorted(path.iterdir()) if path.is_dir() else []
        supported = [file for file in inside if file.is_file() and file.suffix.lower() in SOURCE_SUFFIXES]
        files += supported or [path]  # read_source reports a folder without a supported file
    return files


def read_source(path: Path) -> tuple[dict[int, dict[str, Any]], list[Fault]]:
    """Read one file and return its objects by line, with lower-case field names, and the file's faults.

    The line of a CSV record is the one it starts on. Rows of parquet files and objects of ``.json`` files count from 1.
    A text file is one object with the field ``text``, on line 0.
    """
    suffix = path.suffix.lower()
    try:
        if path.is_dir():
            return {}, [(0, f"holds no supported file: use {', '.join(SOURCE_SUFFIXES)}")]
        if suffix not in SOURCE_SUFFIXES:
            return {}, [(0, f"is of an unknown type: use {', '.join(SOURCE_SUFFIXES)}")]
        if suffix in (".jsonl", ".parquet"):
            objects, faults = read_jsonl(path) if suffix == ".jsonl" else read_parquet(path)
        else:
            lines, faults = read_lines(path)
            text = "\n".join(lines.values())
            parse = _parse_csv if suffix in TABLES else _parse_text if suffix in TEXTS else _parse_json
            objects, faults = ({}, faults) if faults else parse(text)
    except OSError as error:
        return {}, [unreadable(error)]
    if not objects and not faults:
        faults = [(0, "is empty: it holds no rows")]
    faults += [(line, "is not a JSON object") for line, obj in objects.items() if not isinstance(obj, dict)]
    return {
        line: {str(name).strip().lower(): value for name, value in obj.items()}
        for line, obj in objects.items()
        if isinstance(obj, dict)
    }, faults


def _parse_text(text: str) -> tuple[dict[int, Any], list[Fault]]:
    return {0: {"text": text}}, []


def _parse_json(text: str) -> tuple[dict[int, Any], list[Fault]]:
    try:
        objects = json.loads(text)
    except json.JSONDecodeError as error:
        return {}, [(error.lineno, f"is bad JSON: {error.msg} (column {error.colno})")]
    if not isinstance(objects, list):
        return {}, [(0, "is not a list of JSON objects: write [...] around them")]
    return without_surrogates(dict(enumerate(objects, 1)), [])


def _parse_csv(text: str) -> tuple[dict[int, Any], list[Fault]]:
    """Parse a table with a header line; the delimiter is the one that occurs most often in the header line."""
    header_line = text.lstrip().partition("\n")[0]
    delimiter = max(DELIMITERS, key=header_line.count)
    # Strict: otherwise a quotation mark that is never closed makes one cell of the rest of the file.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    usual = csv.field_size_limit(len(text) + 1)  # 131,072 characters, else
    header: list[str] = []
    objects: dict[int, Any] = {}
    faults: list[Fault] = []
    line = 1
    try:
        for cells in reader:
            if not cells:
                pass  # an empty line
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
    return objects, faults
