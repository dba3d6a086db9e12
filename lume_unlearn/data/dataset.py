"""The encoded rows of a run, and the packs of one optimiser step."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lume_unlearn.data.encode import Tokens
from lume_unlearn.data.packs import SIDES, Pack, pack_rows
from lume_unlearn.data.schedule import Step
from lume_unlearn.methods.common import IGNORED
from lume_unlearn.methods.spec import Pair, Side, TokenCounts


class Sides(Dataset[dict[str, Any]]):
    """The encoded rows of a run; an item is all that one optimiser step needs."""

    def __init__(
        self,
        forget: Sequence[Tokens],
        retain: Sequence[Tokens],
        alternative: Sequence[Tokens] = (),
        use: bool = True,
        names: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Hold the rows.

        Args:
            forget: forget rows; a row may stand there several times, with an alternative each.
            retain: retain rows.
            alternative: nothing, or for each of ``forget`` the same prompt with another answer.
            use: whether the forget rows themselves go through the model (some methods need the alternatives alone).
            names: what to call the forget and the retain rows in messages.
        """
        self.forget, self.retain, self.alternative, self.use = forget, retain, alternative, use
        self.names = names or {}
        self.reference: dict[Tokens, Tensor] = {}
        """(labelled tokens,) NLL of a row before unlearning, for the rows of which a method needs it."""

    def __len__(self) -> int:
        """Forget rows."""
        return len(self.forget)

    def __getitem__(self, step: Step) -> dict[str, Any]:
        """The step's packs on this process, sizes and names of all its rows, and tokens for Trainer's counters."""
        packs = [self.pack(keys) for keys in step.passes]
        sizes = {side: [row.scored for row in rows] for side, rows in self.rows(step.keys).items()}
        tokens = torch.cat([part.input_ids for part in packs])
        return {"packs": packs, "sizes": TokenCounts(**sizes), "names": self.named(step.keys), "input_ids": tokens}

    def named(self, keys: Sequence[Pair]) -> list[str]:
        """The names of all rows of some keys."""
        sides = {"forget": [key.forget for key in keys], "retain": [key.retain for key in keys]}
        return [
            self.names[side][index]
            for side, places in sides.items()
            if side in self.names
            for place in places
            for index in place
        ]

    def rows(self, keys: Sequence[Pair]) -> dict[Side, list[Tokens]]:
        """The rows of some keys, by side."""
        forget = [index for key in keys for index in key.forget]
        return {
            "forget": [self.forget[index] for index in forget] if self.use else [],
            "alternative": [self.alternative[index] for index in forget] if self.alternative else [],
            "retain": [self.retain[index] for key in keys for index in key.retain] if self.retain else [],
        }

    def lengths(self, key: Pair) -> list[int]:
        """Tokens of each row of a key."""
        return [len(row.input_ids) for rows in self.rows([key]).values() for row in rows]

    def pack(self, keys: Sequence[Pair]) -> Pack:
        """The rows of some keys as one pack.

        No keys give a single token without label: no loss, but a pass that the other processes can wait for.
        """
        if not keys:
            return pack_rows({"retain": [Tokens((0,), (IGNORED,))]})
        sides = self.rows(keys)
        values = [self.reference[row] for side in SIDES for row in sides[side] if row in self.reference]
        return replace(pack_rows(sides), reference=torch.cat(values) if values else torch.zeros(0))
