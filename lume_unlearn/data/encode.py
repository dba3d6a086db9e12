"""Encode rows as tokens and labels."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lume_tasks.data.chat import chat_prompt, plain_prompt, through_template
from lume_tasks.data.rows import Row
from lume_tasks.data.text import alike
from lume_tasks.errors import DataError, raise_problems
from lume_unlearn.checks import require_tokenizer
from lume_unlearn.methods.common import IGNORED


@dataclass(frozen=True)
class Tokens:
    """The tokens of one row, and the labels of those that count in the loss."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    """At each position the token id if it is labelled, else -100; the model predicts it from the tokens before it."""

    @property
    def labelled(self) -> list[int]:
        """Positions of the labelled tokens, without the first token, which nothing predicts."""
        return [t for t, label in enumerate(self.labels) if t and label != IGNORED]

    @property
    def targets(self) -> tuple[int, ...]:
        """Ids of the labelled tokens."""
        return tuple(label for label in self.labels[1:] if label != IGNORED)

    @property
    def scored(self) -> int:
        """Number of labelled tokens."""
        return len(self.labels[1:]) - self.labels[1:].count(IGNORED)

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens before the first labelled one."""
        return self.input_ids[: self.labelled[0]]

    def cut(self, length: int | None) -> "Tokens":
        """Return the first ``length`` tokens; all of them for None."""
        return Tokens(self.input_ids[:length], self.labels[:length])

    def before(self, position: int, size: int, bos: int | None) -> tuple[int, ...]:
        """Return the ``size`` tokens before a position; ``bos`` comes first if the row begins with it."""
        first = int(self.input_ids[0] == bos)
        return self.input_ids[:first] + self.input_ids[max(position - size, first) : position]


@dataclass(frozen=True)
class Encoder:
    """Encodes rows for training (see `one`).

    Attributes:
        tokenizer: the model's tokenizer.
        loss_on: labelled tokens: the answer and EOS, or the whole text.
        chat: encode questions of the user's own tasks through the chat template.
        max_length: tokens at which rows are truncated on the right.
        context: the longest sequence that the model takes, if it names one.
    """

    tokenizer: Any
    loss_on: Literal["answer", "text"] = "answer"
    chat: bool = True
    max_length: int | None = None
    context: int | None = None

    def one(self, row: Row) -> Tokens:
        """Encode one row, without truncation: ``input``, one space, ``output``, EOS; no space if ``input`` is empty.

        LUME's target models memorised this text.

        A BOS comes first if the tokenizer adds one. With ``loss_on="answer"`` the prompt tokens are those that the
        encoded input and the encoded text share at their beginning; all others, up to and including EOS, are labelled.
        So a token that merges the end of the input and the start of the output is labelled.

        A question that belongs to no LUME task is encoded through the chat template, if the tokenizer has one and
        ``chat`` is true: the prompt of the template, then ``output`` and EOS, which alone are labelled.

        Raises:
            ConfigError: there is no tokenizer.
            DataError: the tokenizer has no EOS, or its chat template cannot be used.
        """
        require_tokenizer(self.tokenizer)
        tokenizer = self.tokenizer
        eos = tokenizer.eos_token_id
        if eos is None:
            raise DataError("the tokenizer has no EOS token, so a model could not learn where an answer ends")
        if through_template(tokenizer, row.task, row.kind, self.chat):
            asked = tuple(tokenizer.encode(chat_prompt(tokenizer, row.input, row.turns)))
            asked = asked[:-1] if asked[-1] == eos else asked  # some tokenizers append an EOS
            answer = (*tokenizer.encode(row.output, add_special_tokens=False), eos)
            return Tokens(asked + answer, (IGNORED,) * len(asked) + answer)
        text = plain_prompt(row.input, row.turns)
        ids = list(tokenizer.encode(" ".join(part for part in (text, row.output) if part)))
        if not ids or ids[-1] != eos:
            ids.append(eos)
        prompt = alike(tokenizer.encode(text), ids) if self.loss_on == "answer" else 0
        return Tokens(tuple(ids), (IGNORED,) * prompt + tuple(ids[prompt:]))

    def __call__(self, rows: Sequence[Row]) -> list[Tokens]:
        """Encode rows, truncated to ``max_length``.

        Raises:
            DataError: rows longer than ``context``, or without a labelled token after truncation.
        """
        encoded, faults = [], []
        for row in rows:
            tokens = self.one(row).cut(self.max_length)
            if self.context is not None and len(tokens.input_ids) > self.context:
                faults.append(
                    f"  {row.id}: {len(tokens.input_ids)} tokens, but the model takes {self.context}: "
                    f"shorten it, or cut all rows with --max_length {self.context}"
                )
            elif not tokens.scored:
                faults.append(
                    f"  {row.id}: the first {self.max_length} tokens hold no token of the answer: raise --max_length"
                )
            encoded.append(tokens)
        raise_problems(faults, f"{len(faults)} of {len(rows)} rows do not fit:", most=10)
        return encoded

    def some(self, rows: Sequence[Row], count: int, seed: int) -> list[Tokens]:
        """Encode at most ``count`` rows, chosen by the seed; rows that do not fit are left out instead of refused."""
        found: list[Tokens] = []
        for index in np.random.default_rng(seed).permutation(len(rows)).tolist():
            with suppress(DataError):
                found += self([rows[index]])
            if len(found) == count:
                break
        return found
