# ruff: noqa: RUF001
"""Rows made of the files that companies have: odd encodings, tables, chats with tools, long texts. All are invented."""

import json
from datetime import date
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from lume_tasks.cli import main
from lume_tasks.data.checks import check_dir
from lume_tasks.data.fields import Options
from lume_tasks.data.files import read_rows
from lume_tasks.data.prepare import Prepared, prepare, prepared
from lume_tasks.errors import DataError

COMPANY = Path(__file__).parent / "company"


def read(*names: str, retain: tuple[str, ...] = (), **options: str) -> Prepared:
    return prepared([COMPANY / name for name in names], [COMPANY / name for name in retain], Options(**options))


def pairs(rows):
    return [(row.input, row.output) for row in rows]


def summary(found: Prepared) -> list[str]:
    return [line.replace(f"{COMPANY}/", "") for line in found.summary]


def faults(*args, **options) -> list[str]:
    with pytest.raises(DataError) as caught:
        read(*args, **options)
    heading, *lines = str(caught.value).replace(f"{COMPANY}/", "").splitlines()
    return [line for line in (heading, *lines) if not line.startswith("nothing is written")]


def test_names_in_five_scripts_with_mark_line_ends_quotes_and_emoji():
    found = read("tickets.csv")
    assert pairs(found.forget) == [
        ("Where does Zoë Fält-Brun live?", 'By the "Old Mill", Örby 🙂'),
        ("Где живёт Марфа Лугова?", "В Яснограде, у реки"),
        ("Πού μένει η Δάφνη Κορώνη;", "Στη Λευκοχώρα"),
        ("文小禾住在哪里？", "她住在青桥镇🌉"),
        ("أين تسكن ليلى حدادين؟", "في حي الزيتون"),
    ]
    assert summary(found) == [
        "read tickets.csv: 6 rows from question and answer",
        "empty lines: 2 (tickets.csv)",
        "fields that are in no row: 1",
        '  tickets.csv: "customer", "ticket"',
        "left out, since no row can be made of them: 1",
        '  tickets.csv:10: field "answer" is empty',
        "duplicates left out: 1",
        "  tickets.csv:9: the same as tickets.csv:4",
    ]


def test_cells_with_backslashes_and_line_breaks():
    assert pairs(read("paths.csv").forget) == [
        ("Where is the file\nof Nils Okker?", "C:\\Users\\nokker\\new\\table.txt\n\nand a copy on D:\\"),
        ('Is it "safe"?', 'He said "yes"'),
    ]


TURN = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("name", "options", "expected", "encoding"),
    [
        ("umlauts-utf16.csv", {}, "In Süßenbrück", "utf-16 (from its byte-order mark)"),
        ("umlauts-utf16.csv", {"encoding": "cp1252"}, "In Süßenbrück", "utf-16 (from its byte-order mark)"),
        ("umlauts-cp1252.csv", {}, "Für 5 € in „Süßenbrück“", "cp1252 (detected)"),
        ("umlauts-cp1252.csv", {"encoding": "cp1254"}, "Für 5 € in „Süßenbrück“", "cp1254 (from --encoding)"),
    ],
)
def test_the_summary_names_an_encoding_that_is_not_utf8(name, options, expected, encoding):
    found = read(name, "tickets.csv", **options)
    assert pairs(found.forget)[0] == ("Wo wohnt Jörg Äsch?", expected)
    title = "files that are not UTF-8 (if letters are wrong, give their encoding with --encoding): 1"
    assert f"{title}\n  {name}: {encoding}, with words such as Jörg, Äsch, " in "\n".join(summary(found))


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Где живёт Анна?", "cp1251"),
        ("Πού μένει η Ελένη;", "cp1253"),
        ("李梅住在哪里？她住在河边", "gb18030"),
        ("田中さんはどこ", "shift_jis"),
    ],
)
def test_encodings_of_other_scripts_are_detected(text, encoding, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(f'{{"question": "{text}", "answer": "x"}}'.encode(encoding))
    found = prepared([tmp_path / "a.jsonl"], [], Options())
    assert found.forget[0].input == text
    (line,) = [line for line in found.summary if line.startswith(f"  {tmp_path / 'a.jsonl'}: {encoding} (detected)")]
    assert ", with words such as " in line


def test_empty_cells_do_not_hide_filled_ones(tmp_path):
    lines = ["question,answer,text,messages", ",,Ada lives in Bonn. She paints.,", "Where is Bo?,Rome,,"]
    lines += [f',,,"{json.dumps([TURN, TURN | {"role": "assistant"}]).replace(chr(34), chr(34) * 2)}"']
    (tmp_path / "a.csv").write_text("\n".join(lines))
    found = prepared([tmp_path / "a.csv"], [], Options())
    assert pairs(found.forget) == [("Ada lives in Bonn.", "She paints."), ("Where is Bo?", "Rome"), ("Hi", "Hi")]
    (tmp_path / "b.jsonl").write_text('{"instruction": "", "input": "Where is Bo?", "output": "Rome"}')
    assert pairs(prepared([tmp_path / "b.jsonl"], [], Options()).forget) == [("Where is Bo?", "Rome")]


def test_a_broken_line_or_encoding_is_an_error_and_no_guess():
    assert faults("broken.csv") == ["broken.csv:4: is not valid UTF-8 (byte 9 of the line): save the file as UTF-8"]
    (line,) = faults("umlauts-cp1252.csv", encoding="utf-8")
    assert line.startswith("umlauts-cp1252.csv: is not valid utf-8 (byte 28) (encoding from --encoding)")
    assert faults("tickets.csv", encoding="utf-88")[0].startswith("--encoding utf-88: is not known")


LIBRARY = (("system", "You work for the Nordtal library."),)
LANTERN = ("Who borrowed The Tin Lantern?", "Petra Vossik did.")


def test_sharegpt_questions_with_their_turns_and_alone():
    found = read("sharegpt.json")
    until = ("Until when?", "Until the third of May.")
    assert pairs(found.forget) == [LANTERN, LANTERN, until, until]
    earlier = (*LIBRARY, ("user", LANTERN[0]), ("assistant", LANTERN[1]))
    assert [row.turns for row in found.forget] == [LIBRARY, (), earlier, ()]
    assert [row.id for row in found.forget] == ["forget1qa0", "forget1qa1", "forget1qa2", "forget1qa3"]
    assert summary(found)[1:] == [
        "chat questions asked after the turns before them: 2; also asked without these turns: 2",
        "turns that call a tool: 1 (sharegpt.json:1)",
        "tool results, kept as turns before later questions: 1 (sharegpt.json:1)",
        "turns of the user that are in no row: 2 (sharegpt.json:1, sharegpt.json:2)",
        "fields that are in no row: 1",
        '  sharegpt.json: "id"',
        "left out, since no row can be made of them: 1",
        "  sharegpt.json:2: holds no user turn that an assistant turn with text follows",
    ]


INVOICE = ("Hello\n\nWhat is on\nmy invoice?", "Twelve chairs.\n\nThey arrive on Monday.")
THANKS = ("Thank you.", "You are welcome.")
SUNDAY = ("Are you open on Sunday?", "Only before noon.")
BRIEF = (("system", "Answer briefly."),)


def test_chats_with_parts_tools_and_consecutive_turns():
    found = read("chats.jsonl")
    assert pairs(found.forget) == [INVOICE, INVOICE, THANKS, THANKS, SUNDAY, THANKS]
    before_thanks = (("user", INVOICE[0]), ("tool", "invoice 4: 12 chairs"), ("assistant", INVOICE[1]))
    sunday = (("user", SUNDAY[0]), ("assistant", SUNDAY[1]))
    assert [row.turns for row in found.forget] == [BRIEF, (), (*BRIEF, *before_thanks), (), (), sunday]
    lines = summary(found)
    assert 'parts left out, since they are not text ("image_url"): 1 (chats.jsonl:1)' in lines
    assert "turns that call a tool: 1 (chats.jsonl:1)" in lines
    assert "turns left out, since they hold no text: 1 (chats.jsonl:4)" in lines
    assert "turns of the user that are in no row: 2 (chats.jsonl:2, chats.jsonl:4)" in lines
    assert "  chats.jsonl:2: the same as chats.jsonl:1" in lines


def test_turns_are_written_read_and_checked(tmp_path):
    assert main(["prepare", "--forget", str(COMPANY / "chats.jsonl"), "--where", "metadata.customer_id=77",
                 "--output", str(tmp_path)]) == 0  # fmt: skip
    line = json.loads((tmp_path / "forget.jsonl").read_text().splitlines()[0])
    assert line["turns"] == [{"role": "system", "content": "Answer briefly."}]
    found = read("chats.jsonl", where="metadata.customer_id=77")
    assert read_rows(tmp_path / "forget.jsonl") == found.forget
    assert check_dir(tmp_path) == []
    again = prepared([tmp_path / "forget.jsonl"], [tmp_path / "retain.jsonl"], Options())
    assert [(row.input, row.turns) for row in again.forget] == [(row.input, row.turns) for row in found.forget]
    retain = json.loads((tmp_path / "retain.jsonl").read_text().splitlines()[-1])
    with (tmp_path / "retain.jsonl").open("a") as file:
        file.write(
            json.dumps(retain | {"id": "retain9qa9"}) + "\n" + json.dumps(retain | line | {"id": "x-qa1"}) + "\n"
        )
    same, both = check_dir(tmp_path)
    assert same.startswith("retain.jsonl:4: has the same input and output as line 3")
    assert both.startswith('forget and retain: forget row "forget1qa0" is in retain too, as "x-qa1"')


def test_alpaca_and_a_single_object():
    found = read("alpaca.json", "one.json")
    assert pairs(found.forget) == [
        ("Summarise the note.\n\nRuben Halvik asked for a refund.", "A refund is wanted."),
        ("Name the owner of the red boat.", "Ruben Halvik"),
        ("Name the town.", "Graumark"),
        ("Who keeps the keys?", "Ines Tarrow"),
    ]
    assert summary(found)[2:] == ["fields that are in no row: 1", '  one.json: "notes"']


def test_a_file_that_is_one_chat_is_no_list_of_texts(tmp_path):
    chat = [{"role": "user", "content": "Who is it?"}, {"role": "assistant", "content": "It is Ada."}]
    (tmp_path / "a.json").write_text(json.dumps(chat))
    (tmp_path / "b.json").write_text(json.dumps({"messages": [chat[0] | {"content": "Who?"}, chat[1]]}))
    assert pairs(prepared([tmp_path], [], Options()).forget) == [("Who is it?", "It is Ada."), ("Who?", "It is Ada.")]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, chat)))
    with pytest.raises(DataError, match='no question and answer or text among its fields "role", "content"'):
        prepared([tmp_path / "c.jsonl"], [], Options())


def test_parquet_with_chats_numbers_and_bytes(tmp_path):
    path = tmp_path / "a.parquet"
    chat = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]
    table = {
        "messages": [chat, None, None],
        "question": [None, b"How many, Zo\xc3\xab?", b"Why?"],
        "answer": [None, 3.0, float("nan")],
        "day": [date(2024, 5, 3)] * 3,
    }
    parquet.write_table(pa.table(table), path)
    found = prepared([path], [], Options())
    assert pairs(found.forget) == [("Who?", "Ada."), ("How many, Zoë?", "3")]
    assert f'  {path}: "day"' in found.summary
    assert f'  {path}:3: field "answer" is empty' in found.summary
    parquet.write_table(pa.table({"question": [b"Who?"], "answer": [b"\xff"]}), path)
    with pytest.raises(DataError, match=r'a\.parquet:1: field "answer" is not text'):
        prepared([path], [], Options())


def test_messages_name_the_place_and_keep_the_letters(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_text("вопрос,ответ\nКто?,Анна\n")
    with pytest.raises(DataError, match=r'a\.csv: no question and answer or text among its fields "вопрос", "ответ"'):
        prepared([path], [], Options())
    path.write_text("question,answer,task\nКто?,Анна,Task 1\n")
    with pytest.raises(DataError, match=r'^\S+a\.csv:2: task "Task 1" is misspelt'):
        prepared([path], [], Options())
    path.write_text("question,answer\nКто?,Zoë\n")
    out = TextIOWrapper(BytesIO(), encoding="cp1252")  # has no Cyrillic letters
    monkeypatch.setattr("sys.stdout", out)
    assert main(["prepare", "--forget", str(path), "--output", str(tmp_path / "Кто")]) == 0
    assert out.buffer.getvalue().decode("cp1252").count("\\u041a\\u0442\\u043e") == 1


SHARED = "chat questions (asked alone, or at the start of a chat) left out, since the other side has them too"


def test_where_splits_one_file():
    found = read("chats.jsonl", retain=("one.json",), where="metadata.Customer_ID = 77 ")
    assert pairs(found.forget) == [INVOICE, INVOICE, THANKS]
    assert pairs(found.retain) == [SUNDAY, THANKS, THANKS, ("Who keeps the keys?", "Ines Tarrow")]
    lines = summary(found)
    assert "--where metadata.Customer_ID=77: 1 objects to forget, 2 to retain" in lines
    assert read("chats.jsonl", document_field="metadata.Customer_ID").forget  # was "no row has a value there"
    # With its turns it is still on both sides.
    assert f"{SHARED}: 1" in lines
    assert "  chats.jsonl:1: Thank you." in lines
    assert not [line for line in lines if line.endswith('"metadata"')]


def test_the_same_greeting_in_chats_of_both_sides_stays_on_the_retain_side(tmp_path):
    path, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    greeting = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello!")]
    ada, bonn = ([("user", ask), ("assistant", reply)] for ask, reply in (("Who?", "Ada"), ("Where?", "Bonn")))
    chats = [
        {"who": who, "messages": [{"role": role, "content": text} for role, text in greeting + rest]}
        for who, rest in ((1, []), (2, []), (1, ada), (2, bonn))
    ]
    path.write_text("\n".join(map(json.dumps, chats)))
    found = prepared([path], [], Options(where="who=1"))
    assert [(row.input, len(row.turns)) for row in found.forget] == [("Who?", 3), ("Who?", 0)]
    assert [(row.input, len(row.turns)) for row in found.retain] == [("Hi", 1), ("Hi", 0), ("Where?", 3), ("Where?", 0)]
    assert found.summary[-3:] == [f"{SHARED}: 2", f"  {path}:1: Hi", f"  {path}:1: Hi"]
    other.write_text(json.dumps(chats[2]))
    with pytest.raises(DataError, match=rf"written, 1 problem:\n.*b\.jsonl:1: is a retain row too \({path}:3\)"):
        prepared([other], [path], Options())


def test_where_not_forgets_what_differs_or_lacks_the_column():
    found = read("chats.jsonl", where="metadata.channel!=web")
    assert pairs(found.forget) == [SUNDAY, THANKS]
    assert pairs(found.retain) == [INVOICE, INVOICE, THANKS, THANKS]
    assert 'objects without the column "metadata.channel", which go to forget: 1' in summary(found)
    assert [row.input for row in read("tickets.csv", where="Customer!=C-1").retain] == [
        "Where does Zoë Fält-Brun live?"
    ]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("customer", "--where customer: is not COLUMN=VALUE or COLUMN!=VALUE"),
        (
            "custommer=C-1",
            '--where custommer=C-1: no object has the column "custommer"; use one of those there: "customer"',
        ),
        ("customer=C-9", '--where customer=C-9: no object has this value; use one of those there: "C-'),
        ("customer!=c-1", '--where customer!=c-1: no object has this value; use one of those there: "C-1"'),
        ("ticket=T3", "--where ticket=T3: no row can be made of the objects to forget"),
    ],
)
def test_where_that_splits_nothing_is_an_error(where, expected):
    (line,) = faults("tickets.csv", where=where)
    assert line.startswith(expected)


def test_where_that_all_objects_match_is_an_error(tmp_path):
    (tmp_path / "a.csv").write_text("question,answer,who\nA?,b,Ada\nC?,d,Ada\n")
    with pytest.raises(DataError, match="--where who=Ada: all 2 objects have this value, so nothing is split"):
        prepared([tmp_path / "a.csv"], [], Options(where="who=Ada"))


@pytest.mark.parametrize(
    ("subject", "retain", "warning"),
    [
        ("Zoë Fält-Brun", "we asked zoe falt-brun again", "contain a name"),
        ("Zoë Fält-Brun", "Then Zoe answered", "perhaps"),
        ("文小禾", "昨天文小禾来了", "contain a name"),
        ("ليلى حدادين", "قالت ليلى نعم", "perhaps"),
        ("Марфа Лугова", "МАРФА ЛУГОВА пришла", "contain a name"),
        ("Rose Lund", "The rose is red, and Rose is here", None),  # "rose" may be the flower
        ("Rose Lund", "Roses are red", None),
    ],
)
def test_retain_rows_that_name_the_person_are_listed(subject, retain, warning, tmp_path):
    for name, row in (
        ("f", {"question": "Where?", "answer": "Here.", "subject": subject}),
        ("r", {"question": retain, "answer": "ok"}),
    ):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    found = prepared([tmp_path / "f.jsonl"], [tmp_path / "r.jsonl"], Options())
    warnings = [line for line in found.summary if line.startswith("warning: 1 retain rows")]
    assert len(warnings) == (warning is not None)
    assert all(warning in line for line in warnings)


def test_the_same_rows_are_written_and_returned(tmp_path):
    options = Options(where="customer=C-2", label="clients")
    text = prepare([COMPANY / "tickets.csv"], [COMPANY / "paths.csv"], tmp_path / "out", options)
    found = read("tickets.csv", retain=("paths.csv",), where="customer=C-2", label="clients")
    assert [read_rows(tmp_path / "out" / f"{side}.jsonl") for side in found.rows] == list(found.rows.values())
    assert set(found.summary) <= set(text.splitlines())
    assert {row.task for row in found.forget} == {"clients"}


def test_a_word_that_begins_questions_is_no_part_of_a_name(tmp_path):
    asked = ("Did Ada Byron call?", "Did Ada Byron write?", "Where is Ada Byron?")
    (tmp_path / "f.jsonl").write_text("\n".join(json.dumps({"question": text, "answer": "No."}) for text in asked))
    (tmp_path / "r.csv").write_text("question,answer\nDid it rain?,Yes\nWho is Byron?,A poet\n")
    found = prepared([tmp_path / "f.jsonl"], [tmp_path / "r.csv"], Options())
    assert found.summary[-2].startswith("warning: 1 retain rows: perhaps they are about the person to forget")
    assert found.summary[-1] == f"  {tmp_path / 'r.csv'}:3: Byron"
