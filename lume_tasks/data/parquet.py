"""Reading parquet files that anybody may have written, a few kilobytes of which can unfold into terabytes."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow
from pyarrow import compute, parquet, types

from lume_tasks.data.files import MOST_BYTES, Record, file_fault, too_much
from lume_tasks.data.rows import TEXT
from lume_tasks.errors import first_line, quote

MOST_ROWS = 1_000_000  # of one file, and entries of all lists in a column


def parquet_records(source: Path | BinaryIO, fields: Mapping[str, str]) -> Iterator[Record]:
    """Yield (row number from 1, dict of those ``fields`` that are columns, faults) for each row of a parquet file.

    A column of another kind is a fault, and so are more than ``MOST_ROWS`` rows or list entries or ``MOST_BYTES`` of
    text, the latter two when they are reached.

    Args:
        source: the file.
        fields: column -> what it has to hold: ``"text"``, ``"whole numbers"``, or ``"lists of"`` one of them.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(source, Path) and (fault := file_fault(source)):
        yield 0, None, [fault]
        return
    try:
        with parquet.ParquetFile(source) as file:
            columns = [field for field in fields if field in file.schema_arrow.names]
            if fault := _parquet_fault(file, {field: fields[field] for field in columns}):
                yield 0, None, [fault]
                return
            leaves = [file.schema.column(number) for number in range(len(file.schema))]
        # Strings that repeat stay one string each until their row is reached.
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        with parquet.ParquetFile(source, read_dictionary=texts) as file:
            yield from _parquet_rows(file, columns)
    except (pyarrow.ArrowException, ValueError) as error:
        yield 0, None, [f"cannot be read as parquet: {first_line(error)}"]


def _parquet_fault(file: Any, columns: Mapping[str, str]) -> str | None:
    """Look at what the file says of itself, before anything is unpacked."""
    for field, wanted in columns.items():
        if file.schema_arrow.names.count(field) > 1:
            return f"has the column {quote(field)} twice"
        found = _kind(file.schema_arrow.field(field).type)
        if found not in (wanted, "null"):  # an empty column, or one that has only rows with a fault of their own
            return f"column {quote(field)} holds {quote(found)}, not {wanted}"
    if file.metadata.num_rows > MOST_ROWS:
        return _too_many(file.metadata.num_rows)
    # Nothing of single columns: where those figures are damaged, pyarrow 26 ends the whole process.
    size = sum(file.metadata.row_group(number).total_byte_size for number in range(file.metadata.num_row_groups))
    return too_much(size) if size > MOST_BYTES else None


def _too_many(count: int) -> str:
    return f"has {count:,} rows or list entries; at most {MOST_ROWS:,} are read"


def _kind(kind: Any) -> str:
    """What a column of this type holds, in the words of `parquet_records`, or the type where those have no word."""
    is_list = types.is_list(kind) or types.is_large_list(kind)
    inside = kind.value_type if is_list else kind
    inside = inside.value_type if types.is_dictionary(inside) else inside
    if types.is_string(inside) or types.is_large_string(inside) or types.is_string_view(inside):
        return f"lists of {TEXT}" if is_list else TEXT
    if types.is_integer(inside):
        return "lists of whole numbers" if is_list else "whole numbers"
    return str(kind)


def _parquet_rows(file: Any, columns: list[str]) -> Iterator[Record]:
    number = size = entries = 0
    for batch in file.iter_batches(columns=columns, batch_size=1024):
        flat = [_without_lists(column) for column in batch.columns]
        size += sum(map(_text_bytes, flat))
        entries += max(map(len, flat), default=0)
        if size > MOST_BYTES or entries > MOST_ROWS:
            fault = too_much(size) if size > MOST_BYTES else _too_many(entries)
            yield 0, None, [f"{fault}, counted up to row {number + batch.num_rows}"]
            return
        for index in range(batch.num_rows):
            number += 1
            yield number, *_parquet_row(batch, index)


def _without_lists(column: Any) -> Any:
    """The entries of all lists in a column, or the column itself."""
    while hasattr(column, "flatten") and not hasattr(column, "dictionary"):
        column = column.flatten()
    return column


def _text_bytes(column: Any) -> int:
    """What the strings of a column take when each row has a copy of its own."""
    if not hasattr(column, "dictionary"):
        return int(column.nbytes)
    lengths = compute.take(compute.binary_length(column.dictionary), column.indices)
    return int(compute.sum(lengths).as_py() or 0)


def _parquet_row(batch: Any, index: int) -> tuple[object, list[str]]:
    try:
        return {name: column[index].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)}, []
    except UnicodeDecodeError:
        return None, ["is not valid UTF-8"]
