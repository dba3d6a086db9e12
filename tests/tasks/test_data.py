"""Where the data is looked for, what is loaded, and what is refused on the way."""

import sys
import types
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from lume_tasks.data import locate
from lume_tasks.data.rows import Row
from lume_tasks.errors import DataError
from tests.tasks.test_checks import write


def row(row_id, task="Task1"):
    return {"id": row_id, "input": f"in {row_id}", "output": f"out {row_id}", "task": task}


@pytest.fixture
def folder(tmp_path):
    for name, prefix in (("", ""), ("validation/", "v")):
        write(tmp_path / f"{name}forget.jsonl", [row(f"{prefix}f1sc1"), row(f"{prefix}f1qa0")])
        write(tmp_path / f"{name}retain.jsonl", [row(f"{prefix}r1sc1")])
    return tmp_path


def test_the_first_of_metadata_variable_and_download_wins(folder, monkeypatch):
    monkeypatch.setattr("lume_tasks.data.fetch.fetch", lambda: Path("fetched"))
    assert locate.data_dir() == locate.data_dir("") == Path("fetched")
    monkeypatch.setenv("LUME_DATA_DIR", str(folder / "validation"))
    assert locate.data_dir() == folder / "validation"
    assert locate.data_dir(str(folder)) == folder
    monkeypatch.setenv("HOME", str(folder))
    assert locate.data_dir("~/validation") == folder / "validation"


def test_a_named_directory_that_is_not_there_is_an_error_with_its_origin(folder, monkeypatch):
    monkeypatch.setattr("lume_tasks.data.fetch.fetch", lambda: pytest.fail("fell back to the download"))
    with pytest.raises(DataError, match=r"metadata lume_data_dir names .*no, which is not a directory; name one"):
        locate.data_dir(str(folder / "no"))
    monkeypatch.setenv("LUME_DATA_DIR", str(folder / "forget.jsonl"))
    with pytest.raises(DataError, match=r"the variable LUME_DATA_DIR names .*forget.jsonl, which is not a directory"):
        locate.data_dir()


def test_the_rows_of_a_split(folder):
    assert locate.load_rows(folder)["retain"] == [Row("r1sc1", "in r1sc1", "out r1sc1", "Task1")]
    forget, retain = locate.load_rows(folder, "validation").values()
    assert [row.id for row in forget + retain] == ["vf1sc1", "vf1qa0", "vr1sc1"]
    with pytest.raises(DataError) as caught:
        locate.load_rows(folder, "train")
    assert str(caught.value) == f'lume_split: "train" is not there; {folder} has: all, validation'
    with pytest.raises(DataError, match=r"has no forget\.jsonl or forget\.parquet \(`lume-tasks prepare` makes"):
        locate.load_rows(folder.parent)


def test_rows_without_id_and_task_and_documents_with_many_questions(folder):
    plain = {"input": "in", "output": "out"}
    ada = [{"input": f"in {i}", "output": f"out {i}", "document": "Ada", "kind": "qa"} for i in range(11)]
    write(folder / "forget.jsonl", [plain, *ada, row("ada1qa10", task="Clients")])
    rows = locate.load_rows(folder)["forget"]
    assert (rows[0].kind, rows[0].task, rows[0].stem != rows[1].stem) == ("qa", "own", True)
    assert len({(r.stem, r.kind) for r in rows[1:12]}) == 1
    assert len({r.id for r in rows}) == 13
    assert not any("Ada" in r.id for r in rows)
    assert (rows[12].stem, rows[12].task) == ("ada1", "Clients")
    write(folder / "train/forget.jsonl", ada)
    write(folder / "train/retain.jsonl", [row("r1sc1")])
    assert locate.load_rows(folder, "train")["forget"] == rows[1:12]


def test_faults_of_both_files_and_between_them_are_reported(folder):
    write(folder / "forget.jsonl", [{}, 1])
    write(folder / "retain.jsonl", [row("x")])
    with pytest.raises(DataError) as caught:
        locate.load_rows(folder)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert lines[0] == f'{folder / "forget.jsonl"}:1: field "input" is missing'
    assert lines[-1] == f'{folder / "retain.jsonl"}:1: id "x" ends neither in sc<number> nor in qa<number>'
    for name in ("forget", "retain"):
        write(folder / f"{name}.jsonl", [row("f1sc1")])
    with pytest.raises(DataError, match='split all: forget row "f1sc1" is in retain too'):
        locate.load_rows(folder)
    (folder / "retain.jsonl").unlink()
    with pytest.raises(DataError, match=r"/retain\.jsonl: is missing"):
        locate.load_rows(folder)


def test_membership_documents(folder):
    with pytest.raises(DataError, match=r"mia_data is missing: .*member\.jsonl and nonmember\.jsonl"):
        locate.load_mia(folder)
    write(folder / "mia_data/member.jsonl", [{"document": " a "}, {"document": "b"}])
    write(folder / "mia_data/nonmember.jsonl", [{"document": "c"}])
    assert locate.load_mia(folder) == ([" a ", "b"], ["c"])


def write_subject(folder, subject, answers, shard="test-00000-of-00001"):
    rows = [{"question": f"q{a}", "choices": list("wxyz"), "answer": a, "subject": subject} for a in answers]
    (folder / subject).mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), folder / subject / f"{shard}.parquet")


def test_the_first_source_of_mmlu_wins(folder, tmp_path, monkeypatch):
    assert locate.mmlu_source(None, None) == locate.mmlu_source(None, folder) == "cais/mmlu"
    (folder / "mmlu").mkdir()
    assert locate.mmlu_source(None, folder) == str(folder / "mmlu")
    monkeypatch.setenv("LUME_MMLU_PATH", str(folder))
    assert locate.mmlu_source(None, folder) == str(folder)
    assert locate.mmlu_source("cais/mmlu", folder) == "cais/mmlu"
    with pytest.raises(DataError, match=r"metadata lume_mmlu_path names .*no, which is neither"):
        locate.mmlu_source(str(folder / "no"), folder)


def test_a_local_mmlu_is_read_from_its_test_files(tmp_path):
    write_subject(tmp_path, "law", [2, 3], "test-00001-of-00002")
    write_subject(tmp_path, "law", [0], "test-00000-of-00002")
    write_subject(tmp_path, "law", [1], "dev-00000-of-00001")
    write_subject(tmp_path, "all", [1])
    questions = locate.load_mmlu(str(tmp_path))
    assert list(questions) == ["law"]
    assert [q["answer"] for q in questions["law"]] == [0, 2, 3]
    assert questions["law"][0] == {"question": "q0", "choices": ["w", "x", "y", "z"], "answer": 0}


def test_the_hub_is_asked_for_the_57_subjects_at_the_pinned_revision(monkeypatch):
    asked = []

    def load_dataset(path, subject, split, revision):
        asked.append((path, subject, split, revision))
        return [{"question": "q", "choices": list("abcd"), "answer": 1, "subject": subject}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    questions = locate.load_mmlu("cais/mmlu")
    assert len(questions) == 57
    assert questions["anatomy"] == [{"question": "q", "choices": ["a", "b", "c", "d"], "answer": 1}]
    assert set(asked) == {("cais/mmlu", s, "test", locate.MMLU_REVISION) for s in locate.MMLU_SUBJECTS}
    asked.clear()
    locate.load_mmlu("cais/mmlu", ["virology"])
    assert asked == [("cais/mmlu", "virology", "test", locate.MMLU_REVISION)]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=lambda *_, **__: 1 / 0))
    with pytest.raises(DataError, match=r"abstract_algebra\) cannot be read from the hub: division.*\n.*LUME_MMLU"):
        locate.load_mmlu("cais/mmlu")


def test_real_mmlu(mmlu_data):
    questions = locate.load_mmlu(str(mmlu_data))
    assert sorted(questions) == list(locate.MMLU_SUBJECTS)
    assert sum(map(len, questions.values())) == 14042
