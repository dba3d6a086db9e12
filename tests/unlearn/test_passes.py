"""Values computed in place of the output layer equal those from the model's own logits, and so do gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
)

from lume_unlearn.data.encode import Tokens
from lume_unlearn.data.packs import pack_rows
from lume_unlearn.methods.common import IGNORED, token_nll
from lume_unlearn.methods.pdu import pdu_tokens
from lume_unlearn.methods.retain import kl_tokens, state_distance
from lume_unlearn.model import output_layer
from lume_unlearn.model.forward import Passes, Span, labelled_logits, use_packing
from lume_unlearn.model.output_layer import nll_value
from tests.unlearn.tokens import half_labelled, sizes

VOCABULARY = 120
SIZES: dict[str, Any] = sizes(VOCABULARY, 3) | {"num_key_value_heads": 2}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "resid_pdrop": 0.1, "bos_token_id": None, "eos_token_id": 1}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama-tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "olmo": lambda: OlmoForCausalLM(OlmoConfig(**SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, initializer_range=0.2, **GPT2)),
}
SCALED: dict[str, Callable[[], Any]] = {  # these scale or cap their logits
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=2.0)),
}


def make(name: str, **lora: Any) -> Any:
    """A model in float64 with packed attention if possible, and with a random adapter if asked for."""
    torch.manual_seed(0)
    model = (MODELS | SCALED)[name]().double().eval()
    use_packing(model)
    if lora:
        config = LoraConfig(r=3, init_lora_weights=False, task_type="CAUSAL_LM", **lora)
        model = get_peft_model(model, config).double().eval()
    return model


def make_rows(lengths: list[int], seed: int = 1) -> list[Tokens]:
    return half_labelled(VOCABULARY, lengths, seed)


FORGET, RETAIN = make_rows([3, 21, 2, 9]), make_rows([7, 30, 4], seed=2)
BATCH = pack_rows({"forget": FORGET, "retain": RETAIN})
ALL = slice(0, len(BATCH.targets))


def spread(logits: Tensor, targets: Tensor, reference: Tensor | None) -> Tensor:
    return pdu_tokens(logits)


def distance(logits: Tensor, targets: Tensor, reference: Tensor | None) -> Tensor:
    assert reference is not None
    return kl_tokens(logits, reference)


def gradients(model: Any, values: list[Tensor]) -> dict[str, Tensor]:
    """Gradients of the sum of all values, each with its own factor."""
    model.zero_grad()
    flat = torch.cat(values)
    (flat * torch.linspace(0.1, 1.0, len(flat))).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def check(model: Any, chunks: bool) -> None:
    """Compare values and gradients of overlapping spans through `Passes` with those of whole logits."""
    passes = Passes(model)
    assert passes.chunks == chunks
    torch.manual_seed(7)
    reference = torch.randn(BATCH.token_counts[2], VOCABULARY, dtype=torch.float64)
    forget, retain = BATCH.tokens_of("forget"), BATCH.tokens_of("retain")
    spans = [
        Span(forget, nll_value),
        Span(retain, distance, lambda part: reference[part]),
        Span(forget, spread),
        Span(retain, nll_value),
    ]
    logits = labelled_logits(model, model.config, BATCH)
    expected = [
        token_nll(logits[forget], BATCH.targets[forget]),
        kl_tokens(logits[retain], reference),
        pdu_tokens(logits[forget]),
        token_nll(logits[retain], BATCH.targets[retain]),
    ]
    found = passes.values(model, BATCH, spans)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)
    our_gradients, their_gradients = gradients(model, found), gradients(model, expected)
    assert our_gradients.keys() == their_gradients.keys() != set()
    for name, value in our_gradients.items():
        torch.testing.assert_close(value, their_gradients[name], rtol=1e-7, atol=1e-7, msg=name)
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]  # all is put back


@pytest.mark.parametrize("chunk_bytes", [4 * 4 * VOCABULARY, 2**28], ids=["chunks", "one"])
@pytest.mark.parametrize("name", MODELS)
def test_values_are_those_of_whole_logits(name: str, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", chunk_bytes)
    model = make(name)
    assert Passes(model).packs == (name != "gpt2")
    check(model, chunks=True)


def test_no_more_than_a_chunk_of_logits_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", 4 * 4 * VOCABULARY)
    model, seen = make("llama"), []
    passes = Passes(model)
    own = passes.head.forward

    def output(states: Tensor) -> Tensor:
        seen.append(len(states))
        return own(states)  # type: ignore[no-any-return]

    passes.head.forward = output
    passes.values(model, BATCH, [Span(ALL, nll_value)])[0].sum().backward()
    assert (max(seen), sum(seen)) == (4, 2 * len(BATCH.targets))  # computed again in the backward pass


@pytest.mark.parametrize("name", SCALED)
def test_a_model_that_scales_its_logits_computes_them_itself(name: str) -> None:
    model = make(name)
    check(model, chunks=False)
    reference = Passes(model).reference_at(model, BATCH)
    torch.testing.assert_close(reference(slice(2, 9)), labelled_logits(model, model.config, BATCH)[2:9])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("head", [False, True], ids=["", "head"])
def test_values_with_an_adapter_also_on_the_output_layer(
    name: str, head: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", 4 * 4 * VOCABULARY)
    targets = ["c_attn"] if name == "gpt2" else ["q_proj", "down_proj"]
    model = make(name, target_modules=[*targets, *(["lm_head"] if head else [])])
    check(model, chunks=True)
    names = gradients(model, Passes(model).values(model, BATCH, [Span(ALL, nll_value)]))
    assert all("lora" in name for name in names)
    assert any("lm_head" in name for name in names) == head


@pytest.mark.parametrize("name", ["llama", "gpt2", "cohere"])
def test_spans_and_passes_without_labelled_tokens(name: str) -> None:
    """Other processes need the zero gradients to exchange theirs."""
    model = make(name)
    found = Passes(model).values(model, BATCH, [Span(ALL, nll_value), Span(slice(3, 3), nll_value)])
    assert [len(values) for values in found] == [len(BATCH.targets), 0]
    empty = pack_rows({"retain": [Tokens((0,), (IGNORED,))]})
    zero = gradients(model, Passes(model).values(model, empty, [Span(slice(0, 0), nll_value)]))
    assert zero
    assert not any(value.any() for value in zero.values())


def hidden_states(model: Any, rows: list[Tokens], layer: int) -> Tensor:
    """(N, d) states after a layer at the labelled tokens, one row at a time, by transformers' own output."""
    parts = []
    for row in rows:
        out = model(input_ids=torch.tensor([row.input_ids]), output_hidden_states=True)
        labelled = [t for t, label in enumerate(row.labels) if t and label != IGNORED]
        parts.append(out.hidden_states[layer + 1][0, labelled])
    return torch.cat(parts)


def states_value(states: Tensor, targets: Tensor, reference: Tensor | None) -> Tensor:
    return state_distance(states, torch.zeros(1))


@pytest.mark.parametrize("layer", [0, 1])  # of three; transformers applies the final norm after the last one
@pytest.mark.parametrize("name", ["llama", "gpt2", "cohere"])
def test_hidden_states_after_a_layer(name: str, layer: int) -> None:
    model = make(name)
    passes = Passes(model, layer)
    expected = hidden_states(model, [*FORGET, *RETAIN], layer)
    ran: list[int] = []
    for number, block in enumerate(passes.layers):
        block.register_forward_hook(lambda module, inputs, output, number=number: ran.append(number))
    (found,) = passes.values(model, BATCH, [Span(ALL, states_value)])
    torch.testing.assert_close(found, state_distance(expected, torch.zeros(1)), rtol=1e-6, atol=1e-6)
    assert ran == list(range(3 if name == "gpt2" else layer + 1))  # GPT-2 runs its whole list of layers
    torch.testing.assert_close(passes.reference_at(model, BATCH)(slice(None)), expected, rtol=1e-6, atol=1e-6)
    assert model.config.num_hidden_layers == 3
    assert any(value.any() for value in gradients(model, [found]).values())
