"""Values chunk by chunk in place of the output layer are those of whole logits, and take less memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lume_unlearn.methods.pdu import pdu_tokens
from lume_unlearn.methods.retain import kl_tokens
from lume_unlearn.methods.undial import undial_tokens
from lume_unlearn.model import output_layer
from lume_unlearn.model.output_layer import TokenValue, in_chunks, nll_value, replaced_by

TOKENS, WIDTH, VOCABULARY = 37, 12, 50
CHUNKS = [1, 3 * 4 * VOCABULARY, 10 * 4 * VOCABULARY + 3, 36 * 4 * VOCABULARY, 37 * 4 * VOCABULARY, 2**28]


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchs_own_path_and_the_recomputed_one_agree(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", 5 * 4 * VOCABULARY)
    case = Case(dtype)
    with counted(output_layer, "checkpoint", monkeypatch) as recomputed:
        by_torch = case.chunked(nll_value)
    used = output_layer._LinearCrossEntropyOptions is not None
    assert bool(recomputed) != used
    monkeypatch.setattr(output_layer, "_LinearCrossEntropyOptions", None)  # as with torch before 2.13
    with counted(output_layer, "checkpoint", monkeypatch) as recomputed:
        by_hand = case.chunked(nll_value)
    assert len(recomputed) == -(-TOKENS // 5)
    assert_same(by_torch, by_hand)
    assert_same(by_hand, case.whole(nll_value))
    assert by_torch[0].dtype == by_hand[0].dtype


@contextmanager
def counted(module: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Note each call of a function of the module."""
    calls: list[int] = []
    own = getattr(module, name)

    def noted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return own(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(module, name, noted)
        yield calls


class Doubled(nn.Linear):
    """A linear layer that does more than its weights say."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize("kind", ["subclass", "function", "instance"])
def test_an_output_that_is_no_plain_linear_layer_is_called_itself(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", 5 * 4 * VOCABULARY)
    case = Case()
    if kind == "subclass":
        case.layer.__class__ = Doubled
    plain = nn.Linear.forward
    output = {
        "subclass": case.layer.forward,
        "function": lambda states: 2 * case.layer(states),
        "instance": MethodType(lambda layer, states: 2 * plain(layer, states), case.layer),
    }[kind]
    expected = case.gradients(nll_value(2 * plain(case.layer, case.states), case.targets, None))
    if kind == "instance":  # a wrapper may replace a layer's forward and leave its type
        case.layer.forward = output  # type: ignore[method-assign]
        output = case.layer.forward
    assert_same(case.chunked(nll_value, output), expected)


def test_bfloat16_and_autocast_are_reduced_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", 5 * 4 * VOCABULARY)
    half, full = Case(torch.bfloat16), Case()
    found = half.chunked(nll_value)[0]
    assert found.dtype == torch.float32
    assert found.equal(half.whole(nll_value)[0])  # no more rounding than in the logits
    with torch.autocast("cpu", torch.bfloat16):
        assert full.chunked(nll_value)[0].equal(full.whole(nll_value)[0])


@contextmanager
def saved_sizes() -> Iterator[list[int]]:
    """The number of entries of each tensor that is kept for the backward pass."""
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


@pytest.mark.parametrize("name", VALUES)
def test_no_more_than_a_chunk_of_logits_exists(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", 5 * 4 * VOCABULARY)
    case, seen = Case(), []

    def output(states: Tensor) -> Tensor:
        seen.append(len(states))
        return case.layer(states)  # type: ignore[no-any-return]

    case.chunked(VALUES[name], output)
    assert max(seen) == 5
    assert sum(seen) == 2 * TOKENS  # once forth, once back


def test_a_chunk_is_a_token_at_least_and_no_tokens_are_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    empty = in_chunks(nll_value, case.layer.forward, VOCABULARY, case.states[:0], case.targets[:0], None)
    assert empty.shape == (0,)
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", 0)
    assert_same(case.chunked(spread), case.whole(spread))


def test_a_replaced_layer_computes_the_function_and_runs_its_hooks() -> None:
    layer, ones = nn.Linear(3, 5), torch.ones(2, 3)
    plain, seen = layer(ones), []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with replaced_by(layer, lambda states: states * 7):
        assert layer(ones).equal(ones * 7)
    assert layer(ones).equal(plain)
    assert [tuple(output.shape) for output in seen] == [(2, 3), (2, 5)]
    assert "forward" not in vars(layer)


def test_a_layer_is_restored_after_an_exception() -> None:
    layer = nn.Linear(3, 5)
    with pytest.raises(ZeroDivisionError), replaced_by(layer, lambda states: 1 / 0):  # type: ignore[arg-type, return-value]
        layer(torch.ones(2, 3))
    assert "forward" not in vars(layer)
    assert layer(torch.ones(2, 3)).shape == (2, 5)


@pytest.mark.parametrize("fails", [False, True])
def test_a_forward_of_the_layers_own_is_put_back(fails: bool) -> None:
    """As wrappers that move weights to a device in time set it."""
    layer = nn.Linear(3, 5)
    own = MethodType(lambda self, states: states + 1, layer)
    layer.forward = own  # type: ignore[method-assign]
    try:
        with replaced_by(layer, lambda states: states * 7):
            assert layer(torch.ones(1, 3)).tolist() == [[7.0] * 3]
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert vars(layer)["forward"] is own
    assert layer(torch.ones(1, 3)).tolist() == [[2.0] * 3]
