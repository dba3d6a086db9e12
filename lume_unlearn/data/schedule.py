"""Which rows meet in which optimiser step, and how a step is cut into passes: functions of numbers and seeds alone."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch.utils.data import Sampler

from lume_unlearn.methods.sequential import in_batches
from lume_unlearn.methods.spec import Pair

Item = TypeVar("Item")


@dataclass(frozen=True)
class Step:
    """One optimiser step as one process sees it."""

    passes: list[list[Pair]]
    """The keys of each of this process's forward passes; every process has equally many, some may be empty."""
    keys: list[Pair]
    """The keys of all processes."""


def paired(forget: int, retain: int, batch_size: int, seed: int, epoch: int) -> list[list[Pair]]:
    """The steps of one epoch: each forget row once, in random order, a retain row beside it.

    The retain rows are dealt out in random order too, again and again where there are fewer of them, so that none is
    drawn twice before all were drawn once. A function of the numbers of rows, the seed and the epoch alone.
    """
    draw = np.random.default_rng([seed, epoch])
    forget_order = draw.permutation(forget).tolist()
    if retain:
        deals = -(-forget // retain)
        retain_order = np.concatenate([draw.permutation(retain) for _ in range(deals)]).tolist()
        keys = [Pair((f,), (r,)) for f, r in zip(forget_order, retain_order, strict=False)]
    else:
        keys = [Pair((f,)) for f in forget_order]
    return in_batches(keys, batch_size)


@dataclass(frozen=True)
class Limits:
    """What one forward pass may hold."""

    keys: int | None
    """Items."""
    tokens: int
    """Tokens of all rows; with padding, tokens of the longest row times rows."""
    padded: bool = False

    def allow(self, lengths: Sequence[int], keys: int) -> bool:
        """Whether rows of these lengths, of so many keys, go into one pass."""
        cost = max(lengths) * len(lengths) if self.padded else sum(lengths)
        return cost <= self.tokens and (self.keys is None or keys <= self.keys)


def cut(keys: Sequence[Item], lengths: Callable[[Item], list[int]], limits: Limits) -> list[list[Item]]:
    """Keys (or rows) in as few passes as fit the limits in this order; one too long stands alone."""
    passes: list[list[Item]] = []
    held: list[int] = []
    for key in keys:
        more = lengths(key)
        if passes and limits.allow([*held, *more], len(passes[-1]) + 1):
            passes[-1].append(key)
            held = [*held, *more]  # not in place: the list is the caller's
        else:
            passes.append([key])
            held = more
    return passes


class Steps(Sampler[list[Step]]):
    """One process's view of the steps of an epoch: the keys of each step are dealt out evenly over processes.

    Every process passes the model equally often in a step, since gradients are exchanged in between; those with fewer
    keys get empty passes. No process has to ask another one: each can tell what all of them hold.
    """

    def __init__(
        self,
        steps: Callable[[], list[list[Pair]]],
        count: int,
        lengths: Callable[[Pair], list[int]],
        limits: Limits,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        """Set up the dealing.

        Args:
            steps: gives the steps of the current epoch (asked for when an epoch starts, so that a resumed run goes on
                with the right order).
            count: how many it gives.
            lengths: tokens of each row of a key.
            limits: of one pass.
            process: index of this process.
            processes: how many there are.
        """
        self.steps, self.count, self.lengths, self.limits = steps, count, lengths, limits
        self.process, self.processes = process, processes

    def __len__(self) -> int:
        """Optimiser steps of one epoch."""
        return self.count

    def __iter__(self) -> Iterator[list[Step]]:
        """Each step, as a batch of one."""
        for keys in self.steps():
            shares = [cut(keys[i :: self.processes], self.lengths, self.limits) for i in range(self.processes)]
            own = shares[self.process]
            empty: list[list[Pair]] = [[] for _ in range(max(map(len, shares)) - len(own))]
            yield [Step([*own, *empty], keys)]
