"""Packed or padded, with the output layer in chunks or not, rows get the values and gradients that each gets alone."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import DynamicCache

from lume_unlearn.data.encode import Tokens
from lume_unlearn.data.packs import pack_rows
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.common import IGNORED, token_nll
from lume_unlearn.methods.pdu import PDU
from lume_unlearn.methods.retain import kl_tokens, state_distance
from lume_unlearn.model import output_layer, packing
from lume_unlearn.model.forward import Passes, Span, labelled_logits, use_packing
from lume_unlearn.model.packing import IMPLEMENTATION, can_pack
from tests.conftest import make_model
from tests.unlearn.rows import half_labelled, logits, places

VOCABULARY = 120
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "olmo": {"tie_word_embeddings": True, "clip_qkv": 1.0},
    # Some of the rows below are longer than its window, some are not.
    "mistral": {"sliding_window": 6},
    "gpt2": {"resid_pdrop": 0.1},
    # It has short convolutions between its attention layers, which only the trial finds.
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    # These two scale or cap their logits.
    "cohere": {"logit_scale": 0.25},
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 2.0},
}
PADDED, SCALED = ("gpt2", "lfm2", "gemma2"), ("cohere", "gemma2")
FORGET = half_labelled([3, 41, 2, 9], vocabulary=VOCABULARY)
RETAIN = half_labelled([7, 30, 4], seed=2, vocabulary=VOCABULARY)
BATCH = pack_rows({"forget": FORGET, "retain": RETAIN})
ALL = slice(0, len(BATCH.targets))


def make(name: str, **lora: Any) -> tuple[Any, Any]:
    """A model in float64 with packed attention if possible, and the same as transformers makes it.

    Both get the same random adapter if options of one are given.
    """
    plain = make_model(VOCABULARY, family=name, num_hidden_layers=3, **MODELS[name]).double()
    packed = copy.deepcopy(plain)
    use_packing(packed)
    if not lora:
        return packed, plain
    models = []
    for model in (packed, plain):
        torch.manual_seed(1)
        config = LoraConfig(r=3, init_lora_weights=False, task_type="CAUSAL_LM", **lora)
        models.append(get_peft_model(model, config).double().eval())
    return models[0], models[1]


ROWS = [*FORGET, *RETAIN]


def alone(model: Any) -> Tensor:
    """(N, V) logits that predict the labelled tokens, row by row."""
    return torch.cat([logits(model, row) for row in ROWS])


def spread(logits: Tensor, targets: Tensor, reference: Tensor | None) -> Tensor:
    return PDU().token_loss(logits, targets, None)


def distance(logits: Tensor, targets: Tensor, reference: Tensor | None) -> Tensor:
    assert reference is not None
    return kl_tokens(logits, reference)


def gradients(model: Any, values: list[Tensor]) -> dict[str, Tensor]:
    """Gradients of the sum of all values, each with its own factor."""
    model.zero_grad()
    flat = torch.cat(values)
    (flat * torch.linspace(0.1, 1.0, len(flat))).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def check(model: Any, plain: Any, chunks: bool) -> None:
    """Compare values and gradients of overlapping spans with those of logits row by row."""
    passes = Passes(model)
    assert passes.chunks == chunks
    off = 1e-6 if chunks else 1e-5  # the models with scaled logits compute some values in float32
    torch.manual_seed(7)
    reference = torch.randn(BATCH.token_counts[-1], VOCABULARY, dtype=torch.float64)
    forget, retain = BATCH.tokens_of("forget"), BATCH.tokens_of("retain")
    spans = [
        Span(forget, token_nll),
        Span(retain, distance, lambda part: reference[part]),
        Span(forget, spread),
        Span(retain, token_nll),
    ]
    whole = alone(plain)
    expected = [
        token_nll(whole[forget], BATCH.targets[forget]),
        kl_tokens(whole[retain], reference),
        PDU().token_loss(whole[forget], BATCH.targets[forget], None),
        token_nll(whole[retain], BATCH.targets[retain]),
    ]
    found = passes.values(model, BATCH, spans)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=off, atol=off)
    our_gradients, their_gradients = gradients(model, found), gradients(plain, expected)
    assert our_gradients.keys() == their_gradients.keys() != set()
    for name, value in our_gradients.items():
        torch.testing.assert_close(value, their_gradients[name], rtol=off, atol=off, msg=name)
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]  # all is put back


@pytest.mark.parametrize("chunk_bytes", [4 * 4 * VOCABULARY, 2**28], ids=["chunks", "one"])
@pytest.mark.parametrize("name", MODELS)
def test_values_are_those_of_each_row_alone(name, chunk_bytes, monkeypatch):
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", chunk_bytes)
    model, plain = make(name)
    assert can_pack(plain) == (name not in ("gpt2", "gemma2"))
    attention = plain.config._attn_implementation if name in PADDED else IMPLEMENTATION
    assert model.config._attn_implementation == attention
    check(model, plain, chunks=name not in SCALED)
    reference = Passes(model).reference_at(model, BATCH)(slice(2, 9))
    torch.testing.assert_close(reference, alone(plain)[2:9], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("head", [False, True], ids=["", "head"])
def test_values_with_an_adapter_also_on_the_output_layer(name, head, monkeypatch):
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", 4 * 4 * VOCABULARY)
    targets = ["c_attn"] if name == "gpt2" else ["q_proj", "down_proj"]
    model, plain = make(name, target_modules=[*targets, *(["lm_head"] if head else [])])
    check(model, plain, chunks=True)


def test_no_more_than_a_chunk_of_logits_exists(monkeypatch):
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", 4 * 4 * VOCABULARY)
    (model, _), seen = make("llama"), []
    passes = Passes(model)
    own = passes.head.forward

    def output(states):
        seen.append(len(states))
        return own(states)

    passes.head.forward = output
    passes.values(model, BATCH, [Span(ALL, token_nll)])[0].sum().backward()
    assert (max(seen), sum(seen)) == (4, 2 * len(BATCH.targets))  # computed again in the backward pass


@pytest.mark.parametrize("name", ["llama", "gpt2", "cohere"])
def test_spans_and_passes_without_labelled_tokens(name):
    """Other processes need the zero gradients to exchange theirs."""
    model, _ = make(name)
    found = Passes(model).values(model, BATCH, [Span(ALL, token_nll), Span(slice(3, 3), token_nll)])
    assert [len(values) for values in found] == [len(BATCH.targets), 0]
    empty = pack_rows({"retain": [Tokens((0,), (IGNORED,))]})
    zero = gradients(model, Passes(model).values(model, empty, [Span(slice(0, 0), token_nll)]))
    assert zero
    assert not any(value.any() for value in zero.values())


def states_value(states: Tensor, targets: Tensor, reference: Tensor | None) -> Tensor:
    return state_distance(states, torch.zeros(1))


@pytest.mark.parametrize("layer", [0, 1])  # of three; transformers applies the final norm after the last one
@pytest.mark.parametrize("name", ["llama", "gpt2", "cohere"])
def test_hidden_states_after_a_layer(name, layer):
    model, plain = make(name)
    passes = Passes(model, layer)
    hidden = [plain(input_ids=torch.tensor([row.input_ids]), output_hidden_states=True).hidden_states for row in ROWS]
    expected = torch.cat([own[layer + 1][0, places(row)] for own, row in zip(hidden, ROWS, strict=True)])
    ran = []
    for number, block in enumerate(passes.layers):
        block.register_forward_hook(lambda module, inputs, output, number=number: ran.append(number))
    (found,) = passes.values(model, BATCH, [Span(ALL, states_value)])
    torch.testing.assert_close(found, state_distance(expected, torch.zeros(1)), rtol=1e-6, atol=1e-6)
    assert ran == list(range(3 if name == "gpt2" else layer + 1))  # GPT-2 runs its whole list of layers
    torch.testing.assert_close(passes.reference_at(model, BATCH)(slice(None)), expected, rtol=1e-6, atol=1e-6)
    assert model.config.num_hidden_layers == 3
    assert any(value.any() for value in gradients(model, [found]).values())


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_padded_calls_and_generation_are_unchanged_by_packed_attention(name):
    packed, plain = make(name)
    torch.manual_seed(3)
    ids = torch.randint(2, VOCABULARY, (3, 12))
    mask = torch.ones_like(ids)
    mask[0, :5] = mask[1, :9] = 0  # on the left, as for generation
    for given in (mask, mask.flip(1)):
        expected, found = (model(input_ids=ids, attention_mask=given).logits[given.bool()] for model in (plain, packed))
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    generated = [m.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False) for m in (plain, packed)]
    assert generated[0].equal(generated[1])


def test_an_attention_of_transformers_can_be_chosen(monkeypatch):
    monkeypatch.setattr(packing, "TRANSFORMERS_ATTENTION", ("eager", "sdpa"))  # those that run everywhere
    model = make("llama")[1].float()
    expected = alone(model)
    assert use_packing(model, "eager")
    assert model.config._attn_implementation == "eager"
    torch.testing.assert_close(labelled_logits(model, model.config, BATCH), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match=r"^--attention sdpa: does not keep rows apart"):
        use_packing(make("lfm2")[1], "sdpa")


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_model_that_is_judged_while_it_trains_scores_as_ever(family: str) -> None:
    """Scoring goes on from a cached beginning, reads rows of one length, and pads: none of these is a pack."""
    model, plain = make(family)
    ids = torch.randint(3, VOCABULARY, (2, 14))
    ids[1, :9] = ids[0, :9]
    padding = torch.ones_like(ids)
    padding[1, :4] = 0
    for one, arguments in [(ids, {}), (ids[:1], {}), (ids, {"attention_mask": padding})]:
        kept = padding.bool() if arguments else torch.ones_like(one, dtype=torch.bool)
        torch.testing.assert_close(model(one, **arguments).logits[kept], plain(one, **arguments).logits[kept])
    cache = DynamicCache(config=model.config)
    model(ids[:1, :9], cache=cache, use_cache=True)
    cache.batch_repeat_interleave(2)
    torch.testing.assert_close(model(ids[:, 9:], cache=cache).logits, plain(ids).logits[:, 9:])
