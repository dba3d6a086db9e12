"""Rows to tokens and labels, and the keys of a step to packs."""

from typing import Any

import pytest
import torch

from lume_tasks.data.rows import Row
from lume_tasks.errors import DataError
from lume_unlearn.data.dataset import Sides
from lume_unlearn.data.encode import Tokens, encode_row, encode_rows
from lume_unlearn.data.packs import pack_rows
from lume_unlearn.data.schedule import Step
from lume_unlearn.methods.common import IGNORED
from lume_unlearn.methods.spec import Pair

ROW = Row("a-qa0", "What is the birth date of Ada?", "1990-01-02", "Task2")


def tokens(ids: list[int], prompt: int = 1) -> Tokens:
    """A row with so many unlabelled tokens in front."""
    return Tokens(tuple(ids), (IGNORED,) * prompt + tuple(ids[prompt:]))


def labelled(tokens: Tokens) -> list[int]:
    return [label for label in tokens.labels if label != IGNORED]


class Merging:
    """A tokenizer of letters in which "b c" is one token: the end of an input and the start of its answer merge."""

    eos_token_id = 0

    def encode(self, text: str) -> list[int]:
        return [1 if piece == "\1" else ord(piece) for piece in text.replace("b c", "\1")]


@pytest.mark.parametrize("bos", [False, True], ids=["plain", "bos"])
def test_the_labels_are_the_answer_and_eos(bos: bool, tokenizer: Any, bos_tokenizer: Any) -> None:
    used = bos_tokenizer if bos else tokenizer
    found = encode_row(used, ROW)
    assert used.decode(found.input_ids) == "<bos>" * bos + f"{ROW.input} {ROW.output}<eos>"
    assert used.decode(labelled(found)) == f" {ROW.output}<eos>"
    # The label of a position is its own token, and the labelled ones are the last.
    prompt = len(found.input_ids) - len(labelled(found))
    assert found == tokens(list(found.input_ids), prompt)
    assert found.scored == len(labelled(found))


def test_with_loss_on_the_text_everything_counts_that_something_stands_before(
    tokenizer: Any, bos_tokenizer: Any
) -> None:
    for used in (tokenizer, bos_tokenizer):
        found = encode_row(used, ROW, "text")
        assert found.labels == found.input_ids
        assert found.scored == len(found.input_ids) - 1
    without, with_bos = encode_row(tokenizer, ROW, "text"), encode_row(bos_tokenizer, ROW, "text")
    assert with_bos.scored >= without.scored  # behind BOS the first token of the text counts too


def test_a_token_merged_out_of_input_and_answer_counts_as_answer() -> None:
    found = encode_row(Merging(), Row("a-sc1", "ab", "cd", "Task1"))
    assert found == Tokens((ord("a"), 1, ord("d"), 0), (IGNORED, 1, ord("d"), 0))


def test_a_tokenizer_that_ends_with_eos_itself_gets_no_second_one(tokenizer: Any) -> None:
    class Ending:
        eos_token_id = tokenizer.eos_token_id

        def encode(self, text: str) -> list[int]:
            return [*tokenizer.encode(text), self.eos_token_id]

    assert encode_row(Ending(), ROW) == encode_row(tokenizer, ROW)


def test_without_eos_there_is_an_error() -> None:
    class Endless:
        eos_token_id = None

    with pytest.raises(DataError, match="no EOS"):
        encode_row(Endless(), ROW)


def test_rows_beyond_the_context_are_named(tokenizer: Any) -> None:
    rows = [ROW, *(Row(f"long-{i}-sc1", "fox " * 40, "river", "Task1") for i in range(12))]
    with pytest.raises(DataError) as caught:
        encode_rows(tokenizer, rows, "answer", None, 30)
    lines = str(caught.value).splitlines()
    assert lines[0] == "12 of 13 rows do not fit:"
    length = len(encode_row(tokenizer, rows[1]).input_ids)
    assert (
        lines[1]
        == f"  long-0-sc1: {length} tokens, but the model takes 30: shorten it, or cut all rows with --max_length 30"
    )
    assert lines[-1] == "  and 2 more"
    assert ROW.id not in str(caught.value)
    assert len(encode_rows(tokenizer, rows[:1], "answer", None, None)) == 1


def test_max_length_cuts_on_the_right_and_refuses_to_cut_the_whole_answer(tokenizer: Any) -> None:
    whole = encode_row(tokenizer, ROW)
    prompt = whole.labels.count(IGNORED)
    (cut,) = encode_rows(tokenizer, [ROW], "answer", prompt + 2, 512)
    assert (cut.input_ids, cut.labels) == (whole.input_ids[: prompt + 2], whole.labels[: prompt + 2])
    with pytest.raises(DataError, match=rf"{ROW.id}: no token of the answer is left within {prompt} tokens"):
        encode_rows(tokenizer, [ROW], "answer", prompt, 512)


FORGET = [tokens([10 + i, 2, 3]) for i in range(3)]
ALTERNATIVE = [tokens([10 + i, 5, 6, 7]) for i in range(3)]
RETAIN = [tokens([20 + i, 4]) for i in range(2)]


def test_scored_counts_labels_that_something_stands_before() -> None:
    assert [row.scored for row in (Tokens((5, 6), (5, 6)), Tokens((5,), (5,)), Tokens((), ()), FORGET[0])] == [
        1,
        0,
        0,
        2,
    ]


def test_equal_rows_are_one_key() -> None:
    assert {tokens([1, 2]): "a"}[tokens([1, 2])] == "a"
    assert tokens([1, 2]) != tokens([1, 2], 0)


def test_a_pack_holds_the_keys_rows_side_after_side() -> None:
    sides = Sides(FORGET, RETAIN, ALTERNATIVE)
    pack = sides.pack([Pair((2,), (0,)), Pair((0,), (1,))])
    assert pack.input_ids.tolist() == [12, 2, 3, 10, 2, 3, 12, 5, 6, 7, 10, 5, 6, 7, 20, 4, 21, 4]
    assert (pack.row_counts, pack.token_counts) == ((2, 2, 2), (4, 6, 2))
    assert pack.targets.tolist() == [2, 3, 2, 3, 5, 6, 7, 5, 6, 7, 4, 4]
    assert pack.rows.tolist() == [0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 5]
    assert pack.reference.numel() == 0
    assert len(sides) == 3


def test_a_key_may_have_many_retain_rows_or_no_forget_row() -> None:
    sides = Sides(FORGET, RETAIN)
    assert sides.pack([Pair((1,), (1, 0, 1))]).input_ids.tolist() == [11, 2, 3, 21, 4, 20, 4, 21, 4]
    pack = sides.pack([Pair((), (1,))])
    assert (pack.input_ids.tolist(), pack.row_counts) == ([21, 4], (0, 0, 1))


def test_without_retain_rows_keys_that_name_some_stay_without() -> None:
    """Keys are made for the rows that there are; only a method that leaves one side out sees fewer."""
    assert Sides(FORGET, []).pack([Pair((1,))]).lengths == (3,)
    unused = Sides(FORGET, RETAIN, ALTERNATIVE, use=False).pack([Pair((1,), (0,))])
    assert unused.input_ids.tolist() == [11, 5, 6, 7, 20, 4]
    assert unused.row_counts == (0, 1, 1)


def test_lengths_are_of_all_rows_that_go_through_the_model() -> None:
    assert Sides(FORGET, RETAIN, ALTERNATIVE).lengths(Pair((0,), (1, 0))) == [3, 4, 2, 2]
    assert Sides(FORGET, RETAIN, ALTERNATIVE, use=False).lengths(Pair((0,), (1,))) == [4, 2]
    assert Sides(FORGET, []).lengths(Pair((0,))) == [3]


def test_the_reference_stands_beside_the_tokens_that_it_is_of() -> None:
    sides = Sides(FORGET, RETAIN, ALTERNATIVE)
    sides.reference = {row: torch.tensor([i + 0.25, i + 0.5]) for i, row in enumerate(FORGET)}
    keys = [Pair((2,), (0,)), Pair((0,), (1,))]
    assert sides.pack(keys).reference.tolist() == [2.25, 2.5, 0.25, 0.5]
    sides.reference |= {row: torch.full((3,), 10.0 + i) for i, row in enumerate(ALTERNATIVE)}
    pack = sides.pack(keys)
    assert pack.reference[pack.tokens_of("forget")].tolist() == [2.25, 2.5, 0.25, 0.5]
    assert pack.reference[pack.tokens_of("alternative")].tolist() == [12.0] * 3 + [10.0] * 3


def test_a_step_has_its_own_passes_but_the_sizes_of_all_processes() -> None:
    sides = Sides(FORGET, RETAIN, ALTERNATIVE)
    keys = [Pair((0,), (1,)), Pair((1,), (0,)), Pair((2,), (1,))]
    item = sides[Step([[keys[0]], [keys[2]], []], keys)]
    assert [pack.row_counts for pack in item["packs"]] == [(1, 1, 1), (1, 1, 1), (0, 0, 1)]
    sizes = item["sizes"]
    assert (sizes.forget, sizes.alternative, sizes.retain) == ([2, 2, 2], [3, 3, 3], [1, 1, 1])
    assert item["input_ids"].tolist() == torch.cat([pack.input_ids for pack in item["packs"]]).tolist()


def test_an_empty_pass_has_a_token_but_no_loss() -> None:
    pack = Sides(FORGET, RETAIN).pack([])
    assert (pack.lengths, pack.row_counts, pack.token_counts) == ((1,), (0, 0, 1), (0, 0, 0))
    assert (len(pack.targets), pack.reference.numel()) == (0, 0)


def test_sides_that_are_left_out_are_empty() -> None:
    pack = pack_rows({"retain": RETAIN})
    assert pack.row_counts == (0, 0, 2)
    assert (pack.tokens_of("forget"), pack.rows_of("retain")) == (slice(0, 0), slice(0, 2))
