"""Packed rows get the logits, losses and gradients that each row gets alone."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
)

from lume_unlearn.data.encode import Tokens
from lume_unlearn.data.packs import SIDES, pack_rows
from lume_unlearn.methods.common import IGNORED, token_nll
from lume_unlearn.methods.spec import Side
from lume_unlearn.model import packing
from lume_unlearn.model.forward import labelled_logits, use_packing
from lume_unlearn.model.packing import IMPLEMENTATION, can_pack
from tests.unlearn.tokens import half_labelled, sizes

VOCABULARY = 120
SIZES: dict[str, Any] = sizes(VOCABULARY, 2)
MODELS: dict[str, Callable[[], Any]] = {
    "llama-gqa": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2)),
    "olmo-tied": lambda: OlmoForCausalLM(OlmoConfig(**SIZES, tie_word_embeddings=True, clip_qkv=1.0)),
    # Some of the rows below are longer than its window, some are not.
    "mistral-window": lambda: MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=6)),
}
ROWS = half_labelled(VOCABULARY, [3, 41, 2, 17, 90, 5])


def make(name: str) -> Any:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def alone(model: Any, rows: list[Tokens]) -> Tensor:
    """(N, V) logits at the labelled positions, one row at a time, by a plain call."""
    parts = []
    for row in rows:
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
        parts.append(logits[torch.tensor(row.labels[1:]) != IGNORED])
    return torch.cat(parts)


def logits_of(model: Any, rows: list[Tokens] = ROWS) -> Tensor:
    return labelled_logits(model, model.config, pack_rows({"forget": rows}))


def gradients(model: Any) -> dict[str, Tensor]:
    """Of the token mean of the NLL."""
    model.zero_grad()
    token_nll(logits_of(model), pack_rows({"forget": ROWS}).targets).mean().backward()  # type: ignore[no-untyped-call]
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys() != set()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", MODELS)
def test_packed_equals_padded_equals_alone(name: str) -> None:
    padded = make(name)
    packed = copy.deepcopy(padded)
    assert use_packing(packed)
    assert packed.config._attn_implementation == IMPLEMENTATION
    expected = alone(padded, ROWS)
    for model in (packed, padded):
        torch.testing.assert_close(logits_of(model), expected, rtol=1e-5, atol=1e-5)
    targets = torch.cat([torch.tensor([label for label in row.labels if label != IGNORED]) for row in ROWS])
    found = [gradients(packed), gradients(padded)]
    padded.zero_grad()
    (-expected.log_softmax(-1)[range(len(targets)), targets].mean()).backward()  # type: ignore[no-untyped-call]
    by_hand = {name: weight.grad for name, weight in padded.named_parameters()}
    for ours in found:
        assert_same_gradients(ours, by_hand)


@pytest.mark.parametrize("side", SIDES)
def test_one_side_of_a_pack_equals_the_pack_of_its_rows(side: Side) -> None:
    rows: dict[Side, list[Tokens]] = {
        side: half_labelled(VOCABULARY, lengths, seed)
        for seed, (side, lengths) in enumerate({"forget": [4, 9], "alternative": [], "retain": [2, 30, 7]}.items())
    }
    whole = replace(pack_rows(rows), reference=torch.arange(50.0))
    assert whole.targets[whole.tokens_of(side)].numel() == sum(row.scored for row in rows[side])
    if not rows[side]:
        assert whole.only(side).lengths == ()
        return
    ours, theirs = whole.only(side), pack_rows({side: rows[side]})
    for field in vars(theirs):
        value, expected = getattr(ours, field), getattr(theirs, field)
        assert value.equal(expected) if isinstance(expected, Tensor) else value == expected, field
    assert whole.lengths[whole.rows_of(side)] == theirs.lengths


def gpt2() -> Any:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=1)
    )


def lfm2() -> Any:  # has short convolutions between its attention layers
    return Lfm2ForCausalLM(Lfm2Config(**SIZES, num_key_value_heads=2, layer_types=["conv", "full_attention"]))


@pytest.mark.parametrize(("build", "declares"), [(gpt2, False), (lfm2, True)])
def test_a_model_that_cannot_pack_keeps_its_attention_and_is_padded(build: Callable[[], Any], declares: bool) -> None:
    torch.manual_seed(0)
    model = build().eval()
    own = model.config._attn_implementation
    assert can_pack(model) == declares  # so only the trial can tell
    assert not use_packing(model)
    assert model.config._attn_implementation == own != IMPLEMENTATION
    torch.testing.assert_close(logits_of(model), alone(model, ROWS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama-gqa", "mistral-window"])
def test_padded_calls_and_generation_are_unchanged_by_packed_attention(name: str) -> None:
    plain = make(name)
    packed = copy.deepcopy(plain)
    use_packing(packed)
    torch.manual_seed(3)
    ids = torch.randint(2, VOCABULARY, (3, 12))
    mask = torch.ones_like(ids)
    mask[0, :5] = mask[1, :9] = 0  # on the left, as for generation
    for given in (mask, mask.flip(1)):
        expected, found = (model(input_ids=ids, attention_mask=given).logits[given.bool()] for model in (plain, packed))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    generated = [m.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False) for m in (plain, packed)]
    assert generated[0].equal(generated[1])


def test_an_attention_of_transformers_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "TRANSFORMERS_ATTENTION", ("eager",))  # the one that runs everywhere
    model = make("llama-gqa")
    expected = alone(model, ROWS)
    assert use_packing(model, "eager")
    assert model.config._attn_implementation == "eager"
    torch.testing.assert_close(logits_of(model), expected, rtol=1e-5, atol=1e-5)


def test_a_chosen_attention_that_does_not_keep_rows_apart_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "TRANSFORMERS_ATTENTION", ("sdpa",))
    with pytest.raises(ValueError, match="does not keep rows apart"):
        use_packing(gpt2(), "sdpa")  # has learned positions and its own mask
