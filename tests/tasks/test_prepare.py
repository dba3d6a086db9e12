"""Rows made of the user's own files: formats, cuts, ids, and every fault with its file and line."""

import codecs
import csv
import json
from unicodedata import normalize

import pyarrow as pa
import pytest
from pyarrow import parquet

from lume_tasks.cli import main
from lume_tasks.data.fields import Options
from lume_tasks.data.files import read_rows
from lume_tasks.data.items import Item
from lume_tasks.data.names import names_in, shared_names
from lume_tasks.data.prepare import prepare
from lume_tasks.data.rows import Row
from lume_tasks.data.texts import cut
from lume_tasks.errors import DataError, counted

QUESTION = {"question": "Where does Ada live?", "answer": "In Bath, by the river"}
LINE = json.dumps(QUESTION)


def jsonl(*objects):
    return "".join(json.dumps(obj) + "\n" for obj in objects)


@pytest.fixture
def make(tmp_path):
    """Write the files into a folder with a space in its name, prepare them, and return the rows by side."""
    folder = tmp_path / "my data"
    folder.mkdir()

    def make(forget, retain=None, options=None):
        for name, content in (forget | (retain or {})).items():
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        paths = [[folder / name for name in files] for files in (forget, retain or {})]
        make.summary = prepare(*paths, tmp_path / "out", options or Options()).replace(f"{folder}/", "")
        return {path.stem: read_rows(path) for path in (tmp_path / "out").iterdir()}

    def faults(*args, **options):
        with pytest.raises(DataError) as caught:
            make(*args, **options)
        assert not (tmp_path / "out").exists()
        heading, *lines = str(caught.value).replace(f"{folder}/", "").splitlines()
        assert heading == f"nothing is written, {counted(len(lines), 'problem')}:"
        return lines

    make.faults = faults
    return make


def table(delimiter):
    return f'question{delimiter}answer\n"Where does Ada live?"{delimiter}"In Bath, by the river"\n'


CHAT = [{"role": "user", "content": QUESTION["question"]}, {"role": "assistant", "content": QUESTION["answer"]}]
GPT = [{"from": "human", "value": QUESTION["question"]}, {"from": "gpt", "value": QUESTION["answer"]}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((f"a{i}.csv", table(delimiter)) for i, delimiter in enumerate(",;\t|")),
        ("a.TSV", table("\t").replace("\n", "\r\n")),
        ("bom.csv", codecs.BOM_UTF8 + table(";").encode()),
        ("a.jsonl", codecs.BOM_UTF8 + LINE.encode()),
        ("a.json", f"[\n{LINE}]"),
        ("capitals.jsonl", LINE.replace("question", " Question").replace("answer", "ANSWER")),
        ("input.jsonl", LINE.replace("question", "input").replace("answer", "output")),
        ("completion.jsonl", LINE.replace("question", "prompt").replace("answer", "completion")),
        ("response.jsonl", LINE.replace("question", "prompt").replace("answer", "response")),
        ("messages.jsonl", jsonl({"messages": CHAT})),
        ("conversations.json", json.dumps([{"conversations": GPT}])),
    ],
)
def test_each_format_gives_the_same_question(make, name, content):
    (row,) = make({name: content})["forget"]
    assert row == Row("forget1qa0", QUESTION["question"], QUESTION["answer"], "own")
    assert "no retain rows, which `lume-unlearn run` and `audit` need" in make.summary


def test_parquet_and_chosen_fields(make, tmp_path):
    columns = {"Frage": ["Wo?"], "Antwort": ["Hier."], "Person": ["Élodie K."]}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    options = Options("frage", "antwort", "person", label="clients")
    rows = make({"a.parquet": (tmp_path / "a.parquet").read_bytes()}, {"r.jsonl": LINE}, options)
    assert rows["forget"] == [Row("forget1qa0", "Wo?", "Hier.", "clients")]
    assert rows["retain"][0].id == "retain1qa0"


def test_a_folder_of_texts_gives_a_document_for_each_file(make, tmp_path):
    folder = tmp_path / "texts of ada"
    folder.mkdir()
    (folder / "b.md").write_text("Two words")
    (folder / "a.txt").write_text("Ada was born in Bath. She left.\n")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    summary = prepare([folder], [], tmp_path / "out", Options())
    rows = read_rows(tmp_path / "out/forget.jsonl")
    assert rows[0] == Row("forget1sc0", "Ada was born in Bath.", "She left.", "own")
    assert rows[1:] == [Row("forget2sc0", "Two", "words", "own")]
    assert "texts cut into input and output: 1 at a sentence end, 1 between words" in summary


@pytest.mark.parametrize(
    ("text", "first", "note"),
    [
        ("One. Two two two. Three.", "One. Two two two.", "sentence"),
        ('He said "Stop it!" Then he left the house', 'He said "Stop it!"', "sentence"),
        ("It costs 3.50 and\n\nnot a cent more.", "It costs 3.50 and", "word"),
    ],
)
def test_a_text_is_cut_near_its_middle_and_keeps_its_words(text, first, note):
    content = cut(f" {text}\n")
    assert (content.kind, content.input, content.note) == ("sc", first, note)
    assert f"{content.input} {content.output}".split() == text.split()
    assert cut(" word. ") is None


def test_a_document_has_any_number_of_questions_and_ids_hold_no_names(make):
    text = {"text": "A text. And more.", "document": "Ada L."}
    eleven = [{"question": f"Question {i}?", "answer": "Yes", "document": "Ada L."} for i in range(11)]
    forget, retain = jsonl(*eleven, text, QUESTION | {"task": "Task2"}), jsonl(text | {"text": "Other words."})
    rows = make({"a.jsonl": forget}, {"r.jsonl": retain})
    assert [row.id for row in rows["forget"]] == [*(f"forget1qa{i}" for i in range(11)), "forget1sc0", "forget2qa0"]
    assert ({row.stem for row in rows["forget"][:12]}, rows["forget"][12].task) == ({"forget1"}, "Task2")
    assert rows["retain"][0].id == "retain1sc0"
    assert "forget.jsonl: 12 questions, 1 completions, 2 documents" in make.summary


def test_each_question_of_a_chat_is_asked_with_its_turns_and_alone(make):
    more = [{"role": "user", "content": "And then?"}, {"role": "assistant", "content": "She left."}]
    system = {"role": "system", "content": "Be kind."}
    other = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]
    rows = make({"a.jsonl": jsonl({"messages": [*CHAT, *more]}, {"messages": [system, *other]})})["forget"]
    assert [row.id for row in rows] == ["forget1qa0", "forget1qa1", "forget1qa2", "forget2qa0", "forget2qa1"]
    assert [row.input for row in rows] == [QUESTION["question"], *["And then?"] * 2, *["Who?"] * 2]
    earlier = (("user", QUESTION["question"]), ("assistant", QUESTION["answer"]))
    assert [row.turns for row in rows] == [(), earlier, (), (("system", "Be kind."),), ()]
    assert "chat questions asked after the turns before them: 2; also asked without these turns: 2" in make.summary


def test_duplicates_of_a_side_are_left_out_and_listed(make):
    rows = make({"a.jsonl": LINE + "\n\n" + LINE.replace("river", "river ")})
    assert len(rows["forget"]) == 1
    assert "duplicates left out: 1\n  a.jsonl:3: the same as a.jsonl:1\n" in make.summary


FIELDS = 'no question and answer or text among its fields "a", "b"'


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", 'question,answer\n"two\nlines",\n', 'a.csv:2: field "answer" is empty; correct the row'),
        ("a.jsonl", '\n{"question": null, "answer": "x"}', 'a.jsonl:2: field "question" is empty'),
        ("a.jsonl", LINE + '\n{"question": ["x"], "answer": "x"}', 'a.jsonl:2: field "question" is not text'),
        ("a.csv", "a,b\nc,d\ne,f\n", f"a.csv: {FIELDS}: name the columns in a header line, or give"),
        ("a.jsonl", LINE + '\n{"a": 1, "b": 2}', f"a.jsonl:2: {FIELDS}"),
        ("a.csv", "Where is she?,Bath\n", "a.csv: is empty: a table needs rows after its header line, which is"),
        ("a.csv", "question,answer\nWo?,Bath, Avon\n", "a.csv:2: has 3 cells, but the header line has 2: put"),
        ("a.csv", 'question,answer\na,b\n"Where?,Bath\nc,d\n', "a.csv:3: is bad CSV: unexpected end of data"),
        ("a.csv", "q,a\nÄ,Ö\n".encode() + b"Wo?,K\xf6ln\n", "a.csv:3: is not valid UTF-8 (byte 6 of the line): save"),
        ("a.txt", "Köln am Rhein".encode("utf-16-le"), "a.txt: is not a text file: save it as UTF-8"),
        ("a.docx", b"PK", "a.docx: is of an unknown type: use .csv"),
        ("a.txt", "word", "a.txt: the text is one word: a completion needs at least two"),
        ("a.json", "{}", "a.json: is neither a list of JSON objects nor one with fields"),
        ("a.json", "[\n1,]", "a.json:2: is bad JSON"),
        ("a.jsonl", "\n[1]", "a.jsonl:2: is not a JSON object"),
        ("a.jsonl", "", "a.jsonl: is empty: it holds no rows"),
        ("a.json", json.dumps([QUESTION, {"text": "\udc00"}]), "a.json:2: holds \\udc00, half of a character"),
        ("a.jsonl", jsonl({"messages": "hi"}), "a.jsonl:1: is not a chat"),
        ("a.jsonl", jsonl({"messages": CHAT[:1]}), "a.jsonl:1: holds no user turn that an assistant turn"),
        ("a.jsonl", jsonl({"messages": [CHAT[0], {"role": "assistant"}]}), "a.jsonl:1: holds no user turn that an"),
        ("a.jsonl", jsonl({"messages": CHAT[1:]}), "a.jsonl:1: holds no user turn that an assistant turn"),
        (
            "a.jsonl",
            jsonl({"messages": [{"role": "user", "content": 3}]}),
            "a.jsonl:1: turn 1 of the chat: its content",
        ),
    ],
)
def test_faults_are_reported_with_file_and_line(make, name, content, expected):
    first, second = make.faults({name: content}, {"r.txt": "word"})
    assert first.startswith(expected)
    assert second.startswith("r.txt: the text is one word: a completion needs at least two")


def test_a_cell_may_be_long_and_a_kind_in_capitals(make):
    answer = "Rain falls. " * 20_000
    rows = make({"a.csv": f'question,answer\nWeather?,"{answer}"\n', "b.jsonl": jsonl(QUESTION | {"kind": "Sc"})})
    assert [row.kind for row in rows["forget"]] == ["qa", "sc"]
    assert rows["forget"][0].output == answer.strip()
    assert csv.field_size_limit() == 131_072


def test_rows_of_a_data_directory_keep_their_kind_and_document(make):
    row = {"input": "It was", "output": "late.", "task": "own"}
    ours = [row | {"id": "x1sc0"}, row | {"id": "x1qa1", "input": "When was it?"}, row | {"id": "x2qa0", "input": "A?"}]
    other = QUESTION | {"id": "x1sc7"}  # a number in a table of another form
    forget = make({"a.jsonl": jsonl(*ours), "b.jsonl": jsonl(other)})["forget"]
    assert [one.kind for one in forget] == ["sc", "qa", "qa", "qa"]
    assert [one.stem == forget[0].stem for one in forget] == [True, True, False, False]


def test_a_row_on_both_sides_is_refused_with_both_places(make):
    (line,) = make.faults({"a.jsonl": "\n" + LINE}, {"r.csv": table(",")})
    assert line.startswith("a.jsonl:2: is a retain row too (r.csv:2): ")


def test_a_misspelt_field_is_refused(make):
    found = make.faults({"a.jsonl": LINE}, options=Options("frage", document_field="person"))
    assert [line.partition(": ")[0] for line in found] == ["--input_field frage", "--document_field person"]


def test_retain_rows_with_a_name_of_the_forget_rows_are_listed(make):
    asked = ("Did Ada O'Brien-Lee move?", "Who is Ada O'Brien-Lee's aunt?", "Is Bob Ray old?")
    forget = jsonl(*({"question": text, "answer": "no", "document": "d1"} for text in asked))
    texts = ("We met Ada O'Brien-Lee there.", "Bob Ray is here.", "It is Ada, we think.")
    make({"a.jsonl": forget}, {"r.jsonl": jsonl(*({"text": text} for text in texts))})
    assert "warning: 1 retain rows contain a name of the forget rows" in make.summary
    assert "\n  r.jsonl:1: Ada O'Brien-Lee\n" in make.summary
    assert names_in("Did Ada Lovelace go?") == {"Did Ada Lovelace", "Ada Lovelace"}


@pytest.mark.parametrize(
    ("name", "texts", "certain", "perhaps"),
    [
        ("मीर", ["मीरा कहाँ है?", "मीर कहाँ है?"], ["1: मीर"], []),
        ("मीरा शर्मा", ["मीरा शर्मा कौन है?", "मेरा शर्म", "शर्मा कौन है?"], ["0: मीरा शर्मा"], ["2: शर्मा"]),
        ("মীরা সেন", ["মীরা সেন কে?", "মীর সন"], ["0: মীরা সেন"], []),
        ("Zoé Müller", [normalize("NFD", "Hier wohnt Zoé Müller."), "Zoe Mull"], ["0: Zoé Müller"], ["1: Zoé"]),
    ],
)
def test_names_with_vowel_signs_and_accents_are_whole_words(name, texts, certain, perhaps):
    retain = [Item("qa", text, "x", place=str(number)) for number, text in enumerate(texts)]
    assert shared_names([Item("qa", f"{name}?", "x", subject=name)], retain) == (certain, perhaps)
    assert names_in(normalize("NFD", "Hier wohnt Zoé Müller.")) == {normalize("NFD", "Zoé Müller")}


def test_the_command_writes_what_check_accepts_and_does_not_overwrite(tmp_path, capsys):
    (tmp_path / "forget me.csv").write_text("question,answer\n" + "".join(f"Where {i}?,Here {i}\n" for i in range(12)))
    (tmp_path / "retain.txt").write_text("Rain falls. It is wet.")
    out = str(tmp_path / "out")
    command = ["prepare", "--forget", str(tmp_path / "forget me.csv"), "--retain", str(tmp_path / "retain.txt")]
    assert main([*command, "--output", out]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 2 + 1
    assert main(["check", out]) == 0
    assert "all         own    0 forget sc   12 forget qa    1 retain sc    0 retain qa" in capsys.readouterr().out
    assert main([*command, "--output", out]) == 2
    assert f"{out}/forget.jsonl: exists already: name another --output folder" in capsys.readouterr().err
    assert main([*command, "--output", f"{out}2", "--output_field", "answer"]) == 2
    assert "--output_field: needs the field of the question" in capsys.readouterr().err


def test_the_name_of_the_person_is_kept_for_the_swap_test(make):
    rows = make({"a.csv": "question,answer,subject\nWhere does Ada Byron live?,Bath,Ada Byron\nWho?,Bob,\n"})
    assert [row.subject for row in rows["forget"]] == ["Ada Byron", ""]
