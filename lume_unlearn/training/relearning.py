"""A minimal training loop on a few rows, to test whether an unlearned model relearns."""

import copy
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any, Literal

import torch

from lume_tasks.data.rows import Row
from lume_unlearn.data.encode import Encoder
from lume_unlearn.data.packs import pack_rows
from lume_unlearn.methods.base import in_batches
from lume_unlearn.methods.common import token_mean
from lume_unlearn.model.forward import Passes, use_packing
from lume_unlearn.model.load import context_length, require_peft
from lume_unlearn.model.weights import convert_weights

BATCH_SIZE = 8
FIRST = 5
"""Steps before the first point of a curve; each further point has twice as many."""


def relearning(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    loss_on: Literal["answer", "text"] = "text",
    steps: int = 20,
    learning_rate: float = 1e-4,
    seed: int = 0,
    chat: bool = True,
) -> Iterator[tuple[int, Any]]:
    """Train all weights of a copy of a model, with its adapter merged; yield the copy after 5, 10, 20, ... steps.

    AdamW (betas 0.9 and 0.95, no weight decay) minimises the token mean of the NLL, with gradients clipped to norm 1,
    on the device where the model is. The learning rate is constant. So the copy after 10 steps is the same for 20 and
    for 40 steps, and curves of different data can be compared at equal numbers of steps (arXiv 2602.03379).

    The copy is float32, whatever the model is: in bfloat16 most of these steps would be rounded away. With gradients
    and the optimiser's state it takes 16 bytes a weight.

    Args:
        model: causal language model of transformers or PEFT; not changed.
        tokenizer: its tokenizer.
        rows: rows to train on, `BATCH_SIZE` in one optimiser step.
        loss_on: labelled tokens: "text" (rows are truncated to the longest sequence that the model takes), or "answer"
            (the answer and EOS).
        steps: optimiser steps; each epoch over the rows has its own random order.
        learning_rate: the same in all steps.
        seed: seed of the order of the rows.
        chat: encode questions of the user's own tasks through the chat template.

    Raises:
        ConfigError: see `plain_copy`.
        DataError: rows that do not fit the model.

    Yields:
        (number of steps, the copy in evaluation mode, with the model's own attention), the last time after ``steps``.
        FlashAttention, which does not compute in float32, is replaced by SDPA, or without SDPA by eager attention.
    """
    trained = plain_copy(model, torch.float32).requires_grad_(True)
    if "flash" in str(trained.config._attn_implementation):
        trained.set_attn_implementation("sdpa" if trained._supports_sdpa else "eager")
    own = trained.config._attn_implementation
    use_packing(trained.train())
    packed = trained.config._attn_implementation
    context = context_length(trained)
    encode = Encoder(tokenizer, loss_on, chat, context if loss_on == "text" else None, context)
    texts, order, passes = encode(rows), torch.Generator().manual_seed(seed), Passes(trained)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    epochs = (torch.randperm(len(texts), generator=order).tolist() for _ in range(steps))
    batches = chain.from_iterable(in_batches(epoch, BATCH_SIZE) for epoch in epochs)
    for step, chosen in enumerate(islice(batches, steps), start=1):
        batch = pack_rows({"forget": [texts[i] for i in chosen]}).to(trained.device)
        token_mean(passes.of_all(trained, batch)).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step in points(steps):
            trained.eval().set_attn_implementation(own)
            yield step, trained
            trained.train().set_attn_implementation(packed)


def points(steps: int) -> list[int]:
    """Return the steps after which a copy is scored: 5, 10, 20, ... and the last."""
    return [*(FIRST << i for i in range(steps.bit_length()) if FIRST << i < steps), steps]


def plain_copy(model: Any, dtype: torch.dtype | None = None) -> Any:
    """Return a copy of a model, with its adapter, if it has one, merged into the weights.

    Args:
        model: causal language model, also a PEFT model.
        dtype: data type of the copy, which is converted before its adapter is merged; None: that of the model.

    Raises:
        ConfigError: see `require_peft`.
    """
    require_peft(model)
    copied = copy.deepcopy(model)
    if dtype is not None:
        convert_weights(copied.parameters(), dtype)
    return copied.merge_and_unload() if hasattr(copied, "merge_and_unload") else copied
