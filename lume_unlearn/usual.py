"""The usual way to take an unlearning step, for `benchmark` to time ours against.

Rows are padded to the longest of their micro batch, forget and retain rows pass the model separately, every position
gets its logits, and a copy of the model before unlearning runs in each step of the methods that compare with it: so do
TOFU (Maini et al. 2024, arXiv 2401.06121) and the frameworks after it. What these add without need (padding to a fixed
500 tokens, a second pass over the retain rows) is left out.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, logsigmoid

from lume_unlearn.data import Tokens
from lume_unlearn.losses import IGNORED

BETA = 0.1
"""Of NPO."""


@dataclass(frozen=True)
class Usual:
    """One method's step, all but the optimiser's."""

    method: str
    """"gd", "kl" or "npo"."""
    model: Any
    reference: Any
    """The copy; None for "gd"."""
    micro_batch_size: int
    backward: Callable[[Tensor], None]
    autocast: Callable[[], AbstractContextManager[Any]]
    """The arithmetic of the copy; the model brings its own."""

    def step(self, forget: Sequence[Tokens], retain: Sequence[Tokens]) -> Tensor:
        """Gradients of one optimiser step: the mean over its micro batches; returns the loss.

        Args:
            forget: forget rows.
            retain: as many retain rows.
        """
        device, size = next(self.model.parameters()).device, self.micro_batch_size
        self.model.train()
        total = torch.zeros((), device=device)
        starts = range(0, len(forget), size)
        for start in starts:
            part = slice(start, start + size)
            loss = self.loss(padded(forget[part], device), padded(retain[part], device)) / len(starts)
            self.backward(loss)
            total += loss.detach()
        return total

    def loss(self, forget: dict[str, Tensor], retain: dict[str, Tensor]) -> Tensor:
        """The loss of one micro batch, each side as `padded` makes it."""
        if self.method == "npo":
            return self._npo(forget) + self._nll(retain)
        return (self._kl(retain) if self.method == "kl" else self._nll(retain)) - self._nll(forget)

    def _nll(self, batch: dict[str, Tensor]) -> Tensor:
        loss: Tensor = self.model(**batch, use_cache=False).loss
        return loss

    def _npo(self, forget: dict[str, Tensor]) -> Tensor:
        """-2/beta log sigmoid(beta (NLL - NLL before)), mean over rows (Zhang et al. 2024, arXiv 2404.05868)."""
        now = row_nll(_logits(self.model, forget), forget["labels"])
        with torch.no_grad(), self.autocast():
            before = row_nll(_logits(self.reference, forget), forget["labels"])
        return -2 / BETA * logsigmoid(BETA * (now - before)).mean()

    def _kl(self, retain: dict[str, Tensor]) -> Tensor:
        """KL(before || now), mean over all positions, padding too, as in TOFU and after it."""
        now = log_softmax(_logits(self.model, retain).float(), -1).flatten(0, 1)
        with torch.no_grad(), self.autocast():
            before = log_softmax(_logits(self.reference, retain).float(), -1).flatten(0, 1)
        return kl_div(now, before, reduction="batchmean", log_target=True)


def padded(rows: Sequence[Tokens], device: torch.device) -> dict[str, Tensor]:
    """Rows padded on the right to the longest: input_ids, attention_mask and labels, (rows, longest) each."""
    longest = max(len(row.input_ids) for row in rows)

    def column(values: Sequence[Sequence[int]], filler: int) -> Tensor:
        return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in values]).to(device)

    return {
        "input_ids": column([row.input_ids for row in rows], 0),
        "attention_mask": column([[1] * len(row.input_ids) for row in rows], 0),
        "labels": column([row.labels for row in rows], IGNORED),
    }


def row_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """(rows,) summed NLL in nats of each row's labelled tokens, from (rows, T, V) logits and (rows, T) labels."""
    shifted = labels[:, 1:]
    values = cross_entropy(
        logits[:, :-1].float().flatten(0, 1), shifted.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return values.view(shifted.shape).sum(-1)


def _logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits: Tensor = model(**inputs, use_cache=False).logits
    return logits
