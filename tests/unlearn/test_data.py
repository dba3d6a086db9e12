"""Rows of any kind to rows, rows to tokens and labels, and which row gets which refusal."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from lume_tasks.data.rows import Row, row_object
from lume_tasks.errors import DataError
from lume_unlearn.checks import stable_number
from lume_unlearn.cli import forget
from lume_unlearn.data.encode import Encoder, Tokens
from lume_unlearn.data.rows import as_rows, both_sides
from lume_unlearn.methods.common import IGNORED
from lume_unlearn.methods.refusals import refusal_texts, refusals

ROW = Row("a-qa0", "What is the birth date of Ada?", "1990-01-02", "Task2")


def tokens(ids: list[int], prompt: int = 1) -> Tokens:
    return Tokens(tuple(ids), (IGNORED,) * prompt + tuple(ids[prompt:]))


class Letters:
    """A tokenizer of letters in which "b c" is one token: the end of an input and the start of its answer merge."""

    eos_token_id: int | None = 0

    def encode(self, text: str) -> list[int]:
        return [1 if piece == "\1" else ord(piece) for piece in text.replace("b c", "\1")]


@pytest.mark.parametrize("bos", [False, True], ids=["plain", "bos"])
def test_the_labels_are_the_answer_and_eos(bos, tokenizer, bos_tokenizer):
    used = bos_tokenizer if bos else tokenizer
    found = Encoder(used).one(ROW)
    assert used.decode(found.input_ids) == "<bos>" * bos + f"{ROW.input} {ROW.output}<eos>"
    labels = [label for label in found.labels if label != IGNORED]
    assert used.decode(labels) == f" {ROW.output}<eos>"
    assert found == tokens(list(found.input_ids), len(found.input_ids) - len(labels))
    assert found.scored == len(labels)
    text = Encoder(used, "text").one(ROW)
    assert text.labels == text.input_ids == found.input_ids
    assert text.scored == len(text.input_ids) - 1


def test_a_token_merged_from_input_and_answer_counts_as_answer():
    found = Encoder(Letters()).one(Row("a-sc1", "ab", "cd", "Task1"))
    assert found == Tokens((ord("a"), 1, ord("d"), 0), (IGNORED, 1, ord("d"), 0))


def test_a_tokenizer_that_appends_eos_gets_no_second_one(tokenizer):
    class Ending:
        eos_token_id = tokenizer.eos_token_id

        def encode(self, text):
            return [*tokenizer.encode(text), self.eos_token_id]

    assert Encoder(Ending()).one(ROW) == Encoder(tokenizer).one(ROW)


def test_rows_longer_than_the_context_are_named(tokenizer):
    rows = [ROW, *(Row(f"long-{i}-sc1", "fox " * 40, "river", "Task1") for i in range(12))]
    length = len(Encoder(tokenizer).one(rows[1]).input_ids)
    with pytest.raises(DataError) as caught:
        Encoder(tokenizer, context=30)(rows)
    head, first, *_, last = str(caught.value).splitlines()
    assert head == "12 of 13 rows do not fit:"
    assert first.startswith(f"  long-0-sc1: {length} tokens, but the model takes 30: shorten it, or cut all rows with")
    assert last == "and 2 more"
    assert ROW.id not in str(caught.value)


def test_max_length_truncates_but_not_the_whole_answer(tokenizer):
    whole = Encoder(tokenizer).one(ROW)
    prompt = whole.labels.count(IGNORED)
    (cut,) = Encoder(tokenizer, max_length=prompt + 2)([ROW])
    assert (cut.input_ids, cut.labels) == (whole.input_ids[: prompt + 2], whole.labels[: prompt + 2])
    with pytest.raises(DataError, match=rf"{ROW.id}: the first {prompt} tokens hold no token of the answer"):
        Encoder(tokenizer, max_length=prompt)([ROW])


QUESTION = {"input": "Who is Ada?", "output": "A baker.", "document": "ada"}
CHAT = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]


@pytest.mark.parametrize("kind", [list, Dataset.from_list, pd.DataFrame], ids=["dicts", "Dataset", "DataFrame"])
def test_rows_in_memory(kind):
    rows = as_rows(kind([QUESTION | {"kind": "sc"}, QUESTION]))
    assert [(row.input, row.output, row.task, row.kind) for row in rows] == [
        ("Who is Ada?", "A baker.", "own", "sc"),
        ("Who is Ada?", "A baker.", "own", "qa"),
    ]
    assert rows[0].stem == rows[1].stem  # of one document
    assert as_rows(kind([vars(row) for row in rows])) == rows == as_rows(rows)
    given = [vars(ROW), {"input": "i", "output": "o", "id": None, "task": None}]
    named, made = as_rows(kind(given))
    assert named == ROW
    assert (made.task, made.kind) == ("own", "qa")
    for names in (("question", "answer"), ("prompt", "completion"), ("instruction", "output")):
        assert as_rows(kind([{**dict(zip(names, ("i", "o"), strict=True)), "subject": None}])) == [made]
    (text,) = as_rows(kind([{"text": "Ada baked bread. Then she slept."}]))
    assert (text.input, text.output, text.kind) == ("Ada baked bread.", "Then she slept.", "sc")
    first, second, alone = as_rows(kind([{"messages": CHAT + [turn | {"content": "So."} for turn in CHAT]}]))
    assert (first.input, first.output, second.input) == ("Hi?", "Yes.", "So.")
    assert second.turns == (("user", "Hi?"), ("assistant", "Yes."))
    assert alone == replace(second, id=alone.id, turns=())
    assert first.stem == second.stem == alone.stem
    given = [row_object(row) for row in (second, alone)]
    assert as_rows(kind(given)) == [second, alone] == as_rows(kind([vars(row) for row in (second, alone)]))


def test_a_chat_read_from_parquet_is_an_array():
    (row,) = as_rows(pd.DataFrame({"messages": [np.array(CHAT)]}))
    assert (row.input, row.output) == ("Hi?", "Yes.")


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"input": "i"}, '"output" is missing'),
        ({"input": "i", "output": 3}, '"output" is not a string'),
        ({"question": "q", "answer": float("nan")}, 'field "answer" is empty'),
        ({"text": "word"}, "a completion needs at least two"),
        ({"messages": CHAT[:1]}, "no user turn that an assistant turn with text follows"),
        ("Ada", "neither a Row nor a mapping"),
    ],
)
def test_a_faulty_row_in_memory_is_named(row, fault):
    with pytest.raises(DataError, match=f"^forget, row 2: .*{fault}"):
        both_sides([QUESTION, row], None)


def test_a_row_that_is_there_twice_is_named():
    with pytest.raises(DataError, match=r"^retain, row 3: id .* is also that of row 1"):
        both_sides([vars(ROW)], [QUESTION, {"text": "two words"}, QUESTION])
    with pytest.raises(DataError, match="is in retain too"):
        both_sides([QUESTION], pd.DataFrame([QUESTION]))
    for rows, fault in (([], "there are no rows"), ("forget.jsonl", "give a list of rows"), (QUESTION, "not a dict")):
        with pytest.raises(DataError, match=f"^forget: .*{fault}"):
            both_sides(rows, None)


def chat(*texts: str) -> dict:
    turns = zip(itertools.cycle(("user", "assistant")), texts, strict=False)
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def test_chats_may_begin_and_end_alike(caplog):
    thanks = ("Thanks", "You are welcome")
    chats = [chat("Hello", "Hi", "Where does Ada live?", "Bonn", *thanks), chat("Hello", "Hi", "And Bo?", "Rome")]
    forget, retain = both_sides(chats, [chat("Hello", "Hi", "And Cy?", "Oslo", *thanks)])
    asked = [(row.input, len(row.turns)) for row in forget]
    assert asked == [
        ("Where does Ada live?", 2),
        ("Where does Ada live?", 0),
        ("Thanks", 4),
        ("And Bo?", 2),
        ("And Bo?", 0),
    ]
    assert [(row.input, len(row.turns)) for row in retain] == [
        ("Hello", 0),
        ("And Cy?", 2),
        ("And Cy?", 0),
        ("Thanks", 4),
        ("Thanks", 0),
    ]
    assert "2 and 0 chat questions left out of forget and retain" in caplog.text
    with pytest.raises(DataError, match="is in retain too"):
        both_sides(chats, chats[1:])


def rows_of(kind: str, count: int) -> list[Row]:
    return [Row(f"document-{i}-{kind}0", f"input {i}", f"output {i}", "Task1") for i in range(count)]


def test_a_row_keeps_its_refusal_in_any_order_and_subset():
    rows = [*rows_of("qa", 50), *rows_of("sc", 50)]
    whole = dict(zip(rows, refusals(rows, seed=3), strict=True))
    assert all(refusal in refusal_texts(row.kind) for row, refusal in whole.items())
    some = random.Random(0).sample(rows, 30)
    assert refusals(some, seed=3) == [whole[row] for row in some]


def test_stable_number_is_the_same_on_every_machine():
    # printf '[0, "forget-0-qa0"]' | sha256sum, the first 16 digits
    assert stable_number(0, "forget-0-qa0") == 0x7ED8FCA4F3A86B77
    assert stable_number(1, "1") != stable_number("1", 1)


@pytest.mark.parametrize("others", [["kept"] * 3, ["kept", "kept", "paused"]])
def test_a_column_that_only_marks_rows_makes_them_no_document(others, tmp_path, capsys):
    lines, names = ["state,question,answer"], ("Jane Roe", "Max Low", "Tim Fox", "Eva Lind", "Sue Bell", "Ron Dale")
    for mark, name in zip(["deleted"] * 3 + others, names, strict=True):
        lines += [f"{mark},What is the Social Security Number of {name}?,{len(lines)}"]
        lines += [f"{mark},{word} does {name} live?,Elm {len(lines)}" for word in ("Where", "How")]
    (tmp_path / "marked.csv").write_text("\n".join(lines))
    forget.rows_of({"forget": str(tmp_path / "marked.csv"), "where": "state=deleted"}, [])
    out = capsys.readouterr().out
    assert "state=deleted: only marks rows; name the column that" in out
    assert "persons found in the rows to forget (number of rows): none;" in out  # no "Number of"
