"""Encode rows as tokens and labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lume_tasks.data.chat import chat_prompt, through_template
from lume_tasks.data.rows import Row
from lume_tasks.errors import DataError, first_few
from lume_unlearn.methods.common import IGNORED


@dataclass(frozen=True)
class Tokens:
    """The tokens of one row, and the labels of those that count in the loss."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    """At each position the token id itself if it is labelled, else -100; the model predicts it from those before."""

    @property
    def scored(self) -> int:
        """Number of labelled tokens, without the first token, which nothing predicts."""
        return len(self.labels[1:]) - self.labels[1:].count(IGNORED)


def encode_row(tokenizer: Any, row: Row, loss_on: Literal["answer", "text"] = "answer", chat: bool = True) -> Tokens:
    """Encode ``input``, one space, ``output``, EOS: the text that LUME's target models memorised.

    A BOS comes first if the tokenizer adds one. With ``loss_on="answer"`` the prompt tokens are those that the encoded
    input shares with the encoded text; all others, up to and including EOS, are labelled. So a token that merges the
    end of the input and the start of the output is labelled.

    A question of no LUME task is encoded as the model is asked instead, if the tokenizer has a chat template and
    ``chat`` is true: the prompt of the template, then ``output`` and EOS, which alone are labelled.

    Raises:
        DataError: the tokenizer has no EOS, or its chat template cannot be used.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise DataError("the tokenizer has no EOS token, so a model could not learn where an answer ends")
    if through_template(tokenizer, row.task, row.kind, chat):
        asked = tuple(tokenizer.encode(chat_prompt(tokenizer, row.input)))
        asked = asked[:-1] if asked[-1] == eos else asked  # some tokenizers append an EOS
        answer = (*tokenizer.encode(row.output, add_special_tokens=False), eos)
        return Tokens(asked + answer, (IGNORED,) * len(asked) + answer)
    ids = list(tokenizer.encode(f"{row.input} {row.output}" if row.output else row.input))
    if not ids or ids[-1] != eos:
        ids.append(eos)
    prompt = 0
    if loss_on == "answer":
        for prompt_id, token_id in zip(tokenizer.encode(row.input), ids, strict=False):
            if prompt_id != token_id:
                break
            prompt += 1
    return Tokens(tuple(ids), (IGNORED,) * prompt + tuple(ids[prompt:]))


def encode_rows(
    tokenizer: Any,
    rows: Sequence[Row],
    loss_on: Literal["answer", "text"],
    max_length: int | None,
    context: int | None,
    chat: bool = True,
) -> list[Tokens]:
    """Encode rows (see `encode_row`), truncated on the right to ``max_length`` tokens.

    Raises:
        DataError: rows longer than ``context``, the longest sequence that the model takes, or without a labelled token
            after truncation.
    """
    encoded, faults = [], []
    for row in rows:
        tokens = encode_row(tokenizer, row, loss_on, chat)
        if max_length is not None:
            tokens = Tokens(tokens.input_ids[:max_length], tokens.labels[:max_length])
        if context is not None and len(tokens.input_ids) > context:
            faults.append(
                f"  {row.id}: {len(tokens.input_ids)} tokens, but the model takes {context}: "
                f"shorten it, or cut all rows with --max_length {context}"
            )
        elif not tokens.scored:
            faults.append(f"  {row.id}: no token of the answer is left within {max_length} tokens: raise --max_length")
        encoded.append(tokens)
    if faults:
        raise DataError("\n".join([f"{len(faults)} of {len(rows)} rows do not fit:", *first_few(faults, 10)]))
    return encoded
