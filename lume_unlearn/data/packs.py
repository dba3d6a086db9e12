"""A pack: rows of very different lengths one after another, without padding (see `model.packing`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from lume_unlearn.data.encode import Tokens
from lume_unlearn.methods.common import IGNORED
from lume_unlearn.methods.spec import Side

SIDES: tuple[Side, ...] = ("forget", "alternative", "retain")
"""In the order in which their rows stand in a pack."""


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
    """(N,) their rows."""
    lengths: tuple[int, ...]
    """(B,) of the rows, on the host: nothing has to be read back from a GPU."""
    row_counts: tuple[int, ...]
    """Rows of each of `SIDES`."""
    token_counts: tuple[int, ...]
    """Labelled tokens of each of `SIDES`."""
    reference: Tensor
    """NLL before unlearning of the first so many of the N tokens, where a method needs it; else empty."""

    def to(self, device: torch.device | str, **kwargs: Any) -> "Pack":
        """The same on another device."""
        moved: dict[str, Any] = {
            field.name: value.to(device, **kwargs)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)

    def tokens_of(self, side: Side) -> slice:
        """Where a side's labelled tokens stand among the N."""
        return _span(self.token_counts, side)

    def rows_of(self, side: Side) -> slice:
        """Where a side's rows stand among the B."""
        return _span(self.row_counts, side)

    def only(self, side: Side) -> "Pack":
        """One side's rows as a pack of their own, without reference values."""
        tokens, rows = self.tokens_of(side), self.rows_of(side)
        start = sum(self.lengths[: rows.start])
        stop = start + sum(self.lengths[rows])
        own = [int(name == side) for name in SIDES]
        return Pack(
            input_ids=self.input_ids[start:stop],
            position_ids=self.position_ids[start:stop],
            bounds=self.bounds[rows.start : rows.stop + 1] - start,
            keep=self.keep[tokens] - start,
            targets=self.targets[tokens],
            rows=self.rows[tokens] - rows.start,
            lengths=self.lengths[rows],
            row_counts=tuple(count * mine for count, mine in zip(self.row_counts, own, strict=True)),
            token_counts=tuple(count * mine for count, mine in zip(self.token_counts, own, strict=True)),
            reference=self.reference[:0],
        )


def _span(counts: Sequence[int], side: Side) -> slice:
    place = SIDES.index(side)
    start = sum(counts[:place])
    return slice(start, start + counts[place])


def pack(
    input_ids: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    row_counts: Sequence[int],
    ignored: int,
    reference: Tensor | None = None,
) -> Pack:
    """Pack rows; a label at a row's first token counts for nothing, since nothing before it could predict it."""
    keep: list[int] = []
    targets: list[int] = []
    rows: list[int] = []
    scored = []
    bounds = [0]
    for row, row_labels in enumerate(labels):
        chosen = [t for t, label in enumerate(row_labels) if t and label != ignored]
        keep += [bounds[-1] + t - 1 for t in chosen]
        targets += [row_labels[t] for t in chosen]
        rows += [row] * len(chosen)
        scored.append(len(chosen))
        bounds.append(bounds[-1] + len(row_labels))
    return Pack(
        input_ids=torch.tensor([token for ids in input_ids for token in ids]),
        position_ids=torch.cat([torch.arange(len(ids)) for ids in input_ids]),
        bounds=torch.tensor(bounds, dtype=torch.int32),
        keep=torch.tensor(keep, dtype=torch.long),
        targets=torch.tensor(targets, dtype=torch.long),
        rows=torch.tensor(rows, dtype=torch.long),
        lengths=tuple(len(ids) for ids in input_ids),
        row_counts=tuple(row_counts),
        token_counts=tuple(sum(scored[_span(row_counts, side)]) for side in SIDES),
        reference=torch.zeros(0) if reference is None else reference,
    )


def pack_rows(sides: Mapping[Side, Sequence[Tokens]]) -> Pack:
    """The rows of each side, one after another."""
    rows = [row for side in SIDES for row in sides.get(side, ())]
    counts = [len(sides.get(side, ())) for side in SIDES]
    return pack([row.input_ids for row in rows], [row.labels for row in rows], counts, IGNORED)
