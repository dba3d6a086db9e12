"""Make objects of the rows of a table, and read the sheets of an XLSX file."""

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lume_tasks.data.fields import as_text, quoted, repeated
from lume_tasks.data.files import Fault
from lume_tasks.errors import first_line

EMPTY = "empty lines"
SHORT = "rows with fewer cells than the header line; the missing ones are read as empty"

# The rows by number, the faults, and what the summary counts: number (0 for the whole table) and description.
Table = tuple[dict[int, dict[str, Any]], list[Fault], list[Fault]]


def table(rows: Iterable[tuple[int, list[str]]], faults: list[Fault], delimiter: str = "") -> Table:
    """Make objects of the rows of a table; ``rows`` may add to ``faults`` while they are read.

    The first row with a value is the header; a column without a name is called "column <n>". Empty cells at the end
    of a row may be missing, and there may be more of them than columns.
    """
    header: list[str] = []
    objects: dict[int, dict[str, Any]] = {}
    notes: list[Fault] = []
    for line, cells in rows:
        if not any(cell.strip() for cell in cells):
            notes.append((0, EMPTY))
        elif not header:
            header = [cell.strip() for cell in cells]
            twice = repeated(header)
            if twice:
                return {}, [(line, f"has two columns with the name {quoted(twice)}: rename or remove one")], notes
        elif any(cell.strip() for cell in cells[len(header) :]):
            counts = f"has {len(cells)} cells, but the header line has {len(header)}"
            faults.append((line, f'{counts}: put quotation marks around a cell that contains "{delimiter}"'))
        else:
            notes += [(line, SHORT)] if len(cells) < len(header) else []
            named = enumerate(zip_longest(header, cells[: len(header)], fillvalue=""), 1)
            objects[line] = {name or f"column {i}": text for i, (name, text) in named if name or text}
    if header and not objects and not faults:
        names = quoted(", ".join(header))
        faults.append((0, f"is empty: a table needs rows after its header line, which is {names}"))
    return objects, faults, notes


def read_xlsx(path: Path) -> tuple[dict[str, Table], list[Fault]]:
    """Return the sheets that have a row with a value by title, and the faults of the file.

    Numbers and dates are read as the values of the cells (see `as_text`); their format, such as per cent, is ignored.
    Numbers have 15 digits at most, as in Excel, so that 0.1 + 0.2 is 0.3.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        from openpyxl import load_workbook
    except ImportError:
        return {}, [(0, "XLSX files need openpyxl: `pip install openpyxl`, or save the sheet as CSV")]
    try:
        sheets = load_workbook(path, data_only=True).worksheets
    except OSError:
        raise
    except Exception as error:  # a damaged file raises errors of zip, of XML, and many others
        return {}, [(0, f"cannot be read as XLSX: {first_line(error)}; save it as XLSX or CSV again")]
    tables = {sheet.title: table(_cells(sheet), []) for sheet in sheets}
    return {title: found for title, found in tables.items() if found[0] or found[1]}, []


def _cells(sheet: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of each row; below the header, all rows of a merged range have its value."""
    top = sheet.min_row
    for area in list(sheet.merged_cells.ranges):
        value = area.start_cell.value
        sheet.unmerge_cells(area.coord)
        for row in range(area.min_row + 1, area.max_row + 1) if area.min_row > top else ():
            sheet.cell(row, area.min_col, value)
    for number, values in enumerate(sheet.iter_rows(values_only=True), 1):
        yield number, [as_text(float(f"{value:.15g}") if isinstance(value, float) else value) for value in values]
