"""What ``lume-tasks`` prints, and its exit status."""

import json
import subprocess
import sys

import pytest

from lume_tasks.cli import main
from lume_tasks.errors import DataError
from lume_tasks.paths import task_dir


def write(path, objects):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(obj) for obj in objects))


def row(row_id, task="Task1"):
    return {"id": row_id, "input": f"in {row_id}", "output": f"out {row_id}", "task": task}


@pytest.fixture
def folder(tmp_path):
    for name in ("", "train/"):
        write(tmp_path / f"{name}forget.jsonl", [row("f1sc1"), row("f1qa0"), row("f2qa0", "Task2")])
        write(tmp_path / f"{name}retain.jsonl", [row("r1sc1")])
    write(tmp_path / "mia_data/member.jsonl", [{"document": "a"}, {"document": "b"}])
    write(tmp_path / "mia_data/nonmember.jsonl", [{"document": "c"}])
    return tmp_path


def test_path_prints_the_folder_of_the_tasks(capsys):
    assert main(["path"]) == 0
    assert capsys.readouterr().out == f"{task_dir()}\n"


def test_path_imports_nothing_heavy():
    code = (
        "import sys; from lume_tasks.cli import main; main(['path']); "
        "heavy = {'torch', 'datasets', 'pyarrow', 'lume_tasks.data'}; sys.exit(bool(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_fetch_prints_the_folder_or_the_error_on_stderr(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("lume_tasks.data.fetch.fetch", lambda: tmp_path)
    assert main(["fetch"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}\n"

    def refuse():
        raise DataError("no network\nby hand: \x1b[31m")

    monkeypatch.setattr("lume_tasks.data.fetch.fetch", refuse)
    assert main(["fetch"]) == 1
    assert capsys.readouterr() == ("", "lume-tasks: no network\nby hand: \\x1b[31m\n")


def test_check_counts_the_rows_of_sound_data(capsys, folder):
    assert main(["check", str(folder)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == [f"{folder}:", "no", "problems"]
    assert ["all", "Task1", "1", "1", "1", "0"] in lines
    assert ["train", "Task2", "0", "1", "0", "0"] in lines
    assert lines[-1] == ["mia_data:", "2", "members,", "1", "non-members"]


def test_check_prints_all_problems_and_their_number(capsys, folder):
    write(folder / "forget.jsonl", [row("f1sc1"), {**row("f1qa0"), "output": ""}, row("f2qa0", "Task9")])
    (folder / "train/retain.jsonl").unlink()
    assert main(["check", str(folder)]) == 1
    assert capsys.readouterr().out == (
        'forget.jsonl:2: field "output" is empty\n'
        'forget.jsonl:3: task "Task9" is unknown: use one of Task1, Task2, Task3\n'
        'train/forget.jsonl:2: id "f1qa0" is not among the valid rows of the whole forget file\n'
        'train/forget.jsonl:3: id "f2qa0" is not among the valid rows of the whole forget file\n'
        "train/retain.jsonl: is missing (retain.parquet would do as well)\n"
        "5 problems\n"
    )


def test_check_of_no_directory(capsys, tmp_path):
    assert main(["check", str(tmp_path / "no")]) == 1
    assert capsys.readouterr().err == f"lume-tasks: {tmp_path / 'no'} is not a directory\n"


def test_closed_pipe_is_no_error(folder):
    write(folder / "forget.jsonl", [{}] * 2000)
    write(folder / "retain.jsonl", [{"id": "x" * 80}] * 2000)
    command = f"{sys.executable} -c 'from lume_tasks.cli import main; main()' check {folder} | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.stdout.startswith("forget.jsonl:1: "), done.stderr) == (True, "")
