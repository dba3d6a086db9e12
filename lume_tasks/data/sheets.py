"""Read the first sheet of an XLSX file, with numbers and dates as the sheet shows them."""

import re
from datetime import date, time
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from lume_tasks.data.fields import as_text
from lume_tasks.data.files import Fault
from lume_tasks.errors import first_line

_DATE_FORMAT = re.compile(r"(?:[ymdhs]+|am/pm|[ .,:/-])+", re.IGNORECASE)
_DEPENDS_ON_COUNTRY = "mm-dd-yy"  # the format of a plain date
_MINUTES = re.compile(r"(?<=h:)m+|m+(?=:s)")
_CODES = {"yyyy": "%Y", "yy": "%y", "mmmm": "%B", "mmm": "%b", "mm": "%m", "dd": "%d", "hh": "%H", "ss": "%S"}
_CODES |= {"ddd": "%a", "dddd": "%A", "am/pm": "%p", "M": "%M"}
_NUMBER = re.compile(r"[#0,?]+(?:\.([#0?]+))?%?")


def read_xlsx(path: Path) -> tuple[dict[int, dict[str, Any]], list[Fault], int]:
    """Return the rows of the first sheet by number, the faults, and the number of empty rows.

    The first row with a value is the header; a column without a name there is "column <n>".
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
    for number, cells in enumerate(sheet.iter_rows(), 1):
        texts = [shown(cell.value, cell.number_format or "General") for cell in cells]
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


def shown(value: Any, number_format: str) -> str:
    """Return the value of a cell as text, in the cell's number format where it is a usual one."""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, (date, time)):
        return _date(value, number_format.partition(";")[0])
    if isinstance(value, (int, float)):
        return _number(value, number_format.partition(";")[0])
    return as_text(value)


def _date(value: date | time, number_format: str) -> str:
    """Return a date in its format, or as 2024-05-31 where that is unusual or depends on the country."""
    number_format = re.sub(r"\[[^\]]*\]|[\"\\]", "", number_format).lower()
    if number_format == _DEPENDS_ON_COUNTRY or not _DATE_FORMAT.fullmatch(number_format):
        return as_text(value)
    number_format = _MINUTES.sub("M", number_format)
    half = "am/pm" in number_format

    def part(match: re.Match[str]) -> str:
        code = match[0]
        if len(code) == 1 and code in "dmhs":  # without a leading zero
            return str(int(value.strftime({"d": "%d", "m": "%m", "h": "%I" if half else "%H", "s": "%S"}[code])))
        return value.strftime("%I" if half and code == "hh" else _CODES.get(code, "%Y"))

    return re.sub(r"am/pm|y+|m+|d+|h+|s+|M", part, number_format)


def _number(value: float, number_format: str) -> str:
    """Return a number with the decimals, thousands, per cent and currency of its format."""
    number_format = re.sub(r"\[\$([^\]-]*)[^\]]*\]", r"\1", number_format)
    number_format = re.sub(r"\[[^\]]*\]|[_*].", "", number_format)
    number_format = re.sub(r"\"([^\"]*)\"|\\(.)", r"\1\2", number_format)
    found = _NUMBER.search(number_format)
    if found is None or re.search(r"General|E[+-]|/", number_format):
        return as_text(value) if float(value).is_integer() else f"{value:.10g}"
    decimals = found[1] or ""
    if found[0].endswith("%"):
        value *= 100
    text = f"{value:{',' if ',' in found[0] else ''}.{len(decimals)}f}"
    if "#" in decimals:
        text = text.rstrip("0").rstrip(".")
    whole, point, rest = text.partition(".")
    zeros = found[0].partition(".")[0].count("0")
    percent = "%" if found[0].endswith("%") else ""
    return number_format[: found.start()] + whole.zfill(zeros) + point + rest + percent + number_format[found.end() :]
