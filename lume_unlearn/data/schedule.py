"""Which rows meet in which optimiser step, and how a step is cut into passes: functions of numbers and seeds alone."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch.utils.data import Sampler

Item = TypeVar("Item")


@dataclass(frozen=True)
class Key:
    """What one item of a step is made of: places in the lists of forget and of retain rows."""

    forget: tuple[int, ...] = ()
    retain: tuple[int, ...] = ()


@dataclass(frozen=True)
class Step:
    """One optimiser step as one process sees it."""

    passes: list[list[Key]]
    """The keys of each of this process's forward passes; every process has equally many, some may be empty."""
    keys: list[Key]
    """The keys of all processes."""


def paired(forget: int, retain: int, batch_size: int, seed: int, epoch: int) -> list[list[Key]]:
    """The steps of one epoch: each forget row once, in random order, a retain row beside it.

    The retain rows are dealt out in random order too, again and again where there are fewer of them, so that none is
    drawn twice before all were drawn once. A function of the numbers of rows, the seed and the epoch alone.
    """
    draw = np.random.default_rng([seed, epoch])
    forget_order = draw.permutation(forget).tolist()
    if retain:
        deals = -(-forget // retain)
        retain_order = np.concatenate([draw.permutation(retain) for _ in range(deals)]).tolist()
        keys = [Key((f,), (r,)) for f, r in zip(forget_order, retain_order, strict=False)]
    else:
        keys = [Key((f,)) for f in forget_order]
    return in_batches(keys, batch_size)


def sequential(forget: int, retain: int, batch_size: int, chunk: int, ratio: int, passes: int) -> list[list[list[Key]]]:
    """The phases of SUGD: for each chunk of forget rows, ``passes`` times over the chunk, never shuffled.

    Beside each forget row stand the next ``ratio`` retain rows, going round the retain rows without end; a chunk keeps
    its retain rows in all passes. Source: Premptis et al. 2025 (arXiv 2503.02443), "sequential unlearning". Deviation:
    the authors' rows end without EOS, these as all others do.
    """
    keys = [Key((f,), tuple((f * ratio + i) % retain for i in range(ratio))) for f in range(forget)]
    return [in_batches(part, batch_size) * passes for part in in_batches(keys, chunk)]


def annealed(
    forget: int, retain: int, batch_size: int, chunk: int, share: float, passes: int, seed: int
) -> list[list[list[Key]]]:
    """The phases of AGAD: ascent on a chunk of forget rows, then training on a random share of the retain rows, ...

    After the last chunk comes a phase on all retain rows. Each phase goes ``passes`` times over its rows, in new random
    order each time. Source: Premptis et al. 2025 (arXiv 2503.02443), "alternating gradient ascent-descent".
    """
    draw = np.random.default_rng(seed)

    def phase(keys: Sequence[Key]) -> list[list[Key]]:
        orders = [draw.permutation(len(keys)) for _ in range(passes)]
        return [step for order in orders for step in in_batches([keys[i] for i in order], batch_size)]

    retain_keys = [Key((), (r,)) for r in range(retain)]
    sample = max(1, round(share * retain))
    phases = []
    for part in in_batches([Key((f,)) for f in range(forget)], chunk):
        phases.append(phase(part))
        phases.append(phase([retain_keys[r] for r in draw.choice(retain, sample, replace=False)]))
    return [*phases, phase(retain_keys)]


def warmed_up(factor: Callable[[int], float], warmup: int) -> Callable[[int], float]:
    """(optimiser step, from 0) to the factor of the learning rate: (step + 1) / (warmup + 1), then ``factor`` itself.

    Trainer's own warm-up has factor 0 in the first step, which then changes nothing.
    """
    return lambda step: (step + 1) / (warmup + 1) if step < warmup else factor(step)


def in_batches(keys: Sequence[Key], size: int) -> list[list[Key]]:
    """The keys in their order, ``size`` at a time; the last batch may be smaller."""
    return [list(keys[start : start + size]) for start in range(0, len(keys), size)]


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
        steps: Callable[[], list[list[Key]]],
        count: int,
        lengths: Callable[[Key], list[int]],
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
            empty: list[list[Key]] = [[] for _ in range(max(map(len, shares)) - len(own))]
            yield [Step([*own, *empty], keys)]
