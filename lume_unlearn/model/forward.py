"""Forward passes over micro-batches: values of the labelled tokens, from packed or padded rows."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from lume_unlearn.data.encode import Tokens
from lume_unlearn.data.packs import Pack, pack_rows
from lume_unlearn.data.schedule import cut
from lume_unlearn.errors import ConfigError, log
from lume_unlearn.methods.common import token_nll
from lume_unlearn.model.output_layer import TokenValue, in_chunks
from lume_unlearn.model.packing import IMPLEMENTATION, can_pack, pack_arguments, packs

_TRIAL_ROWS = [Tokens(ids, ids) for ids in ((3, 1, 4, 1, 5, 9, 2, 6), (5, 3, 5, 8, 9, 7, 9, 3, 2, 3))]


@dataclass(frozen=True)
class Span:
    """Some labelled tokens of a micro-batch, and the value to compute for each of them."""

    tokens: slice
    value: TokenValue = token_nll
    reference: Callable[[slice], Any] | None = None
    """Slice of these tokens to the third argument of ``value``: reference logits (and a selection) or hidden states."""


class Passes:
    """Forward passes of one model: packed or padded, with the output layer in chunks or at once, or up to a layer.

    Attributes:
        packs: whether the model takes packed rows; else they are padded.
        chunks: whether values are computed in place of the output layer (see `output_layer`); else from the logits.
        layer: the decoder layer after which a forward pass ends, or None for the whole model.
    """

    def __init__(self, model: Any, layer: int | None = None) -> None:
        """Find out by a trial whether values can be computed in chunks.

        ``model`` is not yet wrapped by accelerate. With ``layer``, values are computed from the hidden states after
        this decoder layer instead of from logits.
        """
        self.config, self.layer = model.config, layer
        self.packs = packs(model.config)
        self.head: Any = model.get_output_embeddings()  # None for models without an output layer
        self.layers = nn.ModuleList() if layer is None else decoder_layers(model)
        self.chunks = self.head is not None
        if self.chunks and layer is None:
            self.chunks = self._chunks_agree(model)

    def values(self, model: nn.Module, batch: Pack, spans: Sequence[Span]) -> list[Tensor]:
        """Run one forward pass and compute the values of each span's tokens: (n,) each. Spans may overlap.

        The values are computed inside the model's forward, in place of its output layer, at labelled tokens only. So
        wrappers that gather sharded weights during a forward pass work, and the logits of all tokens never exist at
        once.
        """
        if not self.chunks:
            logits = labelled_logits(model, self.config, batch)
            return [_value(span, logits, batch) for span in spans]
        output, vocabulary = self.head.forward, self.config.get_text_config().vocab_size

        def span_value(span: Span, states: Tensor) -> Tensor:
            if self.layer is not None:
                return _value(span, states, batch)
            targets = batch.targets[span.tokens]
            return in_chunks(span.value, output, vocabulary, states[span.tokens], targets, span.reference)

        found = self._run(model, batch, lambda states: torch.cat([span_value(span, states) for span in spans]))
        return list(torch.split(found, [span.tokens.stop - span.tokens.start for span in spans]))

    def of_all(self, model: nn.Module, batch: Pack, value: TokenValue = token_nll) -> Tensor:
        """Run one forward pass and compute a value, by default the NLL, of all labelled tokens: (N,)."""
        return self.values(model, batch, [Span(slice(0, len(batch.targets)), value)])[0]

    def batches(self, rows: Sequence[Tokens], max_tokens: int, device: torch.device) -> Iterator[Pack]:
        """Yield rows in as few micro-batches of at most ``max_tokens`` tokens as their order allows."""
        for part in cut(rows, lambda row: [len(row.input_ids)], max_tokens, not self.packs):
            yield pack_rows({"forget": part}).to(device)

    @torch.no_grad()
    def reference_at(self, model: nn.Module, batch: Pack) -> Callable[[slice], Tensor]:
        """Run one forward pass of the reference model; only its hidden states are kept.

        Returns:
            Function from a slice of the labelled tokens to their reference logits, or with ``layer`` to hidden states.
        """
        if not self.chunks:
            logits = labelled_logits(model, self.config, batch)
            return lambda part: logits[part]
        states = self.states(model, batch)
        if self.layer is not None:
            return lambda part: states[part]
        head = getattr(self.head, "base_layer", self.head)  # without an adapter on the output layer
        output: Callable[[Tensor], Tensor] = torch.no_grad()(head.forward)
        return lambda part: output(states[part])

    def states(self, model: nn.Module, batch: Pack) -> Tensor:
        """Run one forward pass and return the (N, d) hidden states that predict the labelled tokens (or of ``layer``).

        This works only with ``chunks``.
        """
        return self._run(model, batch, lambda states: states)

    def _run(self, model: nn.Module, batch: Pack, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Run a forward pass and return ``function`` of the (N, d) hidden states at the labelled tokens.

        The output layer's forward is replaced during the pass: it calls ``function`` on the labelled hidden
        states, so that the model's "logits" are what ``function`` returns, and the logits of all tokens never exist.
        """
        layer_output: list[Tensor] = []
        result: list[Tensor] = []

        def in_place_of_output(states: Tensor) -> Tensor:
            where = batch.keep  # positions that predict the labelled tokens
            if self.layer is not None:
                where, states = where + 1, layer_output[0]  # the labelled tokens themselves
            labelled = states[0, where] if self.packs else states[batch.rows, batch.position_ids[where]]
            result[:] = [function(labelled)]
            return result[0][None]

        with patch.object(self.head, "forward", in_place_of_output), self._up_to_layer(layer_output):
            model_output: Tensor = _call(model, self.config, batch).logits[0]
        # FSDP needs the model's own output: its hooks there gather weights for the backward pass. A model may scale its
        # output: `_chunks_agree` has ruled that out for values of logits, and values of hidden states are not scaled.
        return model_output if self.layer is None else result[0]

    @contextmanager
    def _up_to_layer(self, layer_output: list[Tensor]) -> Iterator[None]:
        """Store the hidden states after ``layer``; models that read the number of layers skip those above it."""
        if self.layer is None:
            yield
            return
        config = self.config.get_text_config()
        depth = config.num_hidden_layers

        def store(module: nn.Module, inputs: Any, output: Any) -> None:
            layer_output[:] = [output[0] if isinstance(output, tuple) else output]

        config.num_hidden_layers = self.layer + 1
        try:
            with self.layers[self.layer].register_forward_hook(store):
                yield
        finally:
            config.num_hidden_layers = depth

    @torch.no_grad()
    def _chunks_agree(self, model: Any) -> bool:
        """Return whether NLLs computed in place of the output layer equal those from the model's logits.

        They differ if the model scales or caps its logits.
        """
        batch = pack_rows({"forget": _TRIAL_ROWS}).to(model.device)
        with evaluating(model):
            expected = token_nll(labelled_logits(model, self.config, batch), batch.targets)
            try:
                found = self.of_all(model, batch)
            except (RuntimeError, IndexError, AttributeError, TypeError):  # the model uses its output layer differently
                return False
        eps = torch.finfo(next(model.parameters()).dtype).eps
        return bool((found - expected).abs().max() <= eps**0.5 * expected.abs().max())


def _value(span: Span, inputs: Tensor, batch: Pack) -> Tensor:
    """Compute a span's values from the logits or hidden states of all labelled tokens."""
    reference = span.reference(slice(None)) if span.reference else None
    return span.value(inputs[span.tokens], batch.targets[span.tokens], reference)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the model's decoder layers, in order: its first `ModuleList` of length ``num_hidden_layers``."""
    depth = model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr, operator]
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth)


def labelled_logits(model: nn.Module, config: Any, batch: Pack) -> Tensor:
    """Compute the (N, V) logits that predict the labelled tokens, with the model's own output layer."""
    logits: Tensor = _call(model, config, batch).logits
    return logits[0, batch.keep] if packs(config) else logits[batch.rows, batch.position_ids[batch.keep]]


def _call(model: nn.Module, config: Any, batch: Pack) -> Any:
    """Return the model's output: (1, T, ...) for packed rows, else (B, longest, ...), padded on the right."""
    if packs(config):
        ids, positions = batch.input_ids[None], batch.position_ids[None]
        return model(input_ids=ids, position_ids=positions, use_cache=False, **pack_arguments(config, batch))
    lengths = torch.tensor(batch.lengths, device=batch.input_ids.device)
    mask = torch.arange(max(batch.lengths), device=lengths.device)[None] < lengths[:, None]
    padded = torch.zeros(mask.shape, dtype=torch.long, device=lengths.device)
    padded[mask] = batch.input_ids
    return model(input_ids=padded, attention_mask=mask.long(), use_cache=False)


@torch.no_grad()
def use_packing(model: Any, attention: str = "auto") -> bool:
    """Switch the model to packed attention if two packed rows then get the same logits as each row alone.

    Only a trial can show this: a model may carry state from token to token outside its attention, or its attention may
    differ from the interface. Such a model keeps its attention, and its rows are padded. The model has to be in
    evaluation mode and without adapter.

    Returns:
        Whether the model takes packed rows now.

    Raises:
        ConfigError: the attention named does not run here, or does not keep rows apart in this model.
    """
    if attention == "auto" and not can_pack(model):
        return False
    own = model.config._attn_implementation
    alone = torch.cat([_trial_logits(model, [row]) for row in _TRIAL_ROWS])
    try:
        model.set_attn_implementation(IMPLEMENTATION if attention == "auto" else attention)
        packed = _trial_logits(model, _TRIAL_ROWS)
    except torch.OutOfMemoryError:
        raise
    except (ImportError, RuntimeError) as error:  # not installed, or no kernel for this GPU
        fault = f"does not run here: {error}"
    else:
        # Equal up to rounding, in half of the digits.
        if (packed - alone).abs().max() <= torch.finfo(alone.dtype).eps ** 0.5 * alone.abs().max():
            return True
        fault = "does not keep rows apart in this model"
    model.set_attn_implementation(own)
    if attention != "auto":
        raise ConfigError(f"--attention {attention}: {fault}")
    log.warning("rows are padded, which is slower: packed attention %s", fault)
    return False


def _trial_logits(model: Any, rows: Sequence[Tokens]) -> Tensor:
    return labelled_logits(model, model.config, pack_rows({"forget": rows}).to(model.device))


@torch.no_grad()
def row_values(
    model: nn.Module, passes: Passes, rows: Sequence[Tokens], max_tokens: int, value: TokenValue = token_nll
) -> list[Tensor]:
    """Compute a value of each row's labelled tokens, without dropout: (n,) float32 on the CPU for each row.

    By default the value is the NLL in nats. Rows share forward passes of up to ``max_tokens`` tokens.
    """
    device = next(model.parameters()).device
    with evaluating(model):
        found = [passes.of_all(model, batch, value).float().cpu() for batch in passes.batches(rows, max_tokens, device)]
    return list(torch.split(torch.cat(found), [row.scored for row in rows])) if found else []


def compile_layers(model: nn.Module) -> None:
    """Compile each decoder layer, in place, for any number of tokens and rows; names and weights do not change."""
    for layer in decoder_layers(model):
        layer.compile(dynamic=True)


@contextmanager
def placed(model: Any, device: torch.device) -> Iterator[None]:
    """Move a model to a device within the block, and back afterwards."""
    before = model.device
    model.to(device)
    try:
        yield
    finally:
        model.to(before)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode within the block.

    FSDP leaves weights gathered after a forward pass without backward pass. The next forward pass would then use the
    gathered weights from before the optimiser step, so they are sharded again here.
    """
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
