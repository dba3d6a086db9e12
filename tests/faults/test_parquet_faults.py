"""Parquet files: other columns and types, damaged bytes, and small files that unfold into more than fits."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from lume_tasks.data import files
from lume_tasks.data import parquet as ours
from lume_tasks.data.checks import check_dir
from lume_tasks.data.files import place, read_documents, read_rows, scan_rows
from lume_tasks.data.rows import Row
from lume_tasks.errors import DataError

pytestmark = [pytest.mark.faults, pytest.mark.timeout(60)]

COLUMNS: dict[str, Any] = {"id": ["a1sc1"], "input": ["in"], "output": ["out"], "task": ["Task1"]}


def write_parquet(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(COLUMNS | columns), path)
    return path


def not_utf8() -> Any:
    return pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xff")]
    )


KINDS: dict[str, tuple[Callable[[], Any], str | None]] = {
    "string": (lambda: ["o"], None),
    "large string": (lambda: pa.array(["o"], pa.large_string()), None),
    "string view": (lambda: pa.array(["o"], pa.string_view()), None),
    "dictionary": (lambda: pa.array(["o"]).dictionary_encode(), None),
    "null": (lambda: pa.nulls(1), ':1: field "output" is null'),
    "null string": (lambda: pa.array([None], pa.string()), ':1: field "output" is null'),
    "NUL": (lambda: ["a\0b"], ':1: field "output" contains a NUL character'),
    "not UTF-8": (not_utf8, ":1: is not valid UTF-8"),
    "not UTF-8, in a dictionary": (
        lambda: pa.DictionaryArray.from_arrays(pa.array([0], pa.int8()), not_utf8()),
        ":1: is not valid UTF-8",
    ),
    "binary": (lambda: [b"o"], 'column "output" holds "binary", not text'),
    "number": (lambda: [1], 'column "output" holds "whole numbers", not text'),
    "dictionary of numbers": (lambda: pa.array([5]).dictionary_encode(), 'holds "whole numbers", not text'),
    "decimal": (lambda: pa.array([1]).cast(pa.decimal256(30)), 'column "output" holds "decimal256(30, 0)", not text'),
    "true": (lambda: [True], 'column "output" holds "bool", not text'),
    "list": (lambda: [["o"]], 'column "output" holds "lists of text", not text'),
    "list of nothing": (lambda: [[None]], 'column "output" holds "list<element: null>", not text'),
    "list of lists": (lambda: [[["o"]]], 'column "output" holds "list<'),
    "map": (lambda: pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), 'column "output" holds "map<'),
    "struct": (lambda: [{"a": 1}], 'column "output" holds "struct<'),
    "date out of range": (lambda: pa.array([2**30], pa.date32()), 'column "output" holds "date32[day]", not text'),
    "time out of range": (lambda: pa.array([2**62], pa.timestamp("us")), 'column "output" holds "timestamp[us]"'),
    "duration out of range": (lambda: pa.array([2**62], pa.duration("s")), 'column "output" holds "duration['),
    "unknown time zone": (lambda: pa.array([1], pa.timestamp("us", "\x1bMars")), '"timestamp[us, tz=\\u001bMars]"'),
}


@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_any_type(tmp_path: Path, kind: str) -> None:
    make, problem = KINDS[kind]
    path = write_parquet(tmp_path / "forget.parquet", output=make())
    if problem is None:
        assert read_rows(path) == [Row("a1sc1", "in", "o", "Task1")]
    else:
        with pytest.raises(DataError) as caught:
            read_rows(path)
        assert problem in str(caught.value)
        assert str(caught.value).isprintable()


def test_a_column_twice_is_refused(tmp_path: Path) -> None:
    arrays = [pa.array(["a1sc1"]), pa.array(["i"]), pa.array(["o"]), pa.array(["Task1"]), pa.array(["other"])]
    table = pa.Table.from_arrays(arrays, names=[*COLUMNS, "output"])
    parquet.write_table(table, tmp_path / "forget.parquet")
    with pytest.raises(DataError, match='has the column "output" twice'):
        read_rows(tmp_path / "forget.parquet")


def test_no_rows_and_no_such_columns(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", **{name: pa.array([], pa.string()) for name in COLUMNS})
    with pytest.raises(DataError, match="is empty: it holds no rows"):
        read_rows(path)
    with pytest.raises(DataError, match=r'a\.parquet:1: field "document" is missing'):
        read_documents(write_parquet(tmp_path / "a.parquet"))


def repeated(text: str, count: int) -> Any:
    return pa.DictionaryArray.from_arrays(pa.nulls(count, pa.int8()).fill_null(0), pa.array([text]))


def test_a_small_file_with_too_many_rows(tmp_path: Path) -> None:
    count = ours.MOST_ROWS + 1
    path = write_parquet(tmp_path / "forget.parquet", **{name: repeated("x", count) for name in COLUMNS})
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"has 1,000,001 rows or list entries; at most 1,000,000 are read"):
        read_rows(path)


def test_a_small_file_with_too_much_text(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "forget.parquet", **{name: repeated("x" * 500_000, 1_000) for name in COLUMNS})
    assert path.stat().st_size < 1_000_000
    with pytest.raises(DataError, match=r"holds 2,000,000,000 bytes of text; at most 1,073,741,824 are read"):
        read_rows(path)


def test_plain_columns_with_too_much_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "MOST_BYTES", 100_000)
    table = pa.table(COLUMNS | {"output": ["x" * 10**6]})
    parquet.write_table(table, tmp_path / "forget.parquet", use_dictionary=False, compression="zstd")
    assert (tmp_path / "forget.parquet").stat().st_size < 10_000
    with pytest.raises(DataError, match=r"forget\.parquet: holds 1,0\d\d,\d{3} bytes of text"):
        read_rows(tmp_path / "forget.parquet")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (repeated("x" * 1_000_000, 2_000), "holds 2,000,000,0"),
        (pa.nulls(30_000_000), 'column "choices" holds "list<element: null>", not lists of text'),
        (repeated("", 30_000_000), "has 30,000,000 rows or list entries; at most 1,000,000 are read"),
    ],
    ids=["text", "nothing", "empty text"],
)
def test_choices_that_unfold(tmp_path: Path, values: Any, problem: str) -> None:
    choices = pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)
    table = pa.table({"question": ["q"], "choices": choices, "answer": [1]})
    (tmp_path / "mmlu/anatomy").mkdir(parents=True)
    parquet.write_table(table, tmp_path / "mmlu/anatomy/test-0.parquet")
    (found,) = [found for found in check_dir(tmp_path) if found.startswith("mmlu")]
    assert found.startswith(f"mmlu/anatomy/test-0.parquet: {problem}")


def test_a_million_equal_rows_have_few_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_FAULTS", 100)
    texts = {"id": "a1sc1", "input": "in", "output": "out", "task": "Task1"}
    columns = {name: repeated(text, 5_000) for name, text in texts.items()}
    for name in ("forget", "retain", "train/forget", "train/retain", "test/forget", "test/retain"):
        write_parquet(tmp_path / f"{name}.parquet", **columns)
    faults = scan_rows(tmp_path / "forget.parquet")[1]
    assert (len(faults), faults.more) == (100, 2 * 4_999 - 100)
    problems = check_dir(tmp_path)
    assert "forget.parquet: and 9,898 more faults" in problems  # an id and a text twice in each row but the first
    assert "forget and retain: and 4,900 more faults" in problems
    assert "test/retain.parquet: and 14,898 more faults" in problems  # and in another split
    assert len(problems) == 9 * 101


@pytest.mark.parametrize("compression", ["snappy", "zstd", "gzip", "none"])
def test_damaged_parquet(tmp_path: Path, compression: str) -> None:
    """Bytes changed, and files cut short: rows, or an error, but no traceback and no end of the process."""
    path = tmp_path / "forget.parquet"
    many = {"id": [f"a{i}sc1" for i in range(20)], "input": [f"in {i}" for i in range(20)]}
    table = pa.table(many | {"output": ["o"] * 20, "task": ["Task1"] * 20})
    parquet.write_table(table, path, compression=compression, use_dictionary=compression != "none")
    sound, chance = path.read_bytes(), random.Random(0)
    for number in range(400):
        damaged = bytearray(sound)
        for _ in range(chance.choice((1, 2, 5))):
            damaged[chance.randrange(len(damaged) // 2 * (number % 2), len(damaged))] = chance.choice((0, 255, 1, 128))
        path.write_bytes(damaged[: chance.randrange(len(damaged))] if number % 10 == 0 else damaged)
        found, faults = scan_rows(path)
        assert faults or len(found) == 20
        assert all(message.isprintable() for message in place("f", faults))
