"""The encoded rows of a run, and the packs of one optimiser step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lume_unlearn.data.encode import Tokens
from lume_unlearn.data.packs import SIDES, Pack, Seen, joined, pack_rows
from lume_unlearn.data.schedule import Step
from lume_unlearn.methods.common import IGNORED
from lume_unlearn.methods.spec import Pair, Side, TokenCounts


@dataclass(eq=False)
class Sides(Dataset[dict[str, Any]]):
    """The encoded forget, alternative and retain rows of a run; an item is everything that one optimiser step needs."""

    forget: Sequence[Tokens]
    """A row with several alternatives is there once for each."""
    retain: Sequence[Tokens]
    alternative: Sequence[Tokens] = ()
    """Nothing, or for each of ``forget`` the same prompt with another answer."""
    use: bool = True
    """Whether the model in training reads the forget rows (some methods read only the alternatives)."""
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Ids of the forget and of the retain rows, for messages."""
    reference: dict[Tokens, Tensor] = field(default_factory=dict)
    """(labelled tokens,) reference NLL, for the rows of which a method needs it."""
    seen: dict[Tokens, Seen] = field(default_factory=dict)
    """What the counterfactual teacher saw of each forget row, if the method has one."""

    def __len__(self) -> int:
        """Forget rows."""
        return len(self.forget)

    def __getitem__(self, step: Step) -> dict[str, Any]:
        """Return the packs of this process, the counts and names of the step's rows, and tokens for Trainer's count."""
        packs = [self.pack(pairs) for pairs in step.micro_batches]
        sizes = {side: [row.scored for row in rows] for side, rows in self.rows(step.pairs).items()}
        tokens = torch.cat([pack.input_ids for pack in packs])
        return {"packs": packs, "sizes": TokenCounts(**sizes), "names": self.named(step.pairs), "input_ids": tokens}

    def named(self, pairs: Sequence[Pair]) -> list[str]:
        """Return the names of the rows of some pairs."""
        if not self.names:
            return []
        forget = [self.names["forget"][index] for pair in pairs for index in pair.forget]
        return forget + [self.names["retain"][index] for pair in pairs for index in pair.retain]

    def rows(self, pairs: Sequence[Pair]) -> dict[Side, list[Tokens]]:
        """Return the rows of some pairs, by side."""
        forget = [index for pair in pairs for index in pair.forget]
        retain = [index for pair in pairs for index in pair.retain]
        return {
            "forget": [self.forget[index] for index in forget] if self.use else [],
            "alternative": [self.alternative[index] for index in forget] if self.alternative else [],
            "retain": [self.retain[index] for index in retain] if self.retain else [],
        }

    def lengths(self, pair: Pair) -> list[int]:
        """Return the tokens of each row of a pair."""
        return [len(row.input_ids) for rows in self.rows([pair]).values() for row in rows]

    def pack(self, pairs: Sequence[Pair]) -> Pack:
        """Return the rows of some pairs as one pack.

        Without pairs it is one token without label: no loss, but a forward pass beside those of the other processes.
        """
        if not pairs:
            return pack_rows({"retain": [Tokens((0,), (IGNORED,))]})
        sides = self.rows(pairs)
        values = [self.reference[row] for side in SIDES for row in sides[side] if row in self.reference]
        seen = joined([self.seen[row] for row in sides["forget"]]) if self.seen and sides["forget"] else None
        return replace(pack_rows(sides), reference=torch.cat(values) if values else torch.zeros(0), seen=seen)
