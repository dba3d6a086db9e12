"""Rows to tokens and labels, and the pairs of a step to packs."""

from typing import Any

import pytest
import torch

from lume_tasks.data.rows import Row
from lume_tasks.errors import DataError
from lume_unlearn.data.dataset import Sides
from lume_unlearn.data.encode import Tokens, encode_row, encode_rows
from lume_unlearn.data.schedule import Step
from lume_unlearn.methods.common import IGNORED
from lume_unlearn.methods.spec import Pair

ROW = Row("a-qa0", "What is the birth date of Ada?", "1990-01-02", "Task2")


def tokens(ids: list[int], prompt: int = 1) -> Tokens:
    return Tokens(tuple(ids), (IGNORED,) * prompt + tuple(ids[prompt:]))


class Letters:
    """A tokenizer of letters in which "b c" is one token: the end of an input and the start of its answer merge."""

    eos_token_id: int | None = 0

    def encode(self, text: str) -> list[int]:
        return [1 if piece == "\1" else ord(piece) for piece in text.replace("b c", "\1")]


@pytest.mark.parametrize("bos", [False, True], ids=["plain", "bos"])
def test_the_labels_are_the_answer_and_eos(bos: bool, tokenizer: Any, bos_tokenizer: Any) -> None:
    used = bos_tokenizer if bos else tokenizer
    found = encode_row(used, ROW)
    assert used.decode(found.input_ids) == "<bos>" * bos + f"{ROW.input} {ROW.output}<eos>"
    labels = [label for label in found.labels if label != IGNORED]
    assert used.decode(labels) == f" {ROW.output}<eos>"
    assert found == tokens(list(found.input_ids), len(found.input_ids) - len(labels))
    assert found.scored == len(labels)
    text = encode_row(used, ROW, "text")
    assert text.labels == text.input_ids == found.input_ids
    assert text.scored == len(text.input_ids) - 1


def test_a_token_merged_from_input_and_answer_counts_as_answer() -> None:
    found = encode_row(Letters(), Row("a-sc1", "ab", "cd", "Task1"))
    assert found == Tokens((ord("a"), 1, ord("d"), 0), (IGNORED, 1, ord("d"), 0))


def test_a_tokenizer_that_appends_eos_gets_no_second_one(tokenizer: Any) -> None:
    class Ending:
        eos_token_id = tokenizer.eos_token_id

        def encode(self, text: str) -> list[int]:
            return [*tokenizer.encode(text), self.eos_token_id]

    assert encode_row(Ending(), ROW) == encode_row(tokenizer, ROW)


def test_rows_longer_than_the_context_are_named(tokenizer: Any) -> None:
    rows = [ROW, *(Row(f"long-{i}-sc1", "fox " * 40, "river", "Task1") for i in range(12))]
    length = len(encode_row(tokenizer, rows[1]).input_ids)
    with pytest.raises(DataError) as caught:
        encode_rows(tokenizer, rows, "answer", None, 30)
    head, first, *_, last = str(caught.value).splitlines()
    assert head == "12 of 13 rows do not fit:"
    assert first.startswith(f"  long-0-sc1: {length} tokens, but the model takes 30: shorten it, or cut all rows with")
    assert last == "and 2 more"
    assert ROW.id not in str(caught.value)


def test_max_length_truncates_but_not_the_whole_answer(tokenizer: Any) -> None:
    whole = encode_row(tokenizer, ROW)
    prompt = whole.labels.count(IGNORED)
    (cut,) = encode_rows(tokenizer, [ROW], "answer", prompt + 2, 512)
    assert (cut.input_ids, cut.labels) == (whole.input_ids[: prompt + 2], whole.labels[: prompt + 2])
    with pytest.raises(DataError, match=rf"{ROW.id}: no token of the answer is left within {prompt} tokens"):
        encode_rows(tokenizer, [ROW], "answer", prompt, 512)


FORGET = [tokens([10 + i, 2, 3]) for i in range(3)]
ALTERNATIVE = [tokens([10 + i, 5, 6, 7]) for i in range(3)]
RETAIN = [tokens([20 + i, 4]) for i in range(2)]


def test_a_pack_holds_the_rows_of_its_pairs_side_after_side() -> None:
    sides = Sides(FORGET, RETAIN, ALTERNATIVE)
    pack = sides.pack([Pair((2,), (0,)), Pair((0,), (1,))])
    assert pack.input_ids.tolist() == [12, 2, 3, 10, 2, 3, 12, 5, 6, 7, 10, 5, 6, 7, 20, 4, 21, 4]
    assert (pack.row_counts, pack.token_counts) == ((2, 2, 2), (4, 6, 2))
    assert pack.targets.tolist() == [2, 3, 2, 3, 5, 6, 7, 5, 6, 7, 4, 4]
    assert pack.rows.tolist() == [0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 5]
    assert pack.reference.numel() == 0


@pytest.mark.parametrize(
    ("sides", "pair", "ids"),
    [
        (Sides(FORGET, RETAIN), Pair((1,), (1, 0, 1)), [[11, 2, 3], [21, 4], [20, 4], [21, 4]]),
        (Sides(FORGET, RETAIN), Pair((), (1,)), [[21, 4]]),
        (Sides(FORGET, []), Pair((1,)), [[11, 2, 3]]),
        (Sides(FORGET, RETAIN, ALTERNATIVE, use=False), Pair((1,), (0,)), [[11, 5, 6, 7], [20, 4]]),
    ],
    ids=["several-retain-rows", "no-forget-row", "no-retain-rows", "alternatives-alone"],
)
def test_a_pack_of_one_pair(sides: Sides, pair: Pair, ids: list[list[int]]) -> None:
    assert sides.pack([pair]).input_ids.tolist() == [token for row in ids for token in row]
    assert sides.lengths(pair) == [len(row) for row in ids]


def test_the_reference_nll_is_in_the_order_of_the_labelled_tokens() -> None:
    sides = Sides(FORGET, RETAIN, ALTERNATIVE)
    sides.reference = {row: torch.tensor([i + 0.25, i + 0.5]) for i, row in enumerate(FORGET)}
    pairs = [Pair((2,), (0,)), Pair((0,), (1,))]
    assert sides.pack(pairs).reference.tolist() == [2.25, 2.5, 0.25, 0.5]
    sides.reference |= {row: torch.full((3,), 10.0 + i) for i, row in enumerate(ALTERNATIVE)}
    pack = sides.pack(pairs)
    assert pack.reference[pack.tokens_of("forget")].tolist() == [2.25, 2.5, 0.25, 0.5]
    assert pack.reference[pack.tokens_of("alternative")].tolist() == [12.0] * 3 + [10.0] * 3


def test_an_item_has_the_packs_of_one_process_and_the_counts_and_names_of_all() -> None:
    names = {"forget": ["f0", "f1", "f2"], "retain": ["r0", "r1"]}
    sides = Sides(FORGET, RETAIN, ALTERNATIVE, names=names)
    pairs = [Pair((0,), (1,)), Pair((1,), (0,)), Pair((2,), (1,))]
    item = sides[Step([[pairs[0]], [pairs[2]], []], pairs)]
    assert [pack.row_counts for pack in item["packs"]] == [(1, 1, 1), (1, 1, 1), (0, 0, 1)]
    counts = item["sizes"]
    assert (counts.forget, counts.alternative, counts.retain) == ([2, 2, 2], [3, 3, 3], [1, 1, 1])
    assert item["names"] == ["f0", "f1", "f2", "r1", "r0", "r1"]
    assert item["input_ids"].tolist() == torch.cat([pack.input_ids for pack in item["packs"]]).tolist()
    empty = item["packs"][-1]
    assert (empty.lengths, empty.token_counts, len(empty.targets)) == ((1,), (0, 0, 0), 0)
