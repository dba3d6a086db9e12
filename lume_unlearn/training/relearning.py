"""Ordinary training on a few rows, as small as it gets: does an unlearned model relearn?"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from transformers import get_cosine_schedule_with_warmup

from lume_tasks.data.rows import Row
from lume_unlearn.data.encode import Encoder
from lume_unlearn.data.packs import pack_rows
from lume_unlearn.methods.base import in_batches
from lume_unlearn.methods.common import token_mean
from lume_unlearn.model.forward import Passes, use_packing
from lume_unlearn.model.load import context_length

BATCH_SIZE = 8


def relearning(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    loss_on: Literal["answer", "text"] = "text",
    epochs: int = 4,
    learning_rate: float = 1e-4,
    seed: int = 0,
    chat: bool = True,
) -> Iterator[tuple[int, Any]]:
    """Train a copy of a model on rows, all weights, with the adapter merged; yield it, changed, after each epoch.

    AdamW (betas 0.9 and 0.95, no weight decay) minimises the token mean of the negative log-likelihood, with gradients
    clipped to norm 1 and a cosine to 0, on the device where the model is.

    Args:
        model: causal language model of transformers or PEFT; stays as it was.
        tokenizer: its tokenizer.
        rows: rows to train on, `BATCH_SIZE` in one optimiser step.
        loss_on: labelled tokens: the whole text, then rows are cut at the longest sequence that the model takes; or the
            answer and EOS.
        epochs: epochs over the rows.
        learning_rate: at the start.
        seed: of the order of the rows.
        chat: encode questions of the user's own tasks through the chat template.

    Raises:
        DataError: rows that do not fit the model.

    Yields:
        (number of the epoch, the copy), in evaluation mode.
    """
    trained = plain_copy(model).requires_grad_(True)
    use_packing(trained)
    packed = trained.config._attn_implementation
    context = context_length(trained)
    encode = Encoder(tokenizer, loss_on, chat, context if loss_on == "text" else None, context)
    texts, order, passes = encode(rows), torch.Generator().manual_seed(seed), Passes(trained)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, 0, epochs * -(-len(texts) // BATCH_SIZE))
    for epoch in range(1, epochs + 1):
        trained.train().set_attn_implementation(packed)
        for chosen in in_batches(torch.randperm(len(texts), generator=order).tolist(), BATCH_SIZE):
            batch = pack_rows({"forget": [texts[i] for i in chosen]}).to(trained.device)
            token_mean(passes.of_all(trained, batch)).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        trained.eval().set_attn_implementation("sdpa")
        yield epoch, trained


def trained_copy(model: Any, tokenizer: Any, rows: Sequence[Row], **options: Any) -> Any:
    """Return a copy of a model that was trained on rows; see `relearning`."""
    *_, (_, trained) = relearning(model, tokenizer, rows, **options)
    return trained


def plain_copy(model: Any) -> Any:
    """Return a copy of a model, with its adapter, if it has one, merged into the weights."""
    copied = copy.deepcopy(model)
    return copied.merge_and_unload() if hasattr(copied, "merge_and_unload") else copied
