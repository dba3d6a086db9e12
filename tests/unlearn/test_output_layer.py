"""Values computed in chunks of logits equal those of whole logits and take less memory."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lume_unlearn.methods.pdu import pdu_tokens
from lume_unlearn.methods.retain import kl_tokens
from lume_unlearn.methods.undial import undial_tokens
from lume_unlearn.model import output_layer
from lume_unlearn.model.output_layer import TokenValue, in_chunks, nll_value

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

    def chunked(self, value: TokenValue, output: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
        output = output or self.layer.forward
        arguments = (self.states, self.targets, lambda part: self.reference[part])
        return self.gradients(in_chunks(value, output, VOCABULARY, *arguments))

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


def test_bfloat16_logits_give_float32_nlls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", 5 * 4 * VOCABULARY)
    half, full = Case(torch.bfloat16), Case()
    found = half.chunked(nll_value)[0]
    assert found.dtype == torch.float32
    assert found.equal(half.whole(nll_value)[0])  # no more rounding than in the logits
    with torch.autocast("cpu", torch.bfloat16):
        assert full.chunked(nll_value)[0].equal(full.whole(nll_value)[0])


@pytest.mark.parametrize("name", VALUES)
def test_no_more_than_a_chunk_of_logits_exists(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", 5 * 4 * VOCABULARY)
    case, seen = Case(), []

    def output(states: Tensor) -> Tensor:
        seen.append(len(states))
        return case.layer(states)  # type: ignore[no-any-return]

    case.chunked(VALUES[name], output)
    assert max(seen) == 5
    assert sum(seen) == 2 * TOKENS  # computed again in the backward pass
