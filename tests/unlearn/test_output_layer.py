"""Values computed in chunks of logits equal those of whole logits and take less memory."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import MethodType
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from lume_unlearn.methods.pdu import pdu_tokens
from lume_unlearn.methods.retain import kl_tokens
from lume_unlearn.methods.undial import undial_tokens
from lume_unlearn.model import output_layer
from lume_unlearn.model.output_layer import TokenValue, in_chunks, nll_value, replaced_by

TOKENS, WIDTH, VOCABULARY = 37, 12, 50
CHUNKS = [0, 5 * 4 * VOCABULARY + 3, 36 * 4 * VOCABULARY, 37 * 4 * VOCABULARY]
"""Bytes for one token at least, five, all but one, and all tokens."""


def spread(logits: Tensor, targets: Tensor, reference: Tensor | None) -> Tensor:
    return pdu_tokens(logits)


def distance(logits: Tensor, targets: Tensor, reference: Tensor | None) -> Tensor:
    assert reference is not None
    return kl_tokens(logits, reference)


def adjusted(logits: Tensor, targets: Tensor, reference: Tensor | None) -> Tensor:
    assert reference is not None
    return undial_tokens(logits, reference, targets, 3.0)


VALUES: dict[str, TokenValue] = {"nll": nll_value, "spread": spread, "kl": distance, "undial": adjusted}


class Case:
    """Hidden states, targets, an output layer with bias, and another model's logits."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.states = torch.randn(TOKENS, WIDTH, dtype=dtype, requires_grad=True)
        self.targets = torch.randint(0, VOCABULARY, (TOKENS,))
        self.layer = nn.Linear(WIDTH, VOCABULARY, dtype=dtype)
        self.reference = torch.randn(TOKENS, VOCABULARY, dtype=dtype)
        self.factors = torch.rand(TOKENS)

    def whole(self, value: TokenValue) -> list[Tensor]:
        return self.gradients(value(self.layer(self.states), self.targets, self.reference))

    def chunked(self, value: TokenValue) -> list[Tensor]:
        arguments = (self.states, self.targets, lambda part: self.reference[part])
        return self.gradients(in_chunks(value, self.layer.forward, VOCABULARY, *arguments))

    def gradients(self, values: Tensor) -> list[Tensor]:
        """The values, and the gradients of their sum with a factor of its own for each."""
        weights = [self.states, *self.layer.parameters()]
        return [values.detach(), *torch.autograd.grad((values * self.factors).sum(), weights)]


def assert_same(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-6) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
@pytest.mark.parametrize("name", VALUES)
def test_chunked_equals_whole(name: str, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", chunk_bytes)
    case = Case()
    assert_same(case.chunked(VALUES[name]), case.whole(VALUES[name]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchs_chunked_cross_entropy_equals_recomputed_chunks(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", 5 * 4 * VOCABULARY)
    case = Case(dtype)
    with mock.patch.object(output_layer, "checkpoint", wraps=output_layer.checkpoint) as recompute:
        by_torch = case.chunked(nll_value)
        assert bool(recompute.call_count) == (output_layer._LinearCrossEntropyOptions is None)
    monkeypatch.setattr(output_layer, "_LinearCrossEntropyOptions", None)  # as with torch before 2.13
    with mock.patch.object(output_layer, "checkpoint", wraps=output_layer.checkpoint) as recompute:
        by_hand = case.chunked(nll_value)
        assert recompute.call_count == -(-TOKENS // 5)
    assert_same(by_torch, by_hand)
    assert_same(by_hand, case.whole(nll_value))
    assert by_torch[0].dtype == by_hand[0].dtype


class Doubled(nn.Linear):
    """A linear layer with another forward."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize("subclass", [False, True])
def test_an_output_layer_with_another_forward_is_called(subclass: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", 5 * 4 * VOCABULARY)
    case, plain = Case(), nn.Linear.forward
    expected = case.gradients(nll_value(2 * plain(case.layer, case.states), case.targets, None))
    if subclass:
        case.layer.__class__ = Doubled
    else:  # a wrapper may replace a layer's forward and leave its type
        case.layer.forward = MethodType(lambda layer, states: 2 * plain(layer, states), case.layer)  # type: ignore[method-assign]
    assert_same(case.chunked(nll_value), expected)


def test_bfloat16_logits_give_float32_nlls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", 5 * 4 * VOCABULARY)
    half, full = Case(torch.bfloat16), Case()
    found = half.chunked(nll_value)[0]
    assert found.dtype == torch.float32
    assert found.equal(half.whole(nll_value)[0])  # no more rounding than in the logits
    with torch.autocast("cpu", torch.bfloat16):
        assert full.chunked(nll_value)[0].equal(full.whole(nll_value)[0])


@contextmanager
def saved_sizes() -> Iterator[list[int]]:
    """Collect the number of entries of each tensor that is kept for the backward pass."""
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


@pytest.mark.parametrize("name", VALUES)
def test_no_logits_are_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", 5 * 4 * VOCABULARY)
    case = Case()
    small = max(5 * VOCABULARY, WIDTH * VOCABULARY)  # a chunk of logits, the weights
    with saved_sizes() as chunked:
        found = in_chunks(
            VALUES[name], case.layer.forward, VOCABULARY, case.states, case.targets, lambda part: case.reference[part]
        )
    with saved_sizes() as whole:
        VALUES[name](case.layer(case.states), case.targets, case.reference)
    assert max(whole) == TOKENS * VOCABULARY  # the test could fail
    assert chunked
    assert max(chunked) <= small
    assert found.requires_grad


def test_no_tokens_give_no_values() -> None:
    case = Case()
    empty = in_chunks(nll_value, case.layer.forward, VOCABULARY, case.states[:0], case.targets[:0], None)
    assert empty.shape == (0,)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_a_replaced_layer_runs_its_hooks_and_is_restored(wrapped: bool, fails: bool) -> None:
    layer, ones, hooked = nn.Linear(3, 5), torch.ones(2, 3), []
    own = MethodType(lambda self, states: states + 1, layer)
    if wrapped:  # as wrappers do that move weights to a device when they are needed
        layer.forward = own  # type: ignore[method-assign]
    plain = layer(ones)
    layer.register_forward_hook(lambda module, inputs, output: hooked.append(output))
    with suppress(ZeroDivisionError), replaced_by(layer, lambda states: states * 7):
        assert layer(ones).equal(ones * 7)
        assert len(hooked) == 1
        if fails:
            _ = 1 / 0
    assert vars(layer).get("forward") is (own if wrapped else None)
    assert layer(ones).equal(plain)
