"""Statistics of token distributions against a plain float64 computation, and the number that carries them."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch

from lume_tasks.metrics import token_scores
from lume_tasks.metrics.token_scores import TokenScores, token_statistics


@pytest.mark.parametrize("chunk", [1, 100])
def test_statistics_do_not_depend_on_how_many_are_computed_at_once(chunk: int, monkeypatch) -> None:
    """test_lume_hf compares them with the definition."""
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    positions, targets = torch.tensor([3, 3, 19, 0, 7, 11, 12]), torch.tensor([1, 2, 3, 4, 5, 6, 7])
    whole = token_statistics(logits, positions, targets)
    monkeypatch.setattr(token_scores, "_CHUNK", {"cpu": chunk})
    found = token_statistics(logits, positions, targets)
    assert [array.dtype for array in found] == [np.float32] * 3 + [np.bool_]
    for array, expected in zip(found, whole, strict=True):
        assert array == pytest.approx(expected, abs=1e-6)


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
