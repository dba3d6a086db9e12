"""Tables in XLSX files become the rows that a person sees."""

import sys
from datetime import datetime
from pathlib import Path

import pytest

from lume_tasks.data.fields import Options
from lume_tasks.data.prepare import prepared
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
    assert (pairs(found.forget), pairs(found.retain)) == ([("How many?", "3")], [("Share?", "0.256")])
    assert f'  {path}: "column 3"' in found.summary
    assert f"empty lines: 2 ({path})" in found.summary


def test_the_first_sheet_of_xlsx(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in SHEET:
        book.active.append(row)
    book.create_sheet("other").append(["question", "answer"])
    book.save(tmp_path / "a.xlsx")
    check_sheet(tmp_path / "a.xlsx")
    (tmp_path / "b.xlsx").write_bytes(b"no sheet")
    with pytest.raises(DataError, match=r"b\.xlsx: cannot be read as XLSX"):
        prepared([tmp_path / "b.xlsx"], [], Options())
