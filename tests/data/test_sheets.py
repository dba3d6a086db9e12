"""Tables in CSV and XLSX files become the rows that a person sees."""

import json
import sys
from datetime import datetime
from pathlib import Path
from zipfile import ZipFile

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
SHEET += [["Share?", 0.1 + 0.2, "x", None]]


def check_sheet(path: Path) -> None:
    found = prepared([path], [], Options(where="since=2024-05-03"))
    assert (pairs(found.forget), pairs(found.retain)) == ([("How many?", "3")], [("Share?", "0.3")])
    assert f'  {path}: "column 3"' in found.summary
    assert f"empty lines: 2 ({path})" in found.summary


def write_book(path: Path, sheets: dict[str, list[list]], merged: tuple[str, ...] = ()) -> None:
    book = pytest.importorskip("openpyxl").Workbook()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    for area in merged:
        sheet.merge_cells(area)
    book.save(path)


def test_all_sheets_of_xlsx_with_questions_are_read(tmp_path):
    path = tmp_path / "a.xlsx"
    write_book(path, {"Sheet": SHEET, "empty": [[]]})
    check_sheet(path)
    legend = {"Legend": [["since", "date of the contract"], ["x", "y"]], "title": [["Export"]]}
    write_book(
        path, {"2023": SHEET, "2024": [["question", "answer", "since"], ["When?", 1980, "2024-05-03"]], **legend}
    )
    found = prepared([path], [], Options(where="since=2024-05-03"))
    assert (pairs(found.forget), pairs(found.retain)) == (
        [("How many?", "3"), ("When?", "1980")],
        [("Share?", "0.3")],
    )
    assert f"read {path} (sheet 2024): 1 rows from question and answer" in found.summary
    left_out = f"{path} (sheet Legend), {path} (sheet title)"
    assert f"sheets left out, since they have no question and answer or text: 2 ({left_out})" in found.summary
    write_book(path, {"2023": SHEET, "2024": [["question", "answer"], ["When?", None]]})
    assert fault(path) == ' (sheet 2024):2: field "answer" is empty; correct the row or leave it out'


def test_all_rows_of_a_merged_range_have_its_value(tmp_path):
    path = tmp_path / "a.xlsx"
    rows = [["customer", None, "question", "answer"], [77, None, "Who?", "Ada"], [None, None, "When?", 1980]]
    write_book(path, {"Sheet": [*rows, [78, None, "Where?", "Bonn"]]}, ("A1:B1", "A2:B3"))
    found = prepared([path], [], Options(where="customer=77"))
    assert (pairs(found.forget), pairs(found.retain)) == ([("Who?", "Ada"), ("When?", "1980")], [("Where?", "Bonn")])


@pytest.mark.parametrize(
    "content",
    [b"no sheet", {"xl/workbook.xml": b"<a"}, {"xl/styles.xml": b"<styleSheet><fills><font/></fills></styleSheet>"}],
)
def test_damaged_xlsx_is_an_error(content, tmp_path):
    path = tmp_path / "a.xlsx"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write_book(path, {"Sheet": SHEET})
        with ZipFile(path) as book:
            parts = {name: book.read(name) for name in book.namelist()}
        with ZipFile(path, "w") as book:
            for name, part in (parts | content).items():
                book.writestr(name, part)
    assert fault(path).startswith(": cannot be read as XLSX: ")


def fault(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        prepared([path], [], Options())
    (line,) = str(caught.value).splitlines()[1:]
    return line.removeprefix(str(path))


@pytest.mark.parametrize(
    ("text", "answer", "note"),
    [
        ('question, answer\n"Where?", "Oak Street, Bonn"\n', "Oak Street, Bonn", None),
        ('"Customer\nID";question;answer\n77;Where?;Oak\n', "Oak", 'a.csv: "customer id"'),
        ("question;answer;Note (a, b, c)\nWhere?;Oak;x\n", "Oak", 'a.csv: "note (a, b, c)"'),
        ("sep=|\nquestion|answer\nWhere?|Oak; Elm, Ash\n", "Oak; Elm, Ash", None),
        ("question;answer;note;\nWhere?;Oak\n", "Oak", "read as empty: 1 (a.csv:2)"),
        ("question;answer\nWhere?;Oak;; ;\n", "Oak", None),
    ],
)
def test_csv_as_other_programs_write_it(text, answer, note, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    found = prepared([tmp_path / "a.csv"], [], Options())
    assert pairs(found.forget) == [("Where?", answer)]
    lines = [line.replace(f"{tmp_path}/", "") for line in found.summary]
    assert any(line.endswith(note) for line in lines) if note else len(lines) == 1


def test_a_name_that_is_there_twice_is_an_error(tmp_path):
    rows = [["question", "answer", " Answer"], ["Who?", "Ada", "Bob"]]
    table, book, lines = (tmp_path / name for name in ("a.csv", "a.xlsx", "a.jsonl"))
    table.write_text("\n" + "\n".join(map(",".join, rows)))
    expected = 'has two columns with the name "answer": rename or remove one'
    assert fault(table) == f":2: {expected}"
    write_book(book, {"Sheet": rows})
    assert fault(book) == f":1: {expected}"
    lines.write_text(json.dumps(dict(zip(*rows, strict=True))))
    assert fault(lines) == ':1: has two fields with the name "answer": rename or remove one'
    table.write_text("question,,answer,\nWho?,,Ada,\n")
    assert pairs(prepared([table], [], Options()).forget) == [("Who?", "Ada")]
