"""Texts of any length become completions that fit."""

from pathlib import Path

import pytest

from lume_tasks.data.fields import Options
from lume_tasks.data.prepare import prepared
from lume_tasks.data.texts import cut


def check_parts(rows, text: str, words: int) -> None:
    """The rows cover the text in order, each output is the next row's input, and all parts are short."""
    assert [row.output for row in rows[:-1]] == [row.input for row in rows[1:]]
    assert " ".join([rows[0].input, *(row.output for row in rows)]).split() == text.split()
    assert all(words / 2 <= len(part.split()) <= 60 for row in rows for part in (row.input, row.output))
    assert {row.stem for row in rows} == {"forget1"}


def test_a_long_text_becomes_rows_that_fit():
    path = Path(__file__).parent / "company/report.txt"
    text = path.read_text()
    found = prepared([path], [], Options())
    check_parts(found.forget, text, 60)
    assert len(found.forget) == 12
    assert found.forget[0].input.endswith("clerk at the grain office. The room was narrow and smelled of varnish.")
    assert all(row.input[-1] in '.!"' for row in found.forget)
    assert f"long texts made into several rows: 1 ({path})" in found.summary
    assert (
        "texts cut into input and output: 12 at a sentence end, 0 between words (no sentence end nearby)"
        in found.summary
    )


@pytest.mark.parametrize("number", [121, 700, 2000])
@pytest.mark.parametrize("sentence", [7, 100_000])
def test_texts_of_any_length_are_covered(number, sentence, tmp_path):
    text = " ".join(f"w{i}{'.' * (i % sentence == 0)}" for i in range(1, number + 1))
    (tmp_path / "a.txt").write_text(text)
    check_parts(prepared([tmp_path / "a.txt"], [], Options()).forget, text, 60)


def test_texts_without_spaces_are_cut_by_characters(tmp_path):
    text = "".join(f"第{i}年春天她开了一家小店。那时山上的雪刚刚开始融化。" for i in range(30))
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_text("她在春天开店。他笑了。")
    *rows, short = prepared([tmp_path / "a.txt", tmp_path / "b.txt"], [], Options()).forget
    assert "".join([rows[0].input, *(row.output for row in rows)]) == text
    assert all(row.output.endswith("。") and 100 <= len(row.output) <= 210 for row in rows)
    assert (short.input, short.output) == ("她在春天开店。", "他笑了。")


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("น้ำที่นี่ดี", "น้ำที่"),
        ("ນ້ຳຢູ່ນີ້ດີ", "ນ້ຳຢູ່"),
        ("ស្រីមុំនៅផ្ទះ", "ស្រីមុំ"),
        ("မီရာပါနာမည်", "မီရာပါ"),
    ],
)
def test_no_letter_is_cut_from_its_vowel_sign(text, first):
    one = cut(text)
    assert (one.input, one.output) == (first, text.removeprefix(first))


def test_a_text_in_khmer_is_cut_at_a_sentence_end():
    one = cut("នាងនៅភ្នំពេញ។គាត់សើច។")
    assert one.input == "នាងនៅភ្នំពេញ។"


def test_a_short_text_is_not_cut_after_an_abbreviation_far_from_its_middle(tmp_path):
    (tmp_path / "a.txt").write_text("Mr. Smith lives at 5 Oak Street in Springfield, he told us")
    (row,) = prepared([tmp_path / "a.txt"], [], Options()).forget
    assert (row.input, row.output) == ("Mr. Smith lives at 5 Oak Street", "in Springfield, he told us")


def test_a_text_of_two_parts_stays_one_row(tmp_path):
    text = "One two three four five. " * 24
    (tmp_path / "a.txt").write_text(text)
    (row,) = prepared([tmp_path / "a.txt"], [], Options()).forget
    assert row.input == row.output == text[: len(text) // 2].strip()


def test_what_a_folder_holds_besides_supported_files_is_listed(tmp_path):
    (tmp_path / "old").mkdir()
    for name in ("a.txt", "b.docx", "old/c.txt"):
        (tmp_path / name).write_text("Ada lives here")
    lines = prepared([tmp_path], [], Options()).summary
    title = "in folders, but not read (folders inside, and files of other types): 2"
    assert lines[1:4] == [title, f"  {tmp_path / 'b.docx'}", f"  {tmp_path / 'old'}"]
