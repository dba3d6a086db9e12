"""Words in scripts with vowel signs, and with accents as characters of their own."""

import random
from unicodedata import category, normalize
from unittest import mock

import pytest

from lume_tasks.data.rows import Row
from lume_tasks.data.text import folded
from lume_unlearn.data.imitations import disguised
from lume_unlearn.data.persons import own_tokens, own_words


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
