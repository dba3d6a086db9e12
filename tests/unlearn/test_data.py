"""Rows to tokens and labels, and which rows go into which pass."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from lume_tasks.rows import DataError, Row
from lume_unlearn.data import (
    MicroBatches,
    PairDataset,
    Tokens,
    collate,
    encode_row,
    encode_rows,
    epoch_pairs,
    passes_per_step,
)
from lume_unlearn.losses import IGNORED

ROW = Row("a-qa0", "What is the birth date of Ada?", "1990-01-02", "Task2")


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
    tokens = encode_row(used, ROW)
    assert used.decode(tokens.input_ids) == "<bos>" * bos + f"{ROW.input} {ROW.output}<eos>"
    assert used.decode(labelled(tokens)) == f" {ROW.output}<eos>"
    # The label of a position is its own token, and the labelled ones are the last.
    prompt = len(tokens.input_ids) - len(labelled(tokens))
    assert tokens.labels == [IGNORED] * prompt + tokens.input_ids[prompt:]
    assert tokens.scored == len(labelled(tokens))


def test_with_loss_on_the_text_everything_counts_that_something_stands_before(
    tokenizer: Any, bos_tokenizer: Any
) -> None:
    for used in (tokenizer, bos_tokenizer):
        tokens = encode_row(used, ROW, "text")
        assert tokens.labels == tokens.input_ids
        assert tokens.scored == len(tokens.input_ids) - 1
    without, with_bos = encode_row(tokenizer, ROW, "text"), encode_row(bos_tokenizer, ROW, "text")
    assert with_bos.scored >= without.scored  # behind BOS the first token of the text counts too


def test_a_token_merged_out_of_input_and_answer_counts_as_answer() -> None:
    tokens = encode_row(Merging(), Row("a-sc1", "ab", "cd", "Task1"))
    assert tokens.input_ids == [ord("a"), 1, ord("d"), 0]
    assert tokens.labels == [IGNORED, 1, ord("d"), 0]


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


@pytest.mark.parametrize(("forget", "retain"), [(12, 12), (12, 30), (12, 5), (1, 1), (7, 1)])
def test_an_epoch_takes_each_forget_row_once_and_deals_retain_rows_evenly(forget: int, retain: int) -> None:
    pairs = epoch_pairs(forget, retain, seed=3, epoch=0)
    assert sorted(index for index, _ in pairs) == list(range(forget))
    dealt = [index for _, index in pairs]
    for start in range(0, forget, retain):  # none twice before all were drawn once
        deal = dealt[start : start + retain]
        assert len(set(deal)) == len(deal)
        assert set(deal) <= set(range(retain))


def test_the_pairs_are_a_function_of_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    first = epoch_pairs(40, 40, 0, 2)
    torch.manual_seed(2)
    assert epoch_pairs(40, 40, 0, 2) == first
    others = [epoch_pairs(40, 40, 0, 3), epoch_pairs(40, 40, 1, 2)]
    assert all([pair[side] for pair in other] != [pair[side] for pair in first] for other in others for side in (0, 1))
    # The partner of a row changes too, not only its place.
    assert dict(others[0]) != dict(first)


def test_without_retain_rows_the_forget_order_stays() -> None:
    assert [index for index, _ in epoch_pairs(9, 0, 5, 1)] == [index for index, _ in epoch_pairs(9, 9, 5, 1)]


def steps(count: int, batch: int, micro: int, processes: int) -> list[list[list[list[int]]]]:
    """Forget indices as [optimiser step][process][pass][row]."""
    pairs = [(index, 0) for index in range(count)]
    dealt = [list(MicroBatches(lambda: pairs, count, batch, micro, p, processes)) for p in range(processes)]
    lengths = [len(MicroBatches(lambda: pairs, count, batch, micro, p, processes)) for p in range(processes)]
    assert lengths == [len(passes) for passes in dealt]
    passes = passes_per_step(batch, micro, processes)
    starts = range(0, lengths[0], passes)
    return [[[[i for i, _ in one] for one in mine[s : s + passes]] for mine in dealt] for s in starts]


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("micro", [1, 2, 4, 5, 100])
@pytest.mark.parametrize(("count", "batch"), [(12, 4), (13, 4), (13, 5), (3, 8), (9, 8)])
def test_every_step_holds_the_same_rows_however_they_are_dealt(
    count: int, batch: int, micro: int, processes: int
) -> None:
    dealt = steps(count, batch, micro, processes)
    bounds = [*range(0, count, batch), count]
    for step, (start, stop) in zip(dealt, pairwise(bounds), strict=True):
        rows = [row for mine in step for one in mine for row in one]
        assert sorted(rows) == list(range(start, stop))
        assert len({len(mine) for mine in step}) == 1  # as many passes on every process
        sizes = [len(one) for mine in step for one in mine]
        assert max(sizes) <= micro
    # Trainer counts steps by full rounds of accumulation; only the last step of an epoch may have fewer passes.
    assert all(len(mine) == passes_per_step(batch, micro, processes) for step in dealt[:-1] for mine in step)


def test_the_epoch_is_looked_up_when_it_starts() -> None:
    epoch = [0]
    batches = MicroBatches(lambda: epoch_pairs(6, 6, 0, epoch[0]), 6, 2, 2)
    first = list(batches)
    epoch[0] = 1
    assert [pair for one in batches for pair in one] == epoch_pairs(6, 6, 0, 1)
    assert [pair for one in first for pair in one] == epoch_pairs(6, 6, 0, 0)


def make_dataset(reference: bool) -> PairDataset:
    forget = [Tokens([10 + i, 2, 3], [IGNORED, 2, 3]) for i in range(3)]
    retain = [Tokens([20 + i, 4], [IGNORED, 4]) for i in range(2)]
    return PairDataset(forget, retain, torch.tensor([1.5, 2.5, 3.5]) if reference else None)


@pytest.mark.parametrize("reference", [False, True])
def test_a_batch_is_all_forget_rows_then_all_retain_rows(reference: bool) -> None:
    dataset = make_dataset(reference)
    pack = collate([dataset[2, 0], dataset[0, 1]])["pack"]
    assert pack.input_ids.tolist() == [12, 2, 3, 10, 2, 3, 20, 4, 21, 4]
    assert (pack.forget_rows, pack.forget_tokens) == (2, 4)
    assert pack.targets.tolist() == [2, 3, 2, 3, 4, 4]
    assert pack.reference.tolist() == ([3.5, 1.5] if reference else [])


def test_without_retain_rows_a_batch_holds_forget_rows_alone() -> None:
    pack = collate([PairDataset(make_dataset(False).forget, [])[1, 0]])["pack"]
    assert pack.lengths == (3,)
    assert pack.retain().lengths == ()


def test_an_empty_micro_batch_has_a_token_but_no_loss() -> None:
    pack = collate([])["pack"]
    assert (pack.lengths, pack.forget_rows, pack.forget_tokens, len(pack.targets)) == ((1,), 0, 0, 0)
    assert pack.reference.numel() == 0
