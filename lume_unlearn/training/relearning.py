"""Ordinary training on texts, as small as it gets: to make a tiny model memorise, or an unlearned one relearn."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import get_cosine_schedule_with_warmup

from lume_unlearn.data.encode import Tokens
from lume_unlearn.data.packs import pack_rows
from lume_unlearn.methods.common import token_mean
from lume_unlearn.model.forward import Passes, Span
from lume_unlearn.model.output_layer import nll_value


def fine_tune(
    model: Any,
    texts: Sequence[Tokens],
    epochs: int,
    learning_rate: float,
    batch_size: int,
    warmup_steps: int = 0,
    seed: int = 0,
) -> None:
    """Minimise the token mean of the negative log-likelihood, in place, on the device where the model is.

    AdamW (betas 0.9 and 0.95, no weight decay), gradients clipped to norm 1, linear warm-up, then a cosine to 0. The
    order of the texts is a function of the seed.
    """
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup_steps, epochs * -(-len(texts) // batch_size))
    passes = Passes(model)
    model.train()
    for _ in range(epochs):
        shuffled = torch.randperm(len(texts), generator=order).tolist()
        for start in range(0, len(shuffled), batch_size):
            batch = pack_rows({"forget": [texts[i] for i in shuffled[start : start + batch_size]]}).to(model.device)
            (nll,) = passes.values(model, batch, [Span(slice(0, len(batch.targets)), nll_value)])
            token_mean(nll).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.eval()
