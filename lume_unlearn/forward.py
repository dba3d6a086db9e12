"""From a pack of rows to flat lists of labelled tokens, by the model in training and by the one before unlearning."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from lume_unlearn import losses
from lume_unlearn.data import Tokens, pack_rows
from lume_unlearn.packing import IMPLEMENTATION, Pack, can_pack


@dataclass(frozen=True)
class Labelled:
    """The N labelled tokens of a pack, flat, row after row (see `losses`)."""

    logits: Tensor
    """(N, V) at the positions that predict them."""
    targets: Tensor
    """(N,) their ids."""
    rows: Tensor
    """(N,) their rows."""

    def __getitem__(self, part: slice) -> "Labelled":
        """Some of the tokens."""
        return Labelled(self.logits[part], self.targets[part], self.rows[part])


def labelled_tokens(model: nn.Module, config: Any, batch: Pack) -> Labelled:
    """One forward pass over all rows; only labelled positions reach the output layer where the model can pack.

    Args:
        model: possibly wrapped by PEFT or for distribution.
        config: the model's configuration; says whether it packs.
        batch: on the model's device.
    """
    if config._attn_implementation == IMPLEMENTATION:
        logits = model(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            logits_to_keep=batch.keep,
            pack_bounds=batch.bounds,
            pack_lengths=batch.lengths,
            use_cache=False,
        ).logits[0]
    else:
        logits = _padded_logits(model, batch)
    return Labelled(logits, batch.targets, batch.rows)


def _padded_logits(model: nn.Module, batch: Pack) -> Tensor:
    """(N, V) out of a pass over rows padded on the right; the mask comes from the lengths, never from pad ids."""
    lengths = torch.tensor(batch.lengths, device=batch.input_ids.device)
    mask = torch.arange(max(batch.lengths), device=lengths.device)[None] < lengths[:, None]
    padded = torch.zeros(mask.shape, dtype=torch.long, device=lengths.device)
    padded[mask] = batch.input_ids
    logits: Tensor = model(input_ids=padded, attention_mask=mask.long(), use_cache=False).logits
    return logits[batch.rows, batch.position_ids[batch.keep]]


@torch.no_grad()
def use_packing(model: Any) -> bool:
    """Switch the model to packed attention where it then gives two short rows the logits that they get alone.

    Trying is the only way to be sure: a model may carry state from token to token beside its attention, or put more
    into its attention than the interface says. Such a model keeps its own attention, and its rows are padded.

    Args:
        model: in evaluation mode, without adapter.

    Returns:
        Whether it packs now.
    """
    if not can_pack(model):
        return False
    own = model.config._attn_implementation
    rows = [Tokens(ids, ids) for ids in ([3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3, 2, 3])]
    alone = torch.cat([_padded_logits(model, pack_rows([row], []).to(model.device)) for row in rows])
    model.set_attn_implementation(IMPLEMENTATION)
    packed = labelled_tokens(model, model.config, pack_rows(rows, []).to(model.device)).logits
    # Rounding may differ: half of the digits have to agree.
    if (packed - alone).abs().max() <= torch.finfo(alone.dtype).eps ** 0.5 * alone.abs().max():
        return True
    model.set_attn_implementation(own)
    return False


@torch.no_grad()
def nll_sums(model: nn.Module, config: Any, rows: Sequence[Tokens], batch_size: int, device: torch.device) -> Tensor:
    """Sum of the negative log-likelihood over the labelled tokens of each row, in nats: (len(rows),) on the CPU.

    Rows of like length share a batch; the model is put into evaluation mode for it.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids))
    sums = torch.zeros(len(rows))
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            tokens = labelled_tokens(model, config, pack_rows([rows[i] for i in chosen], []).to(device))
            nll = losses.token_nll(tokens.logits, tokens.targets)
            sums[chosen] = losses.row_sums(nll, tokens.rows, len(chosen)).float().cpu()
    return sums


class Reference:
    """The model before unlearning, for losses that need its distributions during training.

    Under LoRA it is the model in training with its adapter off: no second copy of the weights. In full tuning it is a
    frozen copy, to be made before the first step.
    """

    def __init__(self, model: Any) -> None:
        """Copy the model unless it is a PEFT model."""
        self.copy = None if isinstance(model, PeftModel) else copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def labelled_tokens(self, model: nn.Module, unwrapped: Any, batch: Pack) -> Labelled:
        """As `labelled_tokens`, by the model before unlearning, without gradient and without dropout.

        Args:
            model: the model in training as the trainer wrapped it (for LoRA the pass must go through the wrapper).
            unwrapped: the same without the wrapper.
            batch: rows to score.
        """
        if self.copy is not None:
            self.copy.to(batch.input_ids.device)
            return labelled_tokens(self.copy, self.copy.config, batch)
        with unwrapped.disable_adapter(), evaluating(model):
            return labelled_tokens(model, unwrapped.config, batch)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode within the block, then as it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
