"""Generate texts from a model in memory: the only sampling loop beside the harness's."""

from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList


def generated(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    never: Sequence[Sequence[int]] = (),
) -> list[str]:
    """Generate one continuation of each prompt, in one batch; the texts have no special tokens.

    Args:
        model: causal language model in evaluation mode.
        tokenizer: its tokenizer; if it has no padding token, its EOS token becomes one.
        prompts: token ids.
        max_new_tokens: limit for a continuation; EOS or another stop token of the model ends it earlier.
        temperature: of the sampling, without top-k; 0 takes the most probable token.
        top_p: share of the probability mass to sample from.
        never: for each prompt, token ids that its continuation must not contain.
    """
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    inputs = tokenizer.pad({"input_ids": list(prompts)}, padding_side="left", return_tensors="pt").to(model.device)
    stops = model.generation_config.eos_token_id  # chat models may have several
    stops = {tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])} - {None}
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": top_p}

    def allowed(_: Tensor, scores: Tensor) -> Tensor:
        for row, banned in zip(scores, never, strict=False):
            row[list(banned)] = -inf
        return scores

    with torch.no_grad():
        output = model.generate(
            **inputs,
            logits_processor=LogitsProcessorList([allowed] if any(never) else []),
            **(sampling if temperature else {"do_sample": False}),
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(stops),
            pad_token_id=tokenizer.pad_token_id,
        )
    return list(tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
