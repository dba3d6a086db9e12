"""Statistics of token distributions against a plain float64 computation, and the number that carries them."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch

from lume_tasks.metrics import token_scores
from lume_tasks.metrics.token_scores import TokenScores, token_statistics


def plain(logits: torch.Tensor, targets: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The definitions, in float64, one position at a time."""
    values = logits.double().numpy()
    logprobs, mean, variance, greedy = [], [], [], []
    for row, target in zip(values, targets.numpy(), strict=True):
        logp = row - math.log(sum(math.exp(z) for z in row))
        p = np.exp(logp)
        logprobs.append(logp[target])
        mean.append(sum(p[v] * logp[v] for v in range(len(p)) if p[v]))
        variance.append(sum(p[v] * logp[v] ** 2 for v in range(len(p)) if p[v]) - mean[-1] ** 2)
        greedy.append(row[target] == row.max())
    return np.array(logprobs), np.array(mean), np.array(variance), np.array(greedy)


@pytest.mark.parametrize("chunk", [1, 100, 2**16])
@pytest.mark.parametrize("scale", [0.01, 8.0])
def test_statistics_are_those_of_the_definition(scale: float, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_scores, "_CHUNK", {"cpu": chunk})
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 50, generator=generator) * scale
    positions = torch.tensor([3, 3, 19, 0, 7, 11, 12])
    targets = torch.randint(0, 50, (7,), generator=generator)
    targets[:4] = logits[positions[:4]].argmax(-1)
    found = token_statistics(logits, positions, targets)
    wanted = plain(logits[positions], targets)
    assert [array.dtype for array in found] == [np.float32] * 3 + [np.bool_]
    for array, expected in zip(found[:3], wanted[:3], strict=True):
        assert array == pytest.approx(expected, abs=1e-5)
    assert np.array_equal(found[3], wanted[3])
    assert (found[2] >= 0).all()


def test_a_uniform_and_a_certain_distribution() -> None:
    logits = torch.tensor([[0.0] * 4, [200.0, 0.0, 0.0, 0.0], [0.0, -math.inf, -math.inf, 0.0]])
    logprobs, mean, variance, greedy = token_statistics(logits, torch.arange(3), torch.tensor([2, 0, 1]))
    assert logprobs == pytest.approx([-math.log(4), 0.0, -math.inf], abs=1e-6)
    assert mean == pytest.approx([-math.log(4), 0.0, -math.log(2)], abs=1e-6)
    assert variance == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)
    assert greedy[1:].tolist() == [True, False]


@pytest.mark.parametrize("through", [lambda v: pickle.loads(pickle.dumps(v)), copy.deepcopy])
def test_it_travels_whole(through) -> None:
    arrays = np.float32([-1.5, -0.25]), np.float32([-2, -1]), np.float32([0.5, 0.25]), np.array([True, False])
    same = through(TokenScores(*arrays, 3.0))
    assert (type(same), same, same.grad_norm) == (TokenScores, -1.75, 3.0)
    for name, array in zip(("logprobs", "mean", "variance", "greedy"), arrays, strict=True):
        assert np.array_equal(getattr(same, name), array)
        assert getattr(same, name).dtype == array.dtype
