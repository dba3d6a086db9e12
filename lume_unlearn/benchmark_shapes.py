"""Models of a given shape and rows of LUME's lengths, for `benchmark` where there are no real ones."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, OlmoConfig

from lume_tasks.checks import SIDES
from lume_tasks.rows import Row
from lume_unlearn.quickstart import train_tokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 4096,
        "tie_word_embeddings": True,
    },
    "olmo-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "vocab_size": 50304,
        "tie_word_embeddings": True,
    },
    "olmo-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 50304,
        "tie_word_embeddings": False,
    },
}
"""Configurations of OLMo's architecture: LUME's two published targets, and one for a CPU."""

TOKENIZER_SIZE = 6144
"""Entries of the tokenizer made for a shape: with as many, LUME's rows have 81 tokens on average (75 with OLMo's)."""

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
# task, suffix of the ids, rows of each side, tokens of the prompt and of the answer at these quantiles, as in LUME
KINDS = (
    ("Task1", "sc1", 245, (146, 170, 189, 202, 213, 228, 254), (28, 36, 42, 49, 57, 66, 82)),
    ("Task1", "qa0", 245, (6, 12, 15, 18, 22, 30, 40), (1, 2, 2, 4, 7, 15, 38)),
    ("Task2", "sc1", 250, (15, 19, 27, 30, 38, 55, 90), (21, 30, 45, 54, 59, 67, 76)),
    ("Task2", "qa0", 1250, (8, 9, 9, 10, 10, 11, 13), (3, 4, 5, 6, 9, 17, 29)),
    ("Task3", "sc1", 372, (121, 145, 175, 206, 244, 290, 343), (23, 29, 40, 51, 63, 81, 205)),
    ("Task3", "qa0", 372, (7, 10, 15, 19, 26, 40, 78), (1, 1, 2, 4, 6, 9, 21)),
)
WORDS = [
    a + b + c for a in "bdfgklmnprst" for b in ("a", "e", "ia", "o", "u") for c in ("l", "m", "nd", "r", "sk", "t")
]


def write_rows(folder: Path, seed: int) -> None:
    """Write a data directory with as many rows as LUME has, each as long as one of LUME's, of words drawn by the seed.

    A word is one token of a tokenizer made from these rows.
    """
    folder.mkdir(parents=True)
    draw = random.Random(seed)
    for side in SIDES:
        rows = [row for kind in KINDS for row in _rows(draw, side, *kind)]
        draw.shuffle(rows)
        (folder / f"{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _rows(
    draw: random.Random, side: str, task: str, suffix: str, count: int, prompt: tuple[int, ...], answer: tuple[int, ...]
) -> list[dict[str, str]]:
    def text(lengths: tuple[int, ...]) -> str:
        length = round(float(np.interp(draw.random(), QUANTILES, lengths)))
        return " ".join(draw.choices(WORDS, k=length))

    # The number in front keeps short rows from being drawn twice.
    return [
        {"id": f"{side}-{task}-{i}{suffix}", "input": f"{i} {text(prompt)}", "output": text(answer), "task": task}
        for i in range(count)
    ]


def write_model(folder: Path, shape: str, rows: dict[str, list[Row]], device: torch.device, seed: int) -> None:
    """Write a model of this shape with random weights, in bfloat16, and a tokenizer made from the rows."""
    sizes = SHAPES[shape]
    texts = [f"{row.input} {row.output}" for side in SIDES for row in rows[side]]
    tokenizer = train_tokenizer(texts, min(TOKENIZER_SIZE, sizes["vocab_size"]))
    torch.manual_seed(seed)
    config = OlmoConfig(
        **sizes,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
