"""What ``lume-tasks`` prints, and its exit status."""

import pytest

from lume_tasks.cli import main
from lume_tasks.errors import DataError
from lume_tasks.paths import task_dir
from tests.conftest import make_rows, write_rows


@pytest.fixture
def folder(tmp_path):
    for name in ("", "train/"):
        for side in ("forget", "retain"):
            write_rows(tmp_path / f"{name}{side}.jsonl", make_rows(side))
    (tmp_path / "mia_data").mkdir()
    (tmp_path / "mia_data/member.jsonl").write_text('{"document": "a"}\n{"document": "b"}')
    (tmp_path / "mia_data/nonmember.jsonl").write_text('{"document": "c"}')
    return tmp_path


def test_path_prints_the_folder_of_the_tasks(capsys):
    assert main(["path"]) == 0
    assert capsys.readouterr().out == f"{task_dir()}\n"


def test_fetch_prints_the_folder_or_the_error_on_stderr(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("lume_tasks.data.fetch.fetch", lambda: tmp_path)
    assert main(["fetch"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}\n"

    def refuse():
        raise DataError("no network\nby hand: \x1b[31m")

    monkeypatch.setattr("lume_tasks.data.fetch.fetch", refuse)
    assert main(["fetch"]) == 2
    assert capsys.readouterr() == ("", "lume-tasks: no network\nby hand: \\x1b[31m\n")


def test_check_counts_the_rows_of_sound_data(capsys, folder):
    assert main(["check", str(folder)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == f"{folder}: no problems"
    assert "train Task2 1 forget sc 1 forget qa 1 retain sc 1 retain qa" in lines
    assert lines[-1] == "mia_data: 2 members, 1 non-members"


def test_check_prints_all_problems_and_their_number(capsys, folder):
    (folder / "retain.jsonl").write_text("{")
    (folder / "train/retain.jsonl").unlink()
    assert main(["check", str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("retain.jsonl:1: is bad JSON")
    assert lines[1:] == ["train/retain.jsonl: is missing (retain.parquet would do as well)", "2 problems"]
    assert main(["check", str(folder / "no")]) == 2
    assert capsys.readouterr().err == f"lume-tasks: {folder / 'no'} is not a directory\n"
