"""Choose the rows of each optimiser step, and cut steps into micro-batches, by numbers and seeds alone."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from lume_unlearn.methods.base import Item, Pair, in_batches


@dataclass(frozen=True)
class Step:
    """One optimiser step for one process."""

    micro_batches: list[list[Pair]]
    """The pairs of each micro-batch of this process; all processes have equally many; some may be empty."""
    pairs: list[Pair]
    """The pairs of all processes."""


def paired(forget: int, retain: int, batch_size: int, seed: int, epoch: int) -> list[list[Pair]]:
    """Return the steps of one epoch: each forget row once, in random order, each with a random retain row.

    Every retain row is used once before one is used again. The result depends on the arguments alone.
    """
    random = np.random.default_rng([seed, epoch])
    forget_order = random.permutation(forget).tolist()
    if not retain:
        return in_batches([Pair((f,)) for f in forget_order], batch_size)
    repeats = -(-forget // retain)
    retain_order = np.concatenate([random.permutation(retain) for _ in range(repeats)]).tolist()
    return in_batches([Pair((f,), (r,)) for f, r in zip(forget_order, retain_order, strict=False)], batch_size)


def cut(
    items: Sequence[Item], lengths: Callable[[Item], list[int]], max_tokens: int, padded: bool = False
) -> list[list[Item]]:
    """Cut pairs (or rows) into as few micro-batches of at most ``max_tokens`` tokens as this order allows.

    Args:
        items: pairs or rows.
        lengths: returns the number of tokens of each row of an item.
        max_tokens: limit for all rows of a micro-batch. An item above the limit gets a micro-batch for itself.
        padded: whether padding counts, too.
    """
    micro_batches: list[list[Item]] = []
    held: list[int] = []
    for item in items:
        both = [*held, *lengths(item)]
        tokens = max(both) * len(both) if padded else sum(both)
        if micro_batches and tokens <= max_tokens:
            micro_batches[-1].append(item)
            held = both
        else:
            micro_batches.append([item])
            held = lengths(item)
    return micro_batches


@dataclass(eq=False)
class Steps(Sampler[list[Step]]):
    """The optimiser steps of an epoch for one process, which gets every n-th pair of each step.

    All processes run equally many micro-batches in a step, since they exchange gradients in between; those with fewer
    get empty ones. Each process computes the micro-batches of all, without communication.
    """

    steps: Callable[[], list[list[Pair]]]
    """Returns the steps of the current epoch; called when it starts, so that a resumed run has the right order."""
    count: int
    """Number of these steps."""
    lengths: Callable[[Pair], list[int]]
    """Returns the number of tokens of each row of a pair."""
    max_tokens: int
    """Maximum tokens of one micro-batch; with ``padded``, padding counts, too."""
    padded: bool = False
    process: int = 0
    processes: int = 1

    def __len__(self) -> int:
        """Return the optimiser steps of one epoch."""
        return self.count

    def __iter__(self) -> Iterator[list[Step]]:
        """Yield each step, as a batch of one."""
        for pairs in self.steps():
            parts = [pairs[i :: self.processes] for i in range(self.processes)]
            shares = [cut(part, self.lengths, self.max_tokens, self.padded) for part in parts]
            most = max(len(share) for share in shares)
            own = shares[self.process]
            empty: list[list[Pair]] = [[] for _ in range(most - len(own))]
            yield [Step([*own, *empty], pairs)]
