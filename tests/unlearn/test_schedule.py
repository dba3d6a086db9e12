"""Which rows meet in which step, and how steps are cut into passes and dealt to processes."""

import random
from collections import Counter
from itertools import chain, pairwise

import pytest
import torch

from lume_unlearn.data.schedule import Limits, Step, Steps, cut, paired
from lume_unlearn.methods.sequential import annealed, in_batches, sequential
from lume_unlearn.methods.spec import Pair

UNLIMITED = Limits(None, 10**9)


def keys_of(steps: list[list[Pair]]) -> list[Pair]:
    return list(chain.from_iterable(steps))


@pytest.mark.parametrize(("forget", "retain"), [(12, 12), (12, 30), (12, 5), (1, 1), (7, 1)])
def test_an_epoch_takes_each_forget_row_once_and_deals_retain_rows_evenly(forget: int, retain: int) -> None:
    steps = paired(forget, retain, 5, seed=3, epoch=0)
    assert [len(step) for step in steps] == [5] * (forget // 5) + [forget % 5] * (forget % 5 > 0)
    keys = keys_of(steps)
    assert all((len(key.forget), len(key.retain)) == (1, 1) for key in keys)
    assert sorted(key.forget[0] for key in keys) == list(range(forget))
    dealt = [key.retain[0] for key in keys]
    for start in range(0, forget, retain):  # none twice before all were drawn once
        deal = dealt[start : start + retain]
        assert len(set(deal)) == len(deal)
        assert set(deal) <= set(range(retain))


def test_the_pairs_are_a_function_of_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    random.seed(1)
    first = keys_of(paired(40, 40, 8, 0, 2))
    torch.manual_seed(2)
    random.seed(2)
    assert keys_of(paired(40, 40, 8, 0, 2)) == first
    assert keys_of(paired(40, 40, 3, 0, 2)) == first  # the batch size only cuts
    others = [keys_of(paired(40, 40, 8, 0, 3)), keys_of(paired(40, 40, 8, 1, 2))]
    for other in others:
        assert [key.forget for key in other] != [key.forget for key in first]
        # The partner of a row changes too, not only its place.
        assert {key.forget: key.retain for key in other} != {key.forget: key.retain for key in first}


def test_without_retain_rows_the_forget_order_stays() -> None:
    alone = keys_of(paired(9, 0, 4, 5, 1))
    assert [key.forget for key in alone] == [key.forget for key in keys_of(paired(9, 9, 4, 5, 1))]
    assert all(key.retain == () for key in alone)


def test_sequential_by_hand() -> None:
    """Five forget rows in chunks of two, two of five retain rows beside each, batches of one, two passes."""
    chunks = [
        [Pair((0,), (0, 1)), Pair((1,), (2, 3))],
        [Pair((2,), (4, 0)), Pair((3,), (1, 2))],
        [Pair((4,), (3, 4))],
    ]
    expected = [[[key] for key in chunk] * 2 for chunk in chunks]
    assert sequential(5, 5, batch_size=1, chunk=2, ratio=2, epochs=2) == expected
    # A batch does not reach over the end of a pass.
    by_three = sequential(5, 5, batch_size=3, chunk=2, ratio=2, epochs=2)
    assert by_three == [[chunk, chunk] for chunk in chunks]


def test_sequential_with_more_retain_rows_beside_one_than_there_are() -> None:
    assert sequential(1, 2, 1, 32, 5, 1) == [[[Pair((0,), (0, 1, 0, 1, 0))]]]


def test_annealed_by_hand() -> None:
    """Five forget rows in chunks of two: ascent, annealing, three times, then all eight retain rows."""
    phases = annealed(5, 8, batch_size=3, chunk=2, share=0.25, epochs=2, seed=4)
    assert [[len(step) for step in phase] for phase in phases] == [[2, 2]] * 4 + [[1, 1], [2, 2], [3, 3, 2] * 2]
    ascents, annealings, last = phases[:6:2], phases[1:6:2], phases[6]
    for number, phase in enumerate(ascents):
        rows = [(f,) for f in range(5)][2 * number : 2 * number + 2]
        assert Counter(keys_of(phase)) == {Pair(row): 2 for row in rows}
    for phase in annealings:
        counts = Counter(keys_of(phase))
        assert set(counts.values()) == {2}  # the same sample in both passes
        assert len(counts) == 2
        assert all(key.forget == () and len(key.retain) == 1 for key in counts)
    assert Counter(keys_of(last)) == {Pair((), (r,)): 2 for r in range(8)}
    assert keys_of(last)[:8] != keys_of(last)[8:]  # in a new order


def test_annealed_is_a_function_of_its_seed_and_draws_anew_after_each_chunk() -> None:
    first = annealed(8, 40, 4, 4, 0.25, 1, seed=0)
    assert annealed(8, 40, 4, 4, 0.25, 1, seed=0) == first
    assert annealed(8, 40, 4, 4, 0.25, 1, seed=1) != first
    assert set(keys_of(first[1])) != set(keys_of(first[3]))
    assert len(keys_of(annealed(2, 3, 4, 4, 0.01, 1, 0)[1])) == 1  # a share of nothing is still a row


def test_batches_keep_the_order_and_every_key() -> None:
    keys = [Pair((i,)) for i in range(7)]
    assert [len(batch) for batch in in_batches(keys, 3)] == [3, 3, 1]
    assert keys_of(in_batches(keys, 3)) == keys
    assert in_batches([], 3) == []


def cut_lengths(lengths: list[list[int]], limits: Limits) -> list[list[int]]:
    """Places of the keys in each pass, for keys of rows of such lengths."""
    keys = [Pair((i,)) for i in range(len(lengths))]
    passes = cut(keys, lambda key: lengths[key.forget[0]], limits)
    return [[key.forget[0] for key in one] for one in passes]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(None, 100), [[0, 1, 2, 3, 4]]),
        (Limits(None, 45), [[0, 1, 2, 3, 4]]),  # 45 tokens in all: the limit itself is allowed
        (Limits(None, 44), [[0, 1, 2, 3], [4]]),
        (Limits(None, 20), [[0, 1], [2, 3], [4]]),
        (Limits(None, 15), [[0], [1], [2, 3], [4]]),
        (Limits(None, 1), [[0], [1], [2], [3], [4]]),  # a key too long for any pass stands alone
        (Limits(2, 100), [[0, 1], [2, 3], [4]]),
        (Limits(2, 19), [[0], [1, 2], [3, 4]]),
        # Padded: 4 rows of 10 cost 40, and the row of 2 beside them makes two of 10.
        (Limits(None, 40, padded=True), [[0, 1], [2, 3], [4]]),
        (Limits(None, 60, padded=True), [[0, 1, 2], [3, 4]]),
        (Limits(None, 100, padded=True), [[0, 1, 2, 3, 4]]),
    ],
)
def test_cut_by_hand(limits: Limits, expected: list[list[int]]) -> None:
    lengths = [[10, 2], [5, 3], [8, 2], [2, 3], [5, 5]]
    assert cut_lengths(lengths, limits) == expected


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("keys", [None, 1, 3])
@pytest.mark.parametrize("tokens", [1, 50, 200])
def test_cut_keeps_order_and_limits_and_wastes_no_pass(tokens: int, keys: int | None, padded: bool) -> None:
    draw = random.Random(tokens)
    lengths = [[draw.randint(1, 60) for _ in range(draw.randint(1, 3))] for _ in range(60)]
    passes = cut_lengths(lengths, Limits(keys, tokens, padded))
    assert list(chain.from_iterable(passes)) == list(range(60))

    def fits(places: list[int]) -> bool:
        rows = [length for place in places for length in lengths[place]]
        cost = max(rows) * len(rows) if padded else sum(rows)
        return cost <= tokens and len(places) <= (keys or 60)

    assert all(fits(one) or len(one) == 1 for one in passes)
    assert not any(fits([*one, after[0]]) for one, after in pairwise(passes))


def deal(epoch: list[list[Pair]], lengths: list[int], limits: Limits, processes: int) -> list[list[Step]]:
    """[optimiser step][process] as the data loaders of the processes get them."""
    samplers = [
        Steps(lambda: epoch, len(epoch), lambda key: [lengths[key.forget[0]]], limits, process, processes)
        for process in range(processes)
    ]
    assert [len(sampler) for sampler in samplers] == [len(epoch)] * processes
    batches = [list(sampler) for sampler in samplers]
    assert all(len(batch) == 1 for mine in batches for batch in mine)
    return [[batch[0] for batch in step] for step in zip(*batches, strict=True)]


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("limits", [UNLIMITED, Limits(1, 10**9), Limits(2, 60), Limits(None, 80, padded=True)])
@pytest.mark.parametrize(("count", "batch"), [(12, 4), (13, 4), (13, 5), (3, 8), (9, 8)])
def test_every_step_holds_the_same_keys_however_they_are_dealt(
    count: int, batch: int, limits: Limits, processes: int
) -> None:
    draw = random.Random(count)
    lengths = [draw.randint(1, 70) for _ in range(count)]
    epoch = paired(count, 0, batch, 0, 0)
    for keys, step in zip(epoch, deal(epoch, lengths, limits, processes), strict=True):
        assert all(mine.keys == keys for mine in step)  # everyone knows the whole step
        dealt = [key for mine in step for one in mine.passes for key in one]
        assert Counter(dealt) == Counter(keys)
        assert len({len(mine.passes) for mine in step}) == 1  # as many passes on every process
        assert max(map(len, (keys_of(mine.passes) for mine in step))) == -(-len(keys) // processes)
        assert any(all(mine.passes) for mine in step)  # no pass is empty for all
        for mine in step:
            filled = [one for one in mine.passes if one]
            assert filled == mine.passes[: len(filled)]  # the empty ones come last
            assert filled == cut(keys_of(filled), lambda key: [lengths[key.forget[0]]], limits)


def test_two_processes_by_hand() -> None:
    keys = [Pair((i,)) for i in range(3)]
    first, second = deal([keys], [9, 9, 9], Limits(1, 100), 2)[0]
    assert first.passes == [[keys[0]], [keys[2]]]
    assert second.passes == [[keys[1]], []]


def test_the_steps_are_asked_for_when_an_epoch_starts() -> None:
    epoch = [0]
    sampler = Steps(lambda: paired(6, 6, 2, 0, epoch[0]), 3, lambda key: [1, 1], UNLIMITED)
    for number in (0, 1):
        epoch[0] = number
        assert [step.keys for (step,) in sampler] == paired(6, 6, 2, 0, number)
