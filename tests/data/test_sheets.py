"""Tables in XLSX files become the rows that a person sees."""

import sys
from datetime import datetime, time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from lume_tasks.data.fields import Options
from lume_tasks.data.prepare import prepared
from lume_tasks.data.sheets import shown
from lume_tasks.errors import DataError


def pairs(rows):
    return [(row.input, row.output) for row in rows]


def test_xlsx_without_openpyxl_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"a\.xlsx: XLSX files need openpyxl: `pip install openpyxl`, or save"):
        prepared([tmp_path / "a.xlsx"], [], Options())


SHEET = [[], ["Question", "Answer", None, "Since"], ["How many?", 3.0, None, datetime(2024, 5, 3)], [None] * 4]
SHEET += [["Share?", 0.256, "x", None]]


def check_sheet(path: Path) -> None:
    found = prepared([path], [], Options(where="since=2024-05-03"))
    assert (pairs(found.forget), pairs(found.retain)) == ([("How many?", "3")], [("Share?", "25.6%")])
    assert f'  {path}: "column 3"' in found.summary
    assert f"empty lines: 2 ({path})" in found.summary


def test_the_first_sheet_of_xlsx(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in SHEET:
        book.active.append(row)
    book.active["B5"].number_format = "0.0%"
    book.create_sheet("other").append(["question", "answer"])
    book.save(tmp_path / "a.xlsx")
    check_sheet(tmp_path / "a.xlsx")
    (tmp_path / "b.xlsx").write_bytes(b"no sheet")
    with pytest.raises(DataError, match=r"b\.xlsx: cannot be read as XLSX"):
        prepared([tmp_path / "b.xlsx"], [], Options())


def test_rows_of_a_sheet_as_openpyxl_gives_them(tmp_path, monkeypatch):
    rows = [
        [SimpleNamespace(value=value, number_format="General") for value in (*row, *[None] * 4)][:4] for row in SHEET
    ]
    rows[4][1].number_format = "0.0%"
    openpyxl, utils, exceptions = (ModuleType(f"openpyxl{name}") for name in ("", ".utils", ".utils.exceptions"))
    openpyxl.load_workbook = lambda path, data_only: SimpleNamespace(
        worksheets=[SimpleNamespace(iter_rows=lambda: rows)]
    )
    exceptions.InvalidFileException = ValueError
    for module in (openpyxl, utils, exceptions):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    check_sheet(tmp_path / "a.xlsx")


@pytest.mark.parametrize(
    ("value", "number_format", "expected"),
    [
        (3.0, "General", "3"),
        (0.1 + 0.2, "General", "0.3"),
        (12345.678, "#,##0.00", "12,345.68"),
        (7, "00000", "00007"),
        (1234.5, '#,##0.00\\ "€"', "1,234.50 €"),
        (True, "General", "TRUE"),
        (datetime(2024, 5, 31), "mm-dd-yy", "2024-05-31"),  # the format of a plain date, which depends on the country
        (datetime(2024, 5, 3, 14, 5), "dd.mm.yyyy hh:mm", "03.05.2024 14:05"),
        (datetime(2024, 5, 3, 14, 5), "d/m/yy h:mm AM/PM", "3/5/24 2:05 PM"),
        (time(9, 30), "h:mm:ss", "9:30:00"),
    ],
)
def test_numbers_and_dates_are_text_as_the_sheet_shows_them(value, number_format, expected):
    assert shown(value, number_format) == expected
