"""Rows of tokens without a text, for tests of passes."""

from collections.abc import Sequence

import torch

from lume_unlearn.data.encode import Tokens
from lume_unlearn.methods.common import IGNORED


def half_labelled(vocabulary: int, lengths: Sequence[int], seed: int = 1) -> list[Tokens]:
    """Random rows whose second half, or last token, is labelled."""
    torch.manual_seed(seed)
    rows = []
    for length in lengths:
        ids = torch.randint(2, vocabulary, (length,)).tolist()
        prompt = max(length // 2, 1)
        rows.append(Tokens(tuple(ids), (IGNORED,) * prompt + tuple(ids[prompt:])))
    return rows


def sizes(vocabulary: int, layers: int) -> dict[str, object]:
    """Of a model small enough for any test."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
    }
