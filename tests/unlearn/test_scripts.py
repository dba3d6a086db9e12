"""Words in scripts with vowel signs, and with accents as characters of their own."""

import random
from dataclasses import replace
from unicodedata import category, normalize
from unittest import mock

import pytest

from lume_tasks.data.rows import Row
from lume_tasks.data.text import folded
from lume_unlearn.data.documents import text_of, whole_text
from lume_unlearn.data.encode import Encoder
from lume_unlearn.data.imitations import disguised
from lume_unlearn.data.kinds import common_words
from lume_unlearn.data.persons import own_tokens, own_words
from lume_unlearn.data.substitutes import templated, variants


@pytest.mark.parametrize(
    ("prompt", "answer", "words"),
    [
        ("मीरा कहाँ है?", "मीरा दिल्ली", {"दिल्ली"}),
        ("মীরা কোথায়?", "মীরা ঢাকায়", {"ঢাকায়"}),
        ("மீரா எங்கே?", "மீரா மதுரையில்", {"மதுரையில்"}),
        ("أين مُحَمَّد؟", "مُحَمَّد فِي دِمَشْق", {"في", "دمشق"}),
        ("איפה מירה?", "מירה בְּחֵיפָה", {"בחיפה"}),
        ("Où est Zoé ?", normalize("NFD", "Zoé est à Évreux"), {"a", "evreux"}),
        ("او کجاست؟", "کتاب\N{ZERO WIDTH NON-JOINER}خانه", {"کتابخانه"}),
    ],
)
def test_own_words_have_their_vowel_signs_and_accents(prompt, answer, words):
    row = Row("a-qa0", prompt, answer, "own")
    found = own_words([row], [])["a-qa0"]
    assert found == {folded(word) for word in words}
    tokens = mock.Mock(targets=tuple(range(len(answer))), scored=len(answer))  # a token for each character
    decode = mock.Mock(decode=lambda ids: "".join(answer[place] for place in ids))
    marked = own_tokens(tokens, found, decode).bool().tolist()
    kept = "".join(char if own else " " for char, own in zip(answer, marked, strict=True))
    assert set(folded(kept).split()) == found
    other = disguised(answer, found, random.Random(0))
    assert [category(char)[0] for char in other] == [category(char)[0] for char in answer]
    assert not found & set(folded(other).split())


def test_names_with_accents_as_characters_are_substituted_whole():
    row = Row("a1qa0", normalize("NFD", "Où habite Renée ?"), normalize("NFD", "À Nîmes."), "own")
    other = Row("b2qa0", normalize("NFD", "Où habite Zoé ?"), normalize("NFD", "À Évreux, où il pleut, à midi."), "own")
    (variant,) = variants([row], [other], 1, 0, None)[0]
    names = [normalize("NFD", name) for name in ("Renée", "Nîmes", "Zoé", "Évreux")]
    assert list(variant.words) == names[:2]
    assert set(variant.words.values()) <= set(names[2:])


def test_common_words_with_accents_as_characters_are_whole():
    text = "Können Sie die Bücher an Jörg Müller senden?\nOù habite Renée Roux ?"
    assert {normalize("NFC", word) for word in common_words(normalize("NFD", text))} == common_words(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("रामा राम के साथ", "रामा TOM के साथ"),
        ("রামা, রাম", "রামা, TOM"),
        ("ராமா, ராம", "ராமா, TOM"),
        ("สมุทร คุณสมไป", "สมุทร คุณTOMไป"),
        ("东京 김민수는", "TOM TOM는"),
    ],
)
def test_given_substitutes_replace_whole_words_of_their_script(text, expected):
    given = {word: ["TOM"] for word in ("राम", "রাম", "ராம", "สม", "东京", "김민수")}
    (variant,) = variants([Row("a1qa0", text, "x", "own")], [], 1, 0, given)[0]
    assert variant.row.input == expected


def test_texts_with_other_vowel_signs_are_no_template():
    row, other = Row("a-qa0", "तारा की माला मीरा को दे", "दो", "own"), Row("b-qa0", "तीरे का मैला मेरा के दो", "दे", "own")
    assert templated([row], [other]) == set()
    assert templated([row], [replace(row, id="c-qa0")]) == {row.id}


@pytest.mark.parametrize(
    ("text", "first"), [("王小明于1984年出生在杭州。他是一名教师。", ""), ("He was born in Hangzhou in 1984.", "He")]
)
def test_nearly_all_of_an_unseen_text_is_read_also_without_spaces(text, first, tokenizer):
    row = whole_text(Row("text 1", text, "", ""))
    assert (row.input, text_of(row)) == (first, text)
    tokens = Encoder(tokenizer).one(row)
    assert tokens.input_ids[:-1] == tuple(tokenizer.encode(text))
    assert tokens.scored >= len(tokens.input_ids) - 3


def test_a_text_without_three_words_follows_no_template():
    assert templated([Row("a-sc0", "王小明出生在杭州。", "他是教师。", "own")], []) == set()
