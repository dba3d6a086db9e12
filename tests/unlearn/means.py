"""Means of the values of rows, each a tensor of its tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor


def mean(parts: list[Tensor]) -> Tensor:
    """Over all tokens; 0 without any."""
    joined = torch.cat(parts) if parts else torch.zeros(0)
    return joined.sum() / max(len(joined), 1)


def rows_mean(parts: list[Tensor]) -> Tensor:
    return torch.stack([part.mean() for part in parts]).mean()


def larger_mean(parts: Sequence[Tensor]) -> Tensor:
    """Each token as in the mean over rows or over tokens, where it counts more."""
    weights = [max(1 / len(parts) / len(part), 1 / sum(map(len, parts))) for part in parts]
    return torch.stack([weight * part.sum() for weight, part in zip(weights, parts, strict=True)]).sum()
