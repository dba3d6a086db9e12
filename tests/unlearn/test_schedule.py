"""Which rows share a step, and how steps are cut into micro-batches and distributed over processes."""

import random
from collections import Counter
from itertools import chain

import pytest
import torch

from lume_unlearn.data.schedule import Steps, cut, paired
from lume_unlearn.methods.base import Pair
from lume_unlearn.methods.sequential import AGAD, SUGD


def flat(steps: list[list[Pair]]) -> list[Pair]:
    return list(chain.from_iterable(steps))


@pytest.mark.parametrize(("forget", "retain"), [(12, 12), (12, 30), (12, 5), (7, 1)])
def test_an_epoch_uses_each_forget_row_once_and_all_retain_rows_before_one_is_used_again(forget, retain):
    steps = paired(forget, retain, 5, seed=3, epoch=0)
    assert [len(step) for step in steps] == [5] * (forget // 5) + [forget % 5]
    pairs = flat(steps)
    assert all((len(pair.forget), len(pair.retain)) == (1, 1) for pair in pairs)
    assert sorted(pair.forget[0] for pair in pairs) == list(range(forget))
    used = [pair.retain[0] for pair in pairs]
    for start in range(0, forget, retain):
        part = used[start : start + retain]
        assert len(set(part)) == len(part)
        assert set(part) <= set(range(retain))


def test_the_pairs_depend_on_seed_and_epoch_alone():
    torch.manual_seed(1)
    first = flat(paired(40, 40, 8, 0, 2))
    torch.manual_seed(2)
    assert flat(paired(40, 40, 3, 0, 2)) == first  # another batch size cuts the same order elsewhere
    for other in (flat(paired(40, 40, 8, 0, 3)), flat(paired(40, 40, 8, 1, 2))):
        assert [pair.forget for pair in other] != [pair.forget for pair in first]
        assert {pair.forget: pair.retain for pair in other} != {pair.forget: pair.retain for pair in first}


def test_sequential_by_hand():
    """Five forget rows in chunks of two, each with two of five retain rows, batches of one, two epochs."""
    chunks = [
        [Pair((0,), (0, 1)), Pair((1,), (2, 3))],
        [Pair((2,), (4, 0)), Pair((3,), (1, 2))],
        [Pair((4,), (3, 4))],
    ]
    expected = [[[pair] for pair in chunk] * 2 for chunk in chunks]
    assert SUGD(2, 2).phases(5, 5, batch_size=1, epochs=2, seed=0) == expected
    # A batch does not extend over the end of an epoch.
    assert SUGD(2, 2).phases(5, 5, batch_size=3, epochs=2, seed=0) == [[chunk, chunk] for chunk in chunks]
    # More retain rows for one forget row than there are.
    assert SUGD(32, 5).phases(1, 2, 1, 1, 0) == [[[Pair((0,), (0, 1, 0, 1, 0))]]]


def test_annealed_by_hand():
    """Five forget rows in chunks of two: ascent, annealing, three times, then all eight retain rows."""
    phases = AGAD(2, 0.25).phases(5, 8, batch_size=3, epochs=2, seed=4)
    assert [[len(step) for step in phase] for phase in phases] == [[2, 2]] * 4 + [[1, 1], [2, 2], [3, 3, 2] * 2]
    ascents, annealings, last = phases[:6:2], phases[1:6:2], phases[6]
    for number, phase in enumerate(ascents):
        chunk = range(5)[2 * number : 2 * number + 2]
        assert Counter(flat(phase)) == {Pair((f,)): 2 for f in chunk}
    for phase in annealings:
        counts = Counter(flat(phase))
        assert (len(counts), set(counts.values())) == (2, {2})  # the same sample in both epochs
        assert all(pair.forget == () and len(pair.retain) == 1 for pair in counts)
    assert Counter(flat(last)) == {Pair((), (r,)): 2 for r in range(8)}
    assert flat(last)[:8] != flat(last)[8:]  # in a new order


@pytest.mark.parametrize(
    ("max_tokens", "padded", "expected"),
    [
        (45, False, [[0, 1, 2, 3, 4]]),  # 45 tokens in all: the limit itself is allowed
        (44, False, [[0, 1, 2, 3], [4]]),
        (15, False, [[0], [1], [2, 3], [4]]),
        (1, False, [[0], [1], [2], [3], [4]]),  # a pair above the limit gets a micro-batch for itself
        # Padded: 4 rows of 10 cost 40, and the row of 2 beside them makes two of 10.
        (40, True, [[0, 1], [2, 3], [4]]),
        (60, True, [[0, 1, 2], [3, 4]]),
    ],
)
def test_cut_by_hand(max_tokens, padded, expected):
    lengths = [[10, 2], [5, 3], [8, 2], [2, 3], [5, 5]]
    assert cut(range(5), lambda item: lengths[item], max_tokens, padded) == expected


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_processes_share_the_pairs_of_each_step_in_equally_many_micro_batches(processes):
    generator = random.Random(13)
    lengths = [generator.randint(1, 70) for _ in range(13)]
    epoch = paired(13, 0, 5, 0, 0)
    samplers = [
        Steps(lambda: epoch, len(epoch), lambda pair: [lengths[pair.forget[0]]], 60, False, process, processes)
        for process in range(processes)
    ]
    assert [len(sampler) for sampler in samplers] == [len(epoch)] * processes
    for pairs, *batches in zip(epoch, *samplers, strict=True):
        steps = [step for (step,) in batches]
        assert all(step.pairs == pairs for step in steps)  # each process knows the whole step
        assert Counter(pair for step in steps for pair in flat(step.micro_batches)) == Counter(pairs)
        assert len({len(step.micro_batches) for step in steps}) == 1
        assert max(len(flat(step.micro_batches)) for step in steps) == -(-len(pairs) // processes)
        assert any(all(step.micro_batches) for step in steps)  # no micro-batch is empty on all
