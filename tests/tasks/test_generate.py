"""`lume-tasks prepare --retain generate`: retain rows that a model generates."""

import json
import shutil
from itertools import repeat

import pytest

from lume_tasks.cli import main
from lume_tasks.data.checks import check_dir
from lume_tasks.data.files import read_rows
from lume_tasks.models.generate import ngrams, usable
from tests.test_own_data import chat_tokenizer


def test_rows_that_repeat_the_forget_rows_or_each_other_are_left_out():
    known = ngrams("Ada lives in the house near the river")
    rows = [
        {"text": "They say she LIVES in the house: near"},  # five words in a row
        {"text": "She lives in the town"},
        {"text": "She lives in the town"},
        {"question": "Who?", "answer": ""},
        {"text": "word"},
        {"question": "Who?", "answer": "Eve"},
    ]
    assert usable(iter(rows), known, 2) == [rows[1], rows[5]]
    assert usable(repeat(rows[0]), known, 2) == []


@pytest.mark.parametrize(
    ("forget", "other", "copy"),
    [
        ("मीरा दिल्ली में रहती है", "राम दिल्ली में रहता है", "वह मीरा दिल्ली में रहती है।"),
        ("মীরা সেন ঢাকায় থাকেন এখন", "তিনি ঢাকায় থাকতেন", "মীরা সেন ঢাকায় থাকেন এখন।"),
        ("มีราเกิดที่เชียงใหม่และเป็นครู", "เขาเกิดที่เชียงราย", "คุณมีราเกิดที่เชียงใหม่และเป็นครูเลข"),
        ("她出生在北京后来搬到上海当老师", "他出生在北京", "人说她出生在北京后来搬到上海当老师了"),
    ],
)
def test_repeated_texts_are_found_in_any_script(forget, other, copy):
    found = usable(iter([{"text": copy}, {"text": other}]), ngrams(forget), 1)
    assert found == [{"text": other}]


@pytest.mark.parametrize("chat", [True, False])
def test_a_model_generates_the_retain_rows(chat, model_dir, tmp_path, capsys):
    model = shutil.copytree(model_dir, tmp_path / "model")
    if chat:
        chat_tokenizer().save_pretrained(model)
    (tmp_path / "person.csv").write_text("question,answer\nWhere does Ada live?,Near the river\n")
    (tmp_path / "names.txt").write_text("Eve\n\nBob\n")
    rows = []
    for name in ("one", "two"):
        words = ["prepare", "--forget", tmp_path / "person.csv", "--retain", "generate", "--model", model]
        words += ["--samples", 4, "--neighbours", tmp_path / "names.txt", "--output", tmp_path / name]
        assert main(list(map(str, words))) == 0, capsys.readouterr()
        assert check_dir(tmp_path / name) == []
        rows.append(read_rows(tmp_path / name / "retain.jsonl"))
    assert rows[0] == rows[1]
    assert len(rows[0]) == 4
    assert {row.kind for row in rows[0]} == {"qa" if chat else "sc"}
    generated = [json.loads(line) for line in (tmp_path / "one" / "generated.jsonl").read_text().splitlines()]
    starts = [row.get("question") or row["text"] for row in generated]
    assert all(name in start for name, start in zip(("Eve", "Bob"), starts, strict=False))


def test_names_of_neighbours_are_read_in_any_encoding(tmp_path, capsys):
    (tmp_path / "person.csv").write_text("question,answer\nWho?,Ada\n")
    words = ["prepare", "--forget", f"{tmp_path}/person.csv", "--retain", "generate", "--output", f"{tmp_path}/out"]
    words += ["--model", f"{tmp_path}/no", "--neighbours", f"{tmp_path}/names.txt"]
    assert main(words) == 2
    assert f"--neighbours {tmp_path}/names.txt: cannot be read" in capsys.readouterr().err
    (tmp_path / "names.txt").write_bytes("José Muñoz\nZoë Brontë\nRené Févr\n".encode("cp1252"))
    assert main([*words, "--encoding", "cp1252"]) == 2
    assert "cannot be loaded" in capsys.readouterr().err  # the names were read


def test_a_model_is_needed(tmp_path, capsys):
    (tmp_path / "person.csv").write_text("question,answer\nWho?,Ada\n")
    words = ["prepare", "--forget", f"{tmp_path}/person.csv", "--retain", "generate", "--output", f"{tmp_path}/out"]
    assert main(words) == 2
    assert "--retain generate: needs --model" in capsys.readouterr().err
    assert main([*words, "--model", f"{tmp_path}/no"]) == 2
    assert f"--model {tmp_path}/no: cannot be loaded" in capsys.readouterr().err
