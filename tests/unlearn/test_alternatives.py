"""Alternatives: what their file may hold, and the command that makes it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lume_tasks.data.rows import Row
from lume_tasks.errors import DataError
from lume_unlearn.config import ConfigError
from lume_unlearn.data.alternatives import AlternativesConfig, read_alternatives, write_alternatives
from lume_unlearn.evaluation import sampling

ROWS = [
    Row("a-qa0", "Which colour is it?", "Pale green", "Task1"),
    Row("b-sc1", "It was late when", "the bell rang.", "Task3"),
]
GOOD = [{"id": "b-sc1", "alternative": "rain fell."}, {"id": "a-qa0", "alternative": "Red"}]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def make(*lines: object) -> Path:
        path = tmp_path / "alternatives.jsonl"
        texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        path.write_bytes(b"\n".join(texts) + b"\n")
        return path

    return make


def test_alternatives_come_by_row_in_the_order_of_the_file(write: Callable[..., Path]) -> None:
    path = write(*GOOD, {"id": "b-sc1", "alternative": " the phone rang. ", "by": "hand"})
    found = read_alternatives(path, ROWS)
    assert list(found.items()) == [("b-sc1", ["rain fell.", " the phone rang. "]), ("a-qa0", ["Red"])]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b'{"id": "a-qa0"', "is bad JSON"),
        (b'{"id": "a-qa0", "alternative": "\xff"}', "is not valid UTF-8"),
        (["a-qa0", "Red"], "is a list, not an object"),
        ({"id": "a-qa0"}, 'field "alternative" is missing'),
        ({"id": "a-qa0", "alternative": 7}, 'field "alternative" is a number'),
        ({"id": 1, "alternative": "Red"}, 'field "id" is a number'),
        ({"id": "a-qa0", "alternative": " \n"}, 'field "alternative" is empty'),
        ({"id": "c-qa0", "alternative": "Red"}, 'id "c-qa0" is no forget row'),
        ({"id": "a-qa0", "alternative": " pale GREEN.\n"}, "alternative of a-qa0 is the row's own output"),
    ],
)
def test_a_faulty_line_is_named(write: Callable[..., Path], line: object, fault: str) -> None:
    path = write(*GOOD, line)
    with pytest.raises(DataError) as raised:
        read_alternatives(path, ROWS)
    assert len(str(raised.value).splitlines()) == 1
    assert str(raised.value).startswith(f"{path}:3: {fault}")


def test_faults_come_together_ten_at_most(write: Callable[..., Path]) -> None:
    path = write(*GOOD, *[{"id": f"x{i}", "alternative": "Red"} for i in range(12)], b"{", {"id": "a-qa0"})
    with pytest.raises(DataError) as raised:
        read_alternatives(path, ROWS)
    lines = str(raised.value).splitlines()
    assert [line.split(":")[1] for line in lines[:10]] == [str(number) for number in range(3, 13)]
    assert lines[10:] == ["and 4 more"]


def test_rows_without_any_are_named(write: Callable[..., Path]) -> None:
    rows = [*ROWS, *(Row(f"m{i}-qa0", f"question {i}", f"answer {i}", "Task2") for i in range(5))]
    path = write(*GOOD)
    with pytest.raises(DataError) as raised:
        read_alternatives(path, rows)
    whole = "has no usable alternative for 5 of 7 forget rows: m0-qa0, m1-qa0, m2-qa0 and 2 more"
    assert str(raised.value) == f"{path}: {whole}"


def test_a_row_whose_only_line_is_faulty_is_missing_too(write: Callable[..., Path]) -> None:
    with pytest.raises(DataError) as raised:
        read_alternatives(write(GOOD[0], {"id": "a-qa0", "alternative": "pale green"}), ROWS)
    first, second = str(raised.value).splitlines()
    assert "1 of 2 forget rows: a-qa0" in first
    assert ":2: alternative of a-qa0 is the row's own output" in second


def test_a_file_that_cannot_be_read_says_nothing_about_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl: cannot be read: No such file") as raised:
        read_alternatives(tmp_path / "absent.jsonl", ROWS)
    assert "a-qa0" not in str(raised.value)


@pytest.fixture
def config(model_dir: Path, data_dir: Path, tmp_path: Path) -> AlternativesConfig:
    options = {"samples": 2, "max_new_tokens": 6, "batch_size": 5}
    output = str(tmp_path / "new" / "alternatives.jsonl")
    return AlternativesConfig(model=str(model_dir), output=output, data=str(data_dir), **options)  # type: ignore[arg-type]


def test_what_is_written_can_be_read(config: AlternativesConfig, data_dir: Path) -> None:
    path = write_alternatives(config)
    rows = forget_rows(data_dir)
    found = read_alternatives(path, rows)
    assert list(found) == [row.id for row in rows]
    assert {len(texts) for texts in found.values()} == {2}
    assert [file.name for file in path.parent.iterdir()] == ["alternatives.jsonl"]  # nothing is left beside it


def forget_rows(data_dir: Path) -> list[Row]:
    return [Row(**json.loads(line)) for line in (data_dir / "forget.jsonl").read_text().splitlines()]


def test_forget_names_a_file_or_its_folder(config: AlternativesConfig, data_dir: Path, tmp_path: Path) -> None:
    by_data = write_alternatives(config).read_text()
    for number, where in enumerate((data_dir, data_dir / "forget.jsonl")):
        output = str(tmp_path / f"{number}.jsonl")
        named = replace(config, data=None, forget=str(where), output=output)
        assert write_alternatives(named).read_text() == by_data  # the same command gives the same samples


def test_an_existing_output_is_refused(config: AlternativesConfig) -> None:
    path = Path(config.output)
    path.parent.mkdir()
    path.write_text("mine")
    with pytest.raises(ConfigError, match="it exists"):
        write_alternatives(config)
    assert path.read_text() == "mine"


def test_samples_stay_in_a_part_file_if_a_row_got_none(
    config: AlternativesConfig, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = forget_rows(data_dir)

    def generate(model: Any, tokenizer: Any, batch: list[tuple[Row, list[int]]], options: Any) -> list[str]:
        return [row.output if row == rows[1] else "other" for row, _ in batch]

    monkeypatch.setattr(sampling, "_generate", generate)
    with pytest.raises(DataError, match=r"alternatives\.jsonl\.part: add to it") as raised:
        write_alternatives(config)
    assert f"\n  {rows[1].id}\n" in str(raised.value)
    assert not Path(config.output).exists()
    kept = [json.loads(line)["id"] for line in Path(f"{config.output}.part").read_text().splitlines()]
    assert kept == [row.id for row in rows if row != rows[1] for _ in range(2)]
    with pytest.raises(ConfigError, match=r"alternatives\.jsonl\.part is there, .*; add to it and rename it"):
        write_alternatives(config)
    assert [json.loads(line)["id"] for line in Path(f"{config.output}.part").read_text().splitlines()] == kept


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"samples": 0}, "--samples 0"),
        ({"temperature": 0.0}, r"--temperature 0\.0"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"max_new_tokens": -1}, "--max_new_tokens -1"),
        ({"batch_size": 0}, "--batch_size 0"),
        ({"seed": -1}, "--seed -1"),
        ({"split": "dev"}, "--split 'dev'"),
        ({"output": "a.json"}, r"--output a\.json"),
        ({"data": "d", "forget": "f"}, "--data and --forget"),
        ({"split": "test", "forget": "f"}, "--split test"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        AlternativesConfig(**({"model": "m", "output": "o.jsonl"} | options))  # type: ignore[arg-type]


@pytest.mark.parametrize(("option", "error"), [("data", ConfigError), ("forget", DataError)])
def test_rows_that_are_not_there_are_named(
    config: AlternativesConfig, option: str, error: type[Exception], tmp_path: Path
) -> None:
    options = {"data": None, option: str(tmp_path / "absent")}
    with pytest.raises(error, match=f"--{option} .*absent"):
        write_alternatives(replace(config, **options))  # type: ignore[arg-type]
