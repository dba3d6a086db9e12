"""The unlearning depth score: at which layers an unlearned model lacks what the retrained model lacks."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lume_unlearn.data.encode import Tokens
from lume_unlearn.data.packs import Pack, pack_rows
from lume_unlearn.data.schedule import Limits, cut
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.common import row_means
from lume_unlearn.model.forward import Passes, Span, decoder_layers, evaluating
from lume_unlearn.model.output_layer import nll_value

THRESHOLD = 0.05
"""Nats a token: layers where the retrained model's hidden states cost less do not count (the authors' tau)."""


@dataclass(frozen=True)
class Depth:
    """The unlearning depth score of a model, and what it was computed from."""

    score: float
    """Mean over the rows that have a value; NaN if none has."""
    rows: int
    """Number of rows that have a value."""
    retrained: list[float]
    """Nats a token lost with the retrained model's hidden states after each layer, mean over all rows."""
    unlearned: list[float]
    """The same with the unlearned model's."""


def row_scores(retrained: Tensor, unlearned: Tensor) -> Tensor:
    """Compute each row's unlearning depth score from the nats that patching costs.

    ``sum_l D1_l clip(D2_l / D1_l, 0, 1) / sum_l D1_l`` over the layers l with ``D1_l > THRESHOLD``: 1 where the
    unlearned model's hidden states cost as much as the retrained model's, 0 where they cost nothing. Lee et al. 2026,
    "Measuring the Depth of LLM Unlearning via Activation Patching" (arXiv 2605.24614).

    Worked example: D1 = (0.01, 1, 3) and D2 = (5, 0.5, 4): the first layer does not count; (0.5 + 3) / (1 + 3) = 0.875.

    Args:
        retrained: (L, B) D1, nats a token, for L layers and B rows.
        unlearned: (L, B) D2.

    Returns:
        (B,) NaN for a row without a layer above the threshold.
    """
    weights = torch.where(retrained > THRESHOLD, retrained, 0.0)
    erased = torch.minimum(unlearned.clamp(min=0), weights)  # D1 clip(D2 / D1, 0, 1)
    return erased.sum(0) / weights.sum(0)


@torch.no_grad()
def depth(target: Any, retrained: Any, unlearned: Any, rows: Sequence[Tokens], max_tokens: int) -> Depth:
    """Compute the unlearning depth score by activation patching.

    A row goes through a source model (retrained or unlearned) with its true answer. The source's hidden states after
    decoder layer l, at the positions that predict the labelled tokens, replace those of the target at the same layer
    and positions. D(l) is how much the target's mean log-probability of the labelled tokens falls.

    Deviation: the authors label the answer's entity, annotated by hand, alone; here all labelled tokens of a row count
    (the answer and EOS), so words that every model predicts dilute D. As in the paper, all positions before the
    labelled tokens keep the target's hidden states, and rows without a value are left out of the mean.

    Args:
        target: model that knows the rows, from before unlearning.
        retrained: model that never saw the rows, with the target's shape.
        unlearned: model to judge, with the target's shape. All three are on one device.
        rows: forget rows.
        max_tokens: most tokens, with padding, in one micro-batch, for which there are 3 + 2 L forward passes.

    Raises:
        ConfigError: the models differ in their number of layers or in their width.
    """
    for name, source in (("retrained", retrained), ("unlearned", unlearned)):
        _require_same_shape(name, source, target)
    sources = (retrained, unlearned)
    with ExitStack() as stack:
        for model in (target, *sources):
            stack.enter_context(evaluating(model))
        passes = {model: Passes(model) for model in (target, *sources)}
        parts = []
        by_length = sorted(rows, key=lambda row: len(row.input_ids))
        for part in cut(by_length, lambda row: [len(row.input_ids)], Limits(None, max_tokens, padded=True)):
            batch = pack_rows({"forget": part}).to(target.device)
            own = _row_nll(target, passes[target], batch)
            states = [_hidden_states(source, passes[source], batch) for source in sources]
            parts.append(torch.stack([_patched_nll(target, passes[target], found, batch) - own for found in states]))
    deltas = torch.cat(parts, dim=2).cpu().double()  # (2, L, B)
    there = (deltas[0] > THRESHOLD).any(0)
    score = row_scores(*deltas)[there].mean()
    return Depth(float(score), int(there.sum()), *deltas.mean(2).tolist())


def _require_same_shape(name: str, source: Any, target: Any) -> None:
    shapes = [
        (config.num_hidden_layers, config.hidden_size)
        for config in (model.config.get_text_config() for model in (target, source))
    ]
    if shapes[0] != shapes[1]:
        raise ConfigError(
            "unlearning depth: the target has {} layers of width {}, the {} model {} of width {}, so hidden states "
            "cannot be exchanged; use models made from the same base".format(*shapes[0], name, *shapes[1])
        )


def _patched_nll(target: Any, passes: Passes, states: Sequence[Tensor], batch: Pack) -> Tensor:
    """Compute the (L, B) token mean NLL of each row with a source's hidden states after each layer."""
    found = []
    for layer, new in zip(decoder_layers(target), states, strict=True):
        with _hooked(layer, partial(_replace, _where(passes, batch), new)):
            found.append(_row_nll(target, passes, batch))
    return torch.stack(found)


def _hidden_states(model: Any, passes: Passes, batch: Pack) -> list[Tensor]:
    """Return the (N, d) hidden states after each decoder layer, at the positions that predict the labelled tokens."""
    found: list[Tensor] = []
    where = _where(passes, batch)
    with ExitStack() as stack:
        for layer in decoder_layers(model):
            stack.enter_context(_hooked(layer, lambda states: found.append(states[where])))
        passes.reference_at(model, batch)  # a forward pass without logits
    return found


def _row_nll(model: Any, passes: Passes, batch: Pack) -> Tensor:
    """Compute each row's (B,) mean NLL of its labelled tokens, in nats."""
    (values,) = passes.values(model, batch, [Span(slice(0, len(batch.targets)), nll_value)])
    return row_means(values, batch.rows, len(batch.lengths))


def _where(passes: Passes, batch: Pack) -> tuple[Any, Tensor]:
    """Return the index of the positions that predict the labelled tokens, in packed or padded hidden states."""
    return (0, batch.keep) if passes.packs else (batch.rows, batch.position_ids[batch.keep])


def _replace(where: tuple[Any, Tensor], new: Tensor, states: Tensor) -> Tensor:
    changed = states.clone()
    changed[where] = new.to(states.dtype)
    return changed


@contextmanager
def _hooked(layer: Any, function: Any) -> Iterator[None]:
    """Call ``function`` on the layer's hidden states within the block; they become what it returns, if not None."""

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        if not isinstance(output, tuple):
            return function(output)
        changed = function(output[0])
        return None if changed is None else (changed, *output[1:])

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
