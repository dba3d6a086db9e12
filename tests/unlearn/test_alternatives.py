"""The file of alternatives, and the command that writes it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lume_tasks.data.rows import Row
from lume_tasks.errors import DataError
from lume_unlearn.data.alternatives import read_alternatives
from lume_unlearn.errors import ConfigError
from lume_unlearn.evaluation import sampling
from lume_unlearn.evaluation.alternatives import write_alternatives
from lume_unlearn.evaluation.options import AlternativesConfig

ROWS = [
    Row("a-qa0", "Which colour is it?", "Pale green", "Task1"),
    Row("b-sc1", "It was late when", "the bell rang.", "Task3"),
]
GOOD = [{"id": "b-sc1", "alternative": "rain fell."}, {"id": "a-qa0", "alternative": "Red"}]


def read(folder: Path, lines: list[Any], rows: list[Row] = ROWS) -> dict[str, list[str]]:
    """Read a file of these lines."""
    path = folder / "alternatives.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return read_alternatives(path, rows)


def test_alternatives_are_grouped_by_row_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = read(tmp_path, [*GOOD, {"id": "b-sc1", "alternative": " the phone rang. ", "by": "hand"}])
    assert list(found.items()) == [("b-sc1", ["rain fell.", " the phone rang. "]), ("a-qa0", ["Red"])]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"id": "a-qa0"', "is bad JSON"),
        ({"id": "a-qa0"}, 'field "alternative" is missing'),
        ({"id": "a-qa0", "alternative": " \n"}, 'field "alternative" is empty'),
        ({"id": "c-qa0", "alternative": "Red"}, 'id "c-qa0" is no forget row'),
        ({"id": "a-qa0", "alternative": " pale GREEN.\n"}, "alternative of a-qa0 is the row's own output"),
    ],
)
def test_a_faulty_line_is_named(tmp_path: Path, line: object, fault: str) -> None:
    with pytest.raises(DataError) as raised:
        read(tmp_path, [*GOOD, line])
    assert str(raised.value).startswith(f"{tmp_path / 'alternatives.jsonl'}:3: {fault}")
    assert "\n" not in str(raised.value)


def test_rows_without_an_alternative_are_named(tmp_path: Path) -> None:
    rows = [*ROWS, *(Row(f"m{i}-qa0", f"question {i}", f"answer {i}", "Task2") for i in range(5))]
    with pytest.raises(DataError) as raised:
        read(tmp_path, [GOOD[0], {"id": "a-qa0", "alternative": "pale green"}], rows)
    first, second = str(raised.value).splitlines()
    assert first.endswith("has no usable alternative for 6 of 7 forget rows: a-qa0, m0-qa0, m1-qa0, and 3 more")
    assert second.endswith(":2: alternative of a-qa0 is the row's own output")


@pytest.fixture
def config(model_dir: Path, data_dir: Path, tmp_path: Path) -> AlternativesConfig:
    where = {"model": str(model_dir), "data": str(data_dir), "output": str(tmp_path / "new" / "alternatives.jsonl")}
    return AlternativesConfig(**where, samples=2, max_new_tokens=6, batch_size=5)


def test_what_is_written_can_be_read_and_repeated(config: AlternativesConfig, data_dir: Path, tmp_path: Path) -> None:
    path = write_alternatives(config)
    rows = forget_rows(data_dir)
    found = read_alternatives(path, rows)
    assert list(found) == [row.id for row in rows]
    assert {len(texts) for texts in found.values()} == {2}
    assert [file.name for file in path.parent.iterdir()] == ["alternatives.jsonl"]
    by_file = replace(config, data=None, forget=str(data_dir / "forget.jsonl"), output=str(tmp_path / "again.jsonl"))
    assert write_alternatives(by_file).read_text() == path.read_text()
    with pytest.raises(ConfigError, match="it exists"):
        write_alternatives(config)


def forget_rows(data_dir: Path) -> list[Row]:
    return [Row(**json.loads(line)) for line in (data_dir / "forget.jsonl").read_text().splitlines()]


def test_samples_stay_in_a_part_file_if_a_row_has_none(
    config: AlternativesConfig, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = forget_rows(data_dir)

    def generate(model: Any, tokenizer: Any, batch: list[tuple[Row, list[int]]], options: Any) -> list[str]:
        return [row.output if row == rows[1] else "other" for row, _ in batch]

    monkeypatch.setattr(sampling, "_generate", generate)
    with pytest.raises(DataError, match=r"alternatives\.jsonl\.part: add to it") as raised:
        write_alternatives(config)
    assert f"\n  {rows[1].id}\n" in str(raised.value)
    kept = [json.loads(line)["id"] for line in Path(f"{config.output}.part").read_text().splitlines()]
    assert kept == [row.id for row in rows if row != rows[1] for _ in range(2)]
    assert not Path(config.output).exists()
    with pytest.raises(ConfigError, match=r"alternatives\.jsonl\.part is there, .*; add to it and rename it"):
        write_alternatives(config)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": 0.0}, r"--temperature 0\.0: must be a number above 0"),
        ({"seed": -1}, "--seed -1"),
        ({"output": "a.json"}, r"--output a\.json"),
        ({"split": "test", "forget": "f"}, "--forget: names the rows"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        AlternativesConfig(**({"model": "m", "output": "o.jsonl"} | options))
