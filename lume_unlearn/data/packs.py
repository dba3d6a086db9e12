"""A pack: rows of different lengths one after another, without padding (see `model.packing`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lume_unlearn.data.encode import Tokens
from lume_unlearn.methods.base import Side
from lume_unlearn.methods.common import IGNORED

SIDES: tuple[Side, ...] = ("forget", "control", "alternative", "retain")
"""The sides, in the order of their rows in a pack."""


@dataclass(frozen=True)
class TeacherCache:
    """Hidden states of the counterfactual teacher at n labelled tokens in C contexts; smaller than distributions."""

    states: Tensor
    """(C, n, d) hidden states before the output layer."""
    substitute_ids: Tensor
    """(C, n) token ids: see `contexts.Context`."""

    def to(self, device: torch.device | str, **kwargs: Any) -> "TeacherCache":
        """Return the cache on another device."""
        return TeacherCache(self.states.to(device, **kwargs), self.substitute_ids.to(device, **kwargs))


def joined(parts: Sequence[TeacherCache]) -> TeacherCache:
    """Join the caches of several rows; a single context is repeated as often as the other rows have contexts."""
    count = max(len(part.states) for part in parts)
    states = [part.states.expand(count, -1, -1) for part in parts]
    ids = [part.substitute_ids.expand(count, -1) for part in parts]
    return TeacherCache(torch.cat(states, dim=1), torch.cat(ids, dim=1))


@dataclass(frozen=True)
class Pack:
    """Rows one after another (T tokens, B rows), side after side, and their N labelled tokens."""

    input_ids: Tensor
    """(T,)"""
    position_ids: Tensor
    """(T,) from 0 in each row."""
    bounds: Tensor
    """(B + 1,) int32: row b is ``input_ids[bounds[b]:bounds[b + 1]]``."""
    keep: Tensor
    """(N,) the positions that predict a labelled token, ascending."""
    targets: Tensor
    """(N,) the ids of those tokens."""
    rows: Tensor
    """(N,) the row of each of them, from 0."""
    lengths: tuple[int, ...]
    """(B,) tokens of each row, on the host, so that nothing is read back from a GPU."""
    row_counts: tuple[int, ...]
    """Number of rows of each of `SIDES`."""
    token_counts: tuple[int, ...]
    """Number of labelled tokens of each of `SIDES`."""
    reference: Tensor
    """(N,) reference NLL, 0 for sides of which the method needs none; empty if it needs none at all."""
    teacher: TeacherCache | None = None
    """Hidden states of the teacher for the forget rows (or alternatives, with invented persons), if needed."""
    quantiles: Tensor | None = None
    """(forget rows,) see `Batch.quantiles`."""
    texts: Tensor | None = None
    """(forget rows,) bool: see `Batch.texts`."""

    def to(self, device: torch.device | str, **kwargs: Any) -> "Pack":
        """Return the pack on another device."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor | TeacherCache)}
        return replace(self, **{name: value.to(device, **kwargs) for name, value in tensors.items()})  # type: ignore[arg-type]

    def tokens_of(self, side: Side) -> slice:
        """Return where a side's labelled tokens are among the N."""
        return _span(self.token_counts, side)

    def rows_of(self, side: Side) -> slice:
        """Return where a side's rows are among the B."""
        return _span(self.row_counts, side)

    def only(self, *sides: Side) -> "Pack":
        """Return a pack of the rows of one side, or of several that follow each other.

        It has the teacher's cache if it starts with the first side. Without rows it is an `empty_pack`.
        """
        tokens = slice(self.tokens_of(sides[0]).start, self.tokens_of(sides[-1]).stop)
        rows = slice(self.rows_of(sides[0]).start, self.rows_of(sides[-1]).stop)
        if rows.start == rows.stop:
            return empty_pack().to(self.input_ids.device)
        start = sum(self.lengths[: rows.start])
        stop = start + sum(self.lengths[rows])
        return Pack(
            input_ids=self.input_ids[start:stop],
            position_ids=self.position_ids[start:stop],
            bounds=self.bounds[rows.start : rows.stop + 1] - start,
            keep=self.keep[tokens] - start,
            targets=self.targets[tokens],
            rows=self.rows[tokens] - rows.start,
            lengths=self.lengths[rows],
            row_counts=tuple(n if one in sides else 0 for one, n in zip(SIDES, self.row_counts, strict=True)),
            token_counts=tuple(n if one in sides else 0 for one, n in zip(SIDES, self.token_counts, strict=True)),
            reference=self.reference[tokens],
            teacher=self.teacher if sides[0] == "forget" else None,
            quantiles=self.quantiles if sides[0] == "forget" else None,
            texts=self.texts if sides[0] == "forget" else None,
        )


def _span(counts: Sequence[int], side: Side) -> slice:
    index = SIDES.index(side)
    start = sum(counts[:index])
    return slice(start, start + counts[index])


def pack_rows(sides: Mapping[Side, Sequence[Tokens]]) -> Pack:
    """Pack the rows of each side; a label at a row's first token does not count, since nothing predicts it."""
    all_rows = [row for side in SIDES for row in sides.get(side, ())]
    keep: list[int] = []
    targets: list[int] = []
    rows: list[int] = []
    bounds = [0]
    for number, row in enumerate(all_rows):
        keep += [bounds[-1] + t - 1 for t in row.labelled]
        targets += row.targets
        rows += [number] * row.scored
        bounds.append(bounds[-1] + len(row.labels))
    return Pack(
        input_ids=torch.tensor([token for row in all_rows for token in row.input_ids]),
        position_ids=torch.cat([torch.arange(len(row.input_ids)) for row in all_rows]),
        bounds=torch.tensor(bounds, dtype=torch.int32),
        keep=torch.tensor(keep, dtype=torch.long),
        targets=torch.tensor(targets, dtype=torch.long),
        rows=torch.tensor(rows, dtype=torch.long),
        lengths=tuple(len(row.input_ids) for row in all_rows),
        row_counts=tuple(len(sides.get(side, ())) for side in SIDES),
        token_counts=tuple(sum(row.scored for row in sides.get(side, ())) for side in SIDES),
        reference=torch.zeros(0),
    )


def empty_pack() -> Pack:
    """Return a pack of one unlabelled token: no loss, but a forward pass, which all processes must run together."""
    return pack_rows({"retain": [Tokens((0,), (IGNORED,))]})
