"""Read the first sheet of an XLSX file."""

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from lume_tasks.data.fields import as_text
from lume_tasks.data.files import Fault
from lume_tasks.errors import first_line


def read_xlsx(path: Path) -> tuple[dict[int, dict[str, Any]], list[Fault], int]:
    """Return the rows of the first sheet by number, the faults, and the number of empty rows.

    The first row with a value is the header; a column without a name is called "column <n>". Numbers and dates are read
    as the values of the cells (see `as_text`); their format, such as per cent, is ignored.
    """
    try:
        from openpyxl import load_workbook
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError:
        return {}, [(0, "XLSX files need openpyxl: `pip install openpyxl`, or save the sheet as CSV")], 0
    try:
        sheet = load_workbook(path, data_only=True).worksheets[0]
    except (BadZipFile, InvalidFileException, KeyError, IndexError, ValueError) as error:
        return {}, [(0, f"cannot be read as XLSX: {first_line(error)}; save it as XLSX or CSV again")], 0
    objects: dict[int, dict[str, Any]] = {}
    header: list[str] = []
    empty = 0
    for number, values in enumerate(sheet.iter_rows(values_only=True), 1):
        texts = [as_text(value) for value in values]
        if not any(text.strip() for text in texts):
            empty += 1
        elif not header:
            header = texts
        else:
            named = enumerate(zip(header, texts, strict=True), 1)
            objects[number] = {name.strip() or f"column {i}": text for i, (name, text) in named if name or text}
    if header and not objects:
        return {}, [(0, "is empty: the first sheet needs rows after its header row")], empty
    return objects, [], empty
