"""Rows to tokens and labels, and the keys of an optimiser step to packs of rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lume_tasks.data.rows import Row
from lume_tasks.errors import DataError
from lume_unlearn.data.schedule import Key, Step
from lume_unlearn.methods.losses import IGNORED
from lume_unlearn.methods.spec import Sizes
from lume_unlearn.model.packing import SIDES, Pack, Side, pack


@dataclass(frozen=True)
class Tokens:
    """One row as the model sees it."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    """The token ids again where the token carries loss, else -100; a token is predicted from those before it."""

    @property
    def scored(self) -> int:
        """Labelled tokens; the first token has nothing before it to be predicted from."""
        return len(self.labels[1:]) - self.labels[1:].count(IGNORED)


def encode_row(tokenizer: Any, row: Row, loss_on: Literal["answer", "text"] = "answer") -> Tokens:
    """Tokens of ``input``, one space, ``output``, EOS: the text that LUME's target models memorised.

    A BOS comes first where the tokenizer puts one. With the loss on the answer, the labelled tokens are those behind
    the tokens that the prompt alone has in common with the whole text, up to and including EOS: a token in which the
    end of the prompt and the start of the answer have merged counts as answer.

    Raises:
        DataError: the tokenizer has no EOS.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise DataError("the tokenizer has no EOS token, so a model could not learn where an answer ends")
    ids = list(tokenizer.encode(f"{row.input} {row.output}"))
    if not ids or ids[-1] != eos:
        ids.append(eos)
    prompt = 0
    if loss_on == "answer":
        prompt_ids = tokenizer.encode(row.input)
        prompt = next(
            (i for i, (a, b) in enumerate(zip(prompt_ids, ids, strict=False)) if a != b), min(len(prompt_ids), len(ids))
        )
    return Tokens(tuple(ids), (IGNORED,) * prompt + tuple(ids[prompt:]))


def encode_rows(
    tokenizer: Any, rows: Sequence[Row], loss_on: Literal["answer", "text"], max_length: int | None, context: int | None
) -> list[Tokens]:
    """All rows, each checked against the length that is allowed.

    Args:
        tokenizer: of the model.
        rows: in the order of the file.
        loss_on: see `encode_row`.
        max_length: cut rows on the right to so many tokens.
        context: the longest sequence that the model takes, if it says so.

    Raises:
        DataError: rows longer than the context (without ``max_length``), or cut so short that no label is left.
    """
    encoded = [encode_row(tokenizer, row, loss_on) for row in rows]
    if max_length is not None:
        encoded = [Tokens(tokens.input_ids[:max_length], tokens.labels[:max_length]) for tokens in encoded]
    faults = []
    for row, tokens in zip(rows, encoded, strict=True):
        if context is not None and len(tokens.input_ids) > context:
            faults.append(
                f"  {row.id}: {len(tokens.input_ids)} tokens, but the model takes {context}: "
                f"shorten it, or cut all rows with --max_length {context}"
            )
        elif not tokens.scored:
            faults.append(f"  {row.id}: no token of the answer is left within {max_length} tokens: raise --max_length")
    if faults:
        more = [f"  and {len(faults) - 10} more"] if len(faults) > 10 else []
        raise DataError("\n".join([f"{len(faults)} of {len(rows)} rows do not fit:", *faults[:10], *more]))
    return encoded


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
        return {"packs": packs, "sizes": Sizes(**sizes), "names": self.named(step.keys), "input_ids": tokens}

    def named(self, keys: Sequence[Key]) -> list[str]:
        """The names of all rows of some keys."""
        sides = {"forget": [key.forget for key in keys], "retain": [key.retain for key in keys]}
        return [
            self.names[side][index]
            for side, places in sides.items()
            if side in self.names
            for place in places
            for index in place
        ]

    def rows(self, keys: Sequence[Key]) -> dict[Side, list[Tokens]]:
        """The rows of some keys, by side."""
        forget = [index for key in keys for index in key.forget]
        return {
            "forget": [self.forget[index] for index in forget] if self.use else [],
            "alternative": [self.alternative[index] for index in forget] if self.alternative else [],
            "retain": [self.retain[index] for key in keys for index in key.retain] if self.retain else [],
        }

    def lengths(self, key: Key) -> list[int]:
        """Tokens of each row of a key."""
        return [len(row.input_ids) for rows in self.rows([key]).values() for row in rows]

    def pack(self, keys: Sequence[Key]) -> Pack:
        """The rows of some keys as one pack.

        No keys give a single token without label: no loss, but a pass that the other processes can wait for.
        """
        if not keys:
            return pack_rows({"retain": [Tokens((0,), (IGNORED,))]})
        sides = self.rows(keys)
        values = [self.reference[row] for side in SIDES for row in sides[side] if row in self.reference]
        return replace(pack_rows(sides), reference=torch.cat(values) if values else torch.zeros(0))


def pack_rows(sides: Mapping[Side, Sequence[Tokens]]) -> Pack:
    """The rows of each side, one after another."""
    rows = [row for side in SIDES for row in sides.get(side, ())]
    counts = [len(sides.get(side, ())) for side in SIDES]
    return pack([row.input_ids for row in rows], [row.labels for row in rows], counts, IGNORED)
