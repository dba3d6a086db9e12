"""From a pack of rows to values of its labelled tokens, by the model in training and by the one before unlearning."""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import PartialState, cpu_offload
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from lume_unlearn.data.encode import Tokens
from lume_unlearn.data.packs import Pack, pack_rows
from lume_unlearn.data.schedule import Limits, cut
from lume_unlearn.methods.common import token_nll
from lume_unlearn.model.output_layer import TokenValue, in_chunks, nll_value, output_layer, replaced_by
from lume_unlearn.model.packing import IMPLEMENTATION, can_pack, keeping_apart, packs

_log = logging.getLogger("lume_unlearn")

ReferenceCopy = Literal["same", "bfloat16", "int8", "cpu"]


@dataclass(frozen=True)
class Span:
    """Some of a pack's labelled tokens, and what to compute for each of them."""

    tokens: slice
    value: TokenValue
    reference: Callable[[slice], Tensor] | None = None
    """(part of these tokens) to the reference's logits there, or hidden states, where the value needs them."""


class Passes:
    """How one model is passed over rows: packed or padded, output layer in chunks or whole, down to which layer."""

    def __init__(self, model: Any, layer: int | None = None) -> None:
        """Find out what the model can do, by trying.

        Args:
            model: not wrapped for distribution; PEFT's wrapper is fine. `use_packing` has been called on it.
            layer: values are computed from the hidden states behind this decoder layer (and the layers above it are
                left out), instead of from logits.
        """
        self.config, self.layer = model.config, layer
        self.packs = packs(model.config)
        self.head = output_layer(model)
        self.output = None if self.head is None else self.head.forward
        # Under LoRA the reference has the plain layer below an adapter on the output layer.
        self.reference_output = None if self.head is None else getattr(self.head, "base_layer", self.head).forward
        self.layers = decoder_layers(model) if layer is not None else nn.ModuleList()
        self.chunks = self.head is not None
        if self.chunks and layer is None:
            self.chunks = self._agrees(model)

    def values(self, model: nn.Module, batch: Pack, spans: Sequence[Span]) -> list[Tensor]:
        """One forward pass; for each span the values of its tokens, (n,) each.

        The spans' functions run inside the model's own forward pass, in place of its output layer, and only at labelled
        positions: wrappers that gather sharded weights for the length of a pass work, and the logits of all tokens
        never exist at once (see `output_layer`).

        Args:
            model: possibly wrapped by PEFT or for distribution.
            batch: on the model's device.
            spans: any number, overlapping or not.
        """
        if not self.chunks:
            logits = labelled_logits(model, self.config, batch)
            return [
                span.value(
                    logits[span.tokens],
                    batch.targets[span.tokens],
                    span.reference(slice(None)) if span.reference else None,
                )
                for span in spans
            ]

        def inside(states: Tensor) -> Tensor:
            return torch.cat([self._span_values(states[span.tokens], batch, span) for span in spans])

        found = self._run(model, batch, inside)
        return list(torch.split(found, [span.tokens.stop - span.tokens.start for span in spans]))

    @torch.no_grad()
    def reference_at(self, model: nn.Module, batch: Pack) -> Callable[[slice], Tensor]:
        """What this model says at the labelled tokens, to be used as the reference of another pass.

        Only hidden states are kept; logits come out of them again chunk by chunk.
        """
        if not self.chunks:
            logits = labelled_logits(model, self.config, batch)
            return lambda part: logits[part]
        states = self._run(model, batch, lambda states: states)
        output = self.reference_output
        if self.layer is not None or output is None:
            return lambda part: states[part]

        def logits_at(part: slice) -> Tensor:
            with torch.no_grad():
                found: Tensor = output(states[part])
            return found

        return logits_at

    def _span_values(self, states: Tensor, batch: Pack, span: Span) -> Tensor:
        targets = batch.targets[span.tokens]
        if self.layer is not None:
            return span.value(states, targets, span.reference(slice(None)) if span.reference else None)
        assert self.output is not None
        vocabulary = self.config.get_text_config().vocab_size
        return in_chunks(span.value, self.output, vocabulary, states, targets, span.reference)

    def _run(self, model: nn.Module, batch: Pack, inside: Callable[[Tensor], Tensor]) -> Tensor:
        """What ``inside`` makes of the hidden states at the labelled positions, (N, d), carried out by the model."""
        behind_layer: list[Tensor] = []
        computed: list[Tensor] = []

        def in_place_of_output(hidden: Tensor) -> Tensor:
            states = behind_layer[0] if self.layer is not None else hidden
            where = batch.keep
            if self.layer is not None:  # the states at the labelled tokens, not those that predict them
                where = where + 1
            labelled = states[0, where] if self.packs else states[batch.rows, batch.position_ids[where]]
            computed[:] = [inside(labelled)]
            return computed[0][None]

        with replaced_by(self.head, in_place_of_output), self._cut_off(behind_layer):
            found: Tensor = _call(model, self.config, batch).logits[0]
        # Values of states must not go through what the model may do to its logits (where values come from logits, it
        # does nothing: see `_agrees`). All others do, since wrappers gather shards again for what a model gives back.
        return found if self.layer is None else computed[0]

    @contextmanager
    def _cut_off(self, behind_layer: list[Tensor]) -> Iterator[None]:
        """Note the hidden states behind the chosen layer; run no layer above it in models that count their layers."""
        if self.layer is None:
            yield
            return
        config = self.config.get_text_config()
        depth = config.num_hidden_layers

        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            behind_layer[:] = [output[0] if isinstance(output, tuple) else output]

        handle = self.layers[self.layer].register_forward_hook(note)
        config.num_hidden_layers = self.layer + 1
        try:
            yield
        finally:
            config.num_hidden_layers = depth
            handle.remove()

    @torch.no_grad()
    def _agrees(self, model: Any) -> bool:
        """Whether values computed in place of the output layer are those of the model's own logits.

        They are not where a model scales or caps what its output layer gives.
        """
        batch = pack_rows({"forget": [Tokens(ids, ids) for ids in _TRIAL_ROWS]}).to(model.device)
        with evaluating(model):
            expected = token_nll(labelled_logits(model, self.config, batch), batch.targets)
            try:
                found = self.values(model, batch, [Span(slice(0, len(batch.targets)), nll_value)])[0]
            except (RuntimeError, IndexError, AttributeError, TypeError):  # more is done to the output than calling it
                return False
        eps = torch.finfo(next(model.parameters()).dtype).eps
        return bool((found - expected).abs().max() <= eps**0.5 * expected.abs().max())


_TRIAL_ROWS = ((3, 1, 4, 1, 5, 9, 2, 6), (5, 3, 5, 8, 9, 7, 9, 3, 2, 3))


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The model's decoder blocks, in order.

    Raises:
        ValueError: none of its module lists is as long as its configuration says.
    """
    depth = model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr, operator]
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise ValueError("the model's decoder layers were not found")


def labelled_logits(model: nn.Module, config: Any, batch: Pack) -> Tensor:
    """(N, V) logits at the positions that predict labelled tokens, by one pass with the model's own output layer.

    Args:
        model: possibly wrapped by PEFT or for distribution.
        config: the model's configuration; says whether it packs.
        batch: on the model's device.
    """
    logits: Tensor = _call(model, config, batch).logits
    return logits[0, batch.keep] if packs(config) else logits[batch.rows, batch.position_ids[batch.keep]]


def _call(model: nn.Module, config: Any, batch: Pack) -> Any:
    """The model's output for all rows: (1, T, ...) where it packs, else (B, longest, ...), padded on the right."""
    if packs(config):
        ids, positions = batch.input_ids[None], batch.position_ids[None]
        return model(input_ids=ids, position_ids=positions, use_cache=False, **keeping_apart(config, batch))
    lengths = torch.tensor(batch.lengths, device=batch.input_ids.device)
    mask = torch.arange(max(batch.lengths), device=lengths.device)[None] < lengths[:, None]
    padded = torch.zeros(mask.shape, dtype=torch.long, device=lengths.device)
    padded[mask] = batch.input_ids
    return model(input_ids=padded, attention_mask=mask.long(), use_cache=False)


@torch.no_grad()
def use_packing(model: Any, attention: str = "auto") -> bool:
    """Switch the model to packed attention where it then gives two short rows the logits that they get alone.

    Trying is the only way to be sure: a model may carry state from token to token beside its attention, or put more
    into its attention than the interface says. Such a model keeps its own attention, and its rows are padded.

    Args:
        model: in evaluation mode, without adapter.
        attention: "auto" for ours, or one of `TRANSFORMERS_ATTENTION`.

    Returns:
        Whether it packs now.

    Raises:
        ValueError: the attention that was asked for is not there, or does not keep rows apart in this model.
    """
    if attention == "auto" and not can_pack(model):
        return False
    own = model.config._attn_implementation
    rows = [Tokens(ids, ids) for ids in _TRIAL_ROWS]
    alone = torch.cat(
        [labelled_logits(model, model.config, pack_rows({"forget": [row]}).to(model.device)) for row in rows]
    )
    try:
        model.set_attn_implementation(IMPLEMENTATION if attention == "auto" else attention)
        packed = labelled_logits(model, model.config, pack_rows({"forget": rows}).to(model.device))
    except torch.OutOfMemoryError:
        raise
    except (ImportError, RuntimeError) as error:  # not installed, or no kernel for this GPU
        model.set_attn_implementation(own)
        if attention != "auto":
            raise ValueError(str(error)) from error
        _log.warning("rows will be padded, which is slower: packed attention does not run here (%s)", error)
        return False
    # Rounding may differ: half of the digits have to agree.
    if (packed - alone).abs().max() <= torch.finfo(alone.dtype).eps ** 0.5 * alone.abs().max():
        return True
    if attention != "auto":
        raise ValueError("does not keep rows apart in this model")
    model.set_attn_implementation(own)
    return False


@torch.no_grad()
def token_nlls(
    model: nn.Module, passes: Passes, rows: Sequence[Tokens], max_tokens: int, device: torch.device
) -> dict[Tokens, Tensor]:
    """NLL in nats of each labelled token of each row, by the model as it is: (labelled tokens,) float32 on the CPU.

    Rows of like length share a pass; several processes share the rows. The model is put into evaluation mode for it.
    """
    state = PartialState()
    order = sorted(set(rows), key=lambda row: (len(row.input_ids), row.input_ids))
    own = order[state.process_index :: state.num_processes]
    with evaluating(model):
        found = list(zip(own, row_nlls(model, passes, own, max_tokens, device), strict=True))
    return dict(gather_object(found)) if state.num_processes > 1 else dict(found)


@torch.no_grad()
def row_nlls(
    model: nn.Module, passes: Passes, rows: Sequence[Tokens], max_tokens: int, device: torch.device
) -> list[Tensor]:
    """NLL in nats of each row's labelled tokens, (labelled tokens,) float32 on the CPU, in as few passes as fit."""
    limits = Limits(None, max_tokens, padded=not passes.packs)
    found: list[Tensor] = []
    for part in cut(rows, lambda row: [len(row.input_ids)], limits):
        batch = pack_rows({"forget": part}).to(device)
        (nll,) = passes.values(model, batch, [Span(slice(0, len(batch.targets)), nll_value)])
        found += torch.split(nll.float().cpu(), [row.scored for row in part])
    return found


class Reference:
    """The model before unlearning, for losses that need its distributions or states during training.

    Under LoRA it is the model in training with its adapter off: no second copy of the weights. Otherwise it is a frozen
    copy, to be made before the first step; it shares the weights that are not trained.
    """

    def __init__(self, model: Any, passes: Passes, kind: ReferenceCopy = "same", share: bool = True) -> None:
        """Copy the model unless it is a PEFT model.

        Args:
            model: before the first step.
            passes: of that model.
            kind: of the copy: "same" as the model; "bfloat16" or "int8", smaller, and rounded; "cpu", held in the
                CPU's memory and brought to the device layer by layer whenever it is needed.
            share: whether a copy of the same kind may use the weights that are not trained.
        """
        self.passes, self.copy, self.placed = passes, None, kind == "cpu"
        if isinstance(model, PeftModel):
            return
        share = share and kind not in ("bfloat16", "int8")
        shared = {id(p): p for p in model.parameters() if share and not p.requires_grad}
        self.copy = copy.deepcopy(model, shared).eval().requires_grad_(False)
        self.passes = Passes(self.copy, passes.layer)
        _shrink(self.copy, kind)
        if self.passes.head is not None:  # where weights come and go, the layer has another forward now
            self.passes.reference_output = self.passes.head.forward

    @torch.no_grad()
    def at(
        self, model: nn.Module, unwrapped: Any, batch: Pack, autocast: AbstractContextManager[Any] | None = None
    ) -> Callable[[slice], Tensor]:
        """What the model before unlearning says at the pack's labelled tokens, without dropout.

        Args:
            model: the model in training as the trainer wrapped it (for LoRA the pass must go through the wrapper).
            unwrapped: the same without the wrapper.
            batch: rows to score.
            autocast: the arithmetic of the model in training, which a copy has not been wrapped in.
        """
        if self.copy is None:
            with unwrapped.disable_adapter(), evaluating(model):
                return self.passes.reference_at(model, batch)
        if not self.placed:
            self.copy.to(batch.input_ids.device)
            self.placed = True
        with autocast or nullcontext():
            return self.passes.reference_at(self.copy, batch)


def _shrink(model: nn.Module, kind: ReferenceCopy) -> None:
    """Make a frozen copy smaller, or move it out of the device's memory.

    Raises:
        ImportError: 8 bits need torchao, which is not installed.
    """
    if kind == "bfloat16":
        model.bfloat16()
    elif kind == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(model, Int8WeightOnlyConfig())
    elif kind == "cpu" and torch.cuda.is_available():
        cpu_offload(model, execution_device=torch.device("cuda", torch.cuda.current_device()))


def compile_layers(model: nn.Module) -> None:
    """Have torch compile each decoder layer: what lies between matrix products becomes one kernel.

    The layers share what is compiled, for any number of tokens and rows. Names and weights stay as they are; a copy
    made of the model later is not compiled.
    """
    for layer in decoder_layers(model):
        layer.compile(dynamic=True)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode within the block, then as it was.

    FSDP leaves some weights gathered behind a pass without backward; an optimiser step would then not reach the next
    pass, and what looks at the weights would see parts of them. So all are put back.
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
