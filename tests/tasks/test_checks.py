"""A valid data directory passes; each fault is reported with file and line, together with all the others."""

import codecs
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from lume_tasks.data.checks import check_dir, check_sides, scan_mmlu
from lume_tasks.data.files import read_rows
from lume_tasks.data.rows import Row, row_problems
from lume_tasks.errors import DataError


def row(row_id, text="text", task="Task1", **changed):
    return {"id": row_id, "input": f"{text} of {row_id}", "output": f"end of {row_id}", "task": task} | changed


FORGET = [row('"f1"sc1'), row('"f1"qa0'), row("f2sc1", task="Task2"), row("f3qa4", task="Task3")]
RETAIN = [row("r1sc1"), row("r1qa0"), row("r2sc1", task="Task2")]


def write(path, objects):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (obj if isinstance(obj, bytes) else json.dumps(obj).encode() for obj in objects)
    path.write_bytes(b"\n".join(lines) + b"\n")


def write_parquet(path, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path)


def write_mmlu(folder, subject, **changed):
    columns = {"question": ["Which?"], "choices": [["a", "b", "c", "d"]], "answer": [3]}
    write_parquet(folder / subject / "test-00000-of-00001.parquet", columns | changed)


@pytest.fixture
def data(tmp_path):
    for prefix, part in (("", slice(4)), ("train/", slice(2)), ("validation/", slice(2, 4))):
        write(tmp_path / f"{prefix}forget.jsonl", FORGET[part])
        write(tmp_path / f"{prefix}retain.jsonl", RETAIN[part])
    write(tmp_path / "mia_data/member.jsonl", [{"id": 7, "document": "one"}, {"document": "two"}])
    write(tmp_path / "mia_data/nonmember.jsonl", [{"document": "three"}])
    write_mmlu(tmp_path / "mmlu", "anatomy")
    return tmp_path


ROW_FAULTS = [
    (b'{"id": "f9sc1"', "is bad JSON: Expecting ',' delimiter (column 15)"),
    (b'["f9sc1"]', "is not a JSON object with the fields id, input, output, task"),
    (b"{}", 'field "input" is missing'),
    (row("f9sc1", output=" \n"), 'field "output" is empty'),
    (row("f9sc1", input=5), 'field "input" is not a string'),
    (row("f9sc1", task="task1"), 'task "task1" is misspelt: use one of Task1, Task2, Task3'),
    (row("f9sc1", id=None, kind="Sc"), 'field "kind" is "Sc": use "sc" (a text to complete) or "qa"'),
    (row("f9sc1", output="\ud83d"), r"holds \ud83d, half of a character (an unpaired surrogate)"),
    (row("f9qa0", turns="Hi"), 'field "turns" is not a list of {"role": ..., "content": ...}'),
    (
        row("f9qa0", turns=[{"role": "narrator", "content": "x"}]),
        'field "turns", turn 1: "role" is none of system, user, assistant,',
    ),
    (row("f9qa0", turns=[["user", "x"], {"role": "user"}]), 'field "turns", turn 2: "content" is not a string'),
    (row("f9sc"), 'id "f9sc" ends neither in sc<number> nor in qa<number>'),
    (row("f9sc\u0663"), 'id "f9sc\\u0663" ends neither in sc<number> nor in qa<number>'),
    (row("f2sc1", text="other"), 'id "f2sc1" is already on line 3'),
    (FORGET[2] | {"id": "f9sc1", "output": "end of f2sc1 "}, "has the same input and output as line 3"),
    (b'{"id": "f9sc1", "input": "\xff"}', "is not valid UTF-8 (byte 27 of the line)"),
]


@pytest.mark.parametrize(("bad", "message"), ROW_FAULTS)
def test_bad_row_is_reported_with_file_and_line(data, bad, message):
    write(data / "forget.jsonl", [*FORGET, bad])
    assert any(problem.startswith(f"forget.jsonl:5: {message}") for problem in check_dir(data))
    with pytest.raises(DataError) as caught:
        read_rows(data / "forget.jsonl")
    assert f"{data / 'forget.jsonl'}:5: {message}" in str(caught.value)


def test_all_problems_of_a_row_are_listed_and_extra_fields_are_allowed():
    assert row_problems(row("x", task="T", output=1, more={"a": 1})) == [
        'field "output" is not a string',
        'id "x" ends neither in sc<number> nor in qa<number>',
    ]


SOUND = b"\n".join(json.dumps(row).encode() for row in FORGET)


@pytest.mark.parametrize(
    ("content", "problems"),
    [
        (SOUND.replace(b"\n", b"\r\n") + b"\r\n \n\n", []),
        (codecs.BOM_UTF8 + SOUND.replace(b"\n", b"\n\n"), []),
        (b"\n \n", ["forget.jsonl: is empty: it holds no rows"]),
        (SOUND.decode().encode("utf-16"), ["forget.jsonl: is not a text file: save it as UTF-8 and uncompressed"]),
    ],
)
def test_faults_of_a_file(data, content, problems):
    (data / "forget.jsonl").write_bytes(content)
    assert [p for p in check_dir(data) if p.startswith("forget.jsonl")] == problems


def test_long_lists_of_faults_are_cut(data):
    write(data / "forget.jsonl", [b"x"] * 1500)
    with pytest.raises(DataError) as caught:
        read_rows(data / "forget.jsonl")
    lines = str(caught.value).splitlines()
    assert (len(lines), lines[-1]) == (1001, "and 500 more")


def test_rows_keep_their_strings(tmp_path):
    obj = row('"f1"sc1', input=" a\u2028b ", output="c\r\n")
    write(tmp_path / "a.jsonl", [json.dumps(obj, ensure_ascii=False).encode()])
    (found,) = read_rows(tmp_path / "a.jsonl")
    assert found == Row('"f1"sc1', " a\u2028b ", "c\r\n", "Task1")
    assert (found.kind, found.stem) == ("sc", '"f1"')


COLUMNS = {field: [r[field] for r in FORGET] for field in FORGET[0]}


def test_parquet_gives_the_same_rows_and_faults(data):
    (data / "forget.jsonl").unlink()
    path = data / "forget.parquet"
    for change in (pa.array(COLUMNS["task"], pa.large_string()), pa.array(COLUMNS["task"]).dictionary_encode()):
        write_parquet(path, COLUMNS | {"task": change, "extra": [1] * 4})
        assert check_dir(data) == []
        assert read_rows(path) == [Row(**r) for r in FORGET]

    write_parquet(path, {"id": COLUMNS["id"], "input": ["i", None, "j", "k"], "task": [1, 2, 3, 4]})
    problems = check_dir(data)
    assert 'forget.parquet:2: field "input" is not a string' in problems
    assert 'forget.parquet:4: field "output" is missing' in problems
    assert 'forget.parquet:4: field "task" is not a string' in problems
    write_parquet(path, {name: pa.array([], pa.string()) for name in COLUMNS})
    assert "forget.parquet: is empty: it holds no rows" in check_dir(data)
    path.write_bytes(b"PAR1 cut off")
    assert any(problem.startswith("forget.parquet: cannot be read as parquet: ") for problem in check_dir(data))


def test_missing_doubled_and_unreadable_files(data):
    (data / "forget.jsonl").unlink()
    (data / "train/forget.jsonl").unlink()
    (data / "train/forget.jsonl").mkdir()
    (data / "train/retain.jsonl").unlink()
    write_parquet(data / "retain.parquet", COLUMNS)
    assert check_dir(data) == [
        "forget.jsonl: is missing (forget.parquet would do as well)",
        "retain.jsonl: retain.parquet is in the same folder: keep only one of them",
        "train/forget.jsonl: cannot be read: Is a directory",
        "train/retain.jsonl: is missing (retain.parquet would do as well)",
    ]
    with pytest.raises(DataError, match=r"rows\.csv: is neither \.jsonl nor \.parquet"):
        read_rows(data / "rows.csv")


def test_what_is_on_both_sides(data):
    forget = [Row("a1sc1", "in", "out", "Task1"), Row("b1qa0", "q", "a", "Task1"), Row("c1qa0", "q2", "a", "Task1")]
    retain = [Row("z1sc1", " in", "out\n", "Task1"), Row("b1qa0", "p", "a", "Task1"), Row("d1qa0", "q2", "b", "Task1")]
    assert check_sides("x", forget, retain) == [
        'x: forget row "a1sc1" is in retain too, as "z1sc1"',
        'x: id "b1qa0" is used in forget and in retain',
    ]
    write(data / "retain.jsonl", [*RETAIN, FORGET[3]])
    assert check_dir(data) == ['forget and retain: forget row "f3qa4" is in retain too, as "f3qa4"']


def test_split_rows_come_from_the_whole_file_and_from_one_split(data):
    changed = FORGET[2] | {"output": "other", "task": "Task3"}
    write(data / "train/forget.jsonl", [FORGET[0], row("new1sc1"), changed])
    assert check_dir(data) == [
        'train/forget.jsonl:2: id "new1sc1" is not among the valid rows of the whole forget file',
        'train/forget.jsonl:3: the row with id "f2sc1" differs from the row with this id in the whole forget file',
        'validation/forget.jsonl:1: id "f2sc1" is in train/ too',
    ]


def test_faulty_documents(data):
    documents = [{"document": "three "}, {"document": 3}, {"text": "x"}, {"document": ""}, {"document": "three"}, "x"]
    write(data / "mia_data/nonmember.jsonl", documents)
    write(data / "mia_data/member.jsonl", [{"document": "one"}, {"document": "three"}])
    shared = "document is both non-member and member (line 2 of the members)"
    assert check_dir(data) == [
        f"mia_data/nonmember.jsonl:1: {shared}",
        'mia_data/nonmember.jsonl:2: field "document" is not a string',
        'mia_data/nonmember.jsonl:3: field "document" is missing',
        'mia_data/nonmember.jsonl:4: field "document" is empty',
        "mia_data/nonmember.jsonl:5: has the same document as line 1",
        f"mia_data/nonmember.jsonl:5: {shared}",
        "mia_data/nonmember.jsonl:6: is not a JSON object with the fields document",
    ]
    (data / "mia_data/nonmember.jsonl").unlink()
    assert check_dir(data) == ["mia_data/nonmember.jsonl: is missing (nonmember.parquet would do as well)"]


def test_faulty_mmlu(data):
    for subject, changed in {
        "law": {"question": [None]},
        "nutrition": {"choices": [["a", "b"]]},
        "virology": {"answer": ["C"]},
        "auxiliary_train": {"answer": [9]},
    }.items():
        write_mmlu(data / "mmlu", subject, **changed)
    fault = "test-00000-of-00001.parquet:1: needs a question, four choices, and an answer from 0 to 3"
    assert check_dir(data) == [f"mmlu/{subject}/{fault}" for subject in ("law", "nutrition", "virology")]
    assert scan_mmlu(data)[1] == ["mmlu: holds no subject folder with a test-*.parquet"]


def test_published_data_has_no_problem(lume_data):
    assert check_dir(lume_data) == []
    rows = read_rows(lume_data / "forget.jsonl")
    assert (len(rows), sum(r.kind == "qa" for r in rows), len({r.stem for r in rows})) == (2732, 1866, 866)
