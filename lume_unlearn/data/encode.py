"""Rows to tokens and labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lume_tasks.data.rows import Row
from lume_tasks.errors import DataError
from lume_unlearn.methods.common import IGNORED


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
