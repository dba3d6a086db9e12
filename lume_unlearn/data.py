"""Rows to tokens and labels, seeded pairs of a forget and a retain row, and batches of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from lume_tasks.rows import DataError, Row
from lume_unlearn.losses import IGNORED
from lume_unlearn.packing import Pack, pack


@dataclass(frozen=True)
class Tokens:
    """One row as the model sees it."""

    input_ids: list[int]
    labels: list[int]
    """The token ids again where the token carries loss, else -100; a token is predicted from those before it."""

    @property
    def scored(self) -> int:
        """Labelled tokens; the first token has nothing before it to be predicted from."""
        return sum(label != IGNORED for label in self.labels[1:])


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
    labels = [IGNORED] * prompt + ids[prompt:]
    return Tokens(ids, labels)


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


class PairDataset(Dataset[dict[str, Any]]):
    """Pairs of an encoded forget row and, where the loss has a retain term, a retain row; `MicroBatches` gives keys."""

    def __init__(self, forget: list[Tokens], retain: list[Tokens], reference: Tensor | None = None) -> None:
        """``reference`` (len(forget),): NLL sum of each forget row under the model before unlearning."""
        self.forget, self.retain, self.reference = forget, retain, reference

    def __len__(self) -> int:
        """Forget rows: one epoch sees each of them once."""
        return len(self.forget)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """The pair (forget row, retain row)."""
        pair: dict[str, Any] = {"forget": self.forget[key[0]]}
        if self.retain:
            pair["retain"] = self.retain[key[1]]
        if self.reference is not None:
            pair["reference"] = float(self.reference[key[0]])
        return pair


def epoch_pairs(forget: int, retain: int, seed: int, epoch: int) -> list[tuple[int, int]]:
    """Keys (forget index, retain index) of one epoch, a function of the numbers of rows, the seed and the epoch alone.

    The forget rows come in random order, each once. The retain rows are dealt out in random order too, again and again
    where there are fewer of them, so that none is drawn twice before all were drawn once.
    """
    draw = np.random.default_rng([seed, epoch])
    forget_order = draw.permutation(forget).tolist()
    if not retain:
        return [(index, 0) for index in forget_order]
    deals = -(-forget // retain)
    retain_order = np.concatenate([draw.permutation(retain) for _ in range(deals)]).tolist()
    return list(zip(forget_order, retain_order, strict=False))


class MicroBatches(Sampler[list[tuple[int, int]]]):
    """One process's micro batches of one epoch: the pairs of each optimiser step, dealt out evenly over processes.

    Every process passes the model equally often in a step, since gradients are exchanged after the last pass; where the
    last step of an epoch has fewer pairs than there are processes, some get an empty micro batch.
    """

    def __init__(
        self,
        pairs: Callable[[], list[tuple[int, int]]],
        count: int,
        batch_size: int,
        micro_batch_size: int,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        """Set up the dealing.

        Args:
            pairs: gives the keys of the current epoch (asked for when an epoch starts, so that a resumed run goes on
                with the right order).
            count: how many keys it gives.
            batch_size: pairs of one optimiser step, over all processes.
            micro_batch_size: most pairs of one pass of one process.
            process: index of this process.
            processes: how many there are.
        """
        self.pairs, self.count, self.batch_size, self.micro_batch_size = pairs, count, batch_size, micro_batch_size
        self.process, self.processes = process, processes

    def __len__(self) -> int:
        """Micro batches of one epoch, the same on every process."""
        full, rest = divmod(self.count, self.batch_size)
        return full * self._passes(self.batch_size) + self._passes(rest)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """The keys of each micro batch of the current epoch."""
        pairs = self.pairs()
        for start in range(0, self.count, self.batch_size):
            step = pairs[start : start + self.batch_size]
            mine, passes = step[self.process :: self.processes], self._passes(len(step))
            yield from (mine[i::passes] for i in range(passes))

    def _passes(self, pairs: int) -> int:
        return passes_per_step(pairs, self.micro_batch_size, self.processes)


def passes_per_step(pairs: int, micro_batch_size: int, processes: int) -> int:
    """Forward passes of each process for one optimiser step of so many pairs."""
    share = -(-pairs // processes)
    return -(-share // micro_batch_size)


def pack_rows(forget: Sequence[Tokens], retain: Sequence[Tokens]) -> Pack:
    """All forget rows, then all retain rows, one after another."""
    rows = [*forget, *retain]
    return pack([row.input_ids for row in rows], [row.labels for row in rows], len(forget), IGNORED)


def collate(pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A micro batch as ``{"pack": Pack, "input_ids": (T,)}`` (the latter for Trainer's counters).

    An empty one becomes a single token without label: no loss, but a pass that the other processes can wait for.
    """
    retain = [pair["retain"] for pair in pairs if "retain" in pair] if pairs else [Tokens([0], [IGNORED])]
    reference = torch.tensor([pair["reference"] for pair in pairs if "reference" in pair])
    batch = replace(pack_rows([pair["forget"] for pair in pairs], retain), reference=reference)
    return {"pack": batch, "input_ids": batch.input_ids}
