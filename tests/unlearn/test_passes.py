"""From packs to values by real models: as by whole logits, whatever the model does with its output layer."""

import copy
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
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
)

from lume_unlearn.data.encode import Tokens
from lume_unlearn.data.packs import Pack, pack_rows
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
SCALED: dict[str, Callable[[], Any]] = {
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=2.0)),
}


def make(name: str, **lora: Any) -> Any:
    """A model as a run has it but in float64, with an adapter that does something if asked for."""
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


def spread(logits: Tensor, targets: Tensor, reference: Tensor | None) -> Tensor:
    return pdu_tokens(logits)


def distance(logits: Tensor, targets: Tensor, reference: Tensor | None) -> Tensor:
    assert reference is not None
    return kl_tokens(logits, reference)


def gradients(model: Any, values: list[Tensor]) -> dict[str, Tensor]:
    """Of the sum of all values, each with another factor."""
    model.zero_grad()
    flat = torch.cat(values)
    (flat * torch.linspace(0.1, 1.0, len(flat))).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def by_whole_logits(model: Any, batch: Pack, reference: Tensor) -> list[Tensor]:
    """The spans of `spans`, with the model's own output layer."""
    logits = labelled_logits(model, model.config, batch)
    forget, retain = batch.tokens_of("forget"), batch.tokens_of("retain")
    return [
        token_nll(logits[forget], batch.targets[forget]),
        kl_tokens(logits[retain], reference),
        pdu_tokens(logits[forget]),
        token_nll(logits[retain], batch.targets[retain]),
    ]


def spans(batch: Pack, reference: Callable[[slice], Tensor]) -> list[Span]:
    """Two on each side: overlapping, out of order, one with a reference."""
    forget, retain = batch.tokens_of("forget"), batch.tokens_of("retain")
    kinds = [
        (forget, nll_value, None),
        (retain, distance, reference),
        (forget, spread, None),
        (retain, nll_value, None),
    ]
    return [Span(*kind) for kind in kinds]


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert any(value.any() for value in ours.values())
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-7, atol=1e-7, msg=lambda text, n=name: f"{n}: {text}")


def check(model: Any, chunks: bool) -> None:
    """Values and gradients through `Passes` are those of whole logits."""
    passes = Passes(model)
    assert passes.chunks == chunks
    torch.manual_seed(7)
    reference = torch.randn(BATCH.token_counts[2], VOCABULARY, dtype=torch.float64)
    expected = by_whole_logits(model, BATCH, reference)
    found = passes.values(model, BATCH, spans(BATCH, lambda part: reference[part]))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)
    assert_same(gradients(model, found), gradients(model, expected))
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize("chunk_bytes", [4 * 4 * VOCABULARY, 2**28], ids=["chunks", "one"])
@pytest.mark.parametrize("name", MODELS)
def test_values_are_those_of_whole_logits(name: str, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", chunk_bytes)
    model = make(name)
    assert Passes(model).packs == (name != "gpt2")
    check(model, chunks=True)


@pytest.mark.parametrize("name", SCALED)
def test_a_model_that_does_more_to_its_logits_gets_whole_ones(name: str) -> None:
    model = make(name)
    batch = pack_rows({"forget": FORGET})
    states = model.model(input_ids=torch.tensor([FORGET[1].input_ids])).last_hidden_state
    plain = model.get_output_embeddings()(states)
    real = model(input_ids=torch.tensor([FORGET[1].input_ids])).logits
    assert (plain - real).abs().max() > 0.1  # it does more
    check(model, chunks=False)
    reference = Passes(model).reference_at(model, batch)
    torch.testing.assert_close(reference(slice(2, 9)), labelled_logits(model, model.config, batch)[2:9])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("head", [False, True], ids=["", "head"])
def test_with_an_adapter_also_on_the_output_layer(name: str, head: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", 4 * 4 * VOCABULARY)
    targets = ["c_attn"] if name == "gpt2" else ["q_proj", "down_proj"]
    model = make(name, target_modules=[*targets, *(["lm_head"] if head else [])])
    check(model, chunks=True)
    names = gradients(model, Passes(model).values(model, BATCH, [Span(slice(0, 5), nll_value)]))
    assert all("lora" in name for name in names)
    assert any("lm_head" in name for name in names) == head


def test_tied_embeddings_get_their_gradient_from_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", 4 * 4 * VOCABULARY)
    model = make("llama-tied")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    whole = Span(slice(0, len(BATCH.targets)), nll_value)
    found = gradients(model, Passes(model).values(model, BATCH, [whole]))
    assert "lm_head.weight" not in found
    embedding = found["model.embed_tokens.weight"]
    absent = sorted(set(range(VOCABULARY)) - set(BATCH.input_ids.tolist()))
    assert embedding[absent].abs().sum(1).min() > 0  # pushed down as answers, though never read


def test_the_output_layer_is_computed_at_labelled_positions_alone() -> None:
    model, seen = make("llama"), []
    passes = Passes(model)
    own = passes.output

    def output(states: Tensor) -> Tensor:
        seen.append(len(states))
        return own(states)  # type: ignore[misc, no-any-return]

    passes.output = output
    passes.values(model, BATCH, [Span(BATCH.tokens_of("forget"), nll_value)])
    assert seen == [BATCH.token_counts[0]]
    assert seen[0] < len(BATCH.input_ids) / 2


@pytest.mark.parametrize("name", ["llama", "gpt2", "cohere"])
def test_spans_without_tokens_are_empty(name: str) -> None:
    model = make(name)
    batch = pack_rows({"forget": FORGET})
    found = Passes(model).values(
        model, batch, [Span(batch.tokens_of(side), nll_value) for side in ("forget", "retain")]
    )  # type: ignore[arg-type]
    assert [len(values) for values in found] == [len(batch.targets), 0]


@pytest.mark.parametrize("name", ["llama", "gpt2", "cohere"])
def test_a_pass_without_any_label_gives_zero_gradients(name: str) -> None:
    """As other processes need it to exchange gradients."""
    model = make(name)
    empty = pack_rows({"retain": [Tokens((0,), (IGNORED,))]})
    (values,) = Passes(model).values(model, empty, [Span(slice(0, 0), nll_value)])
    found = gradients(model, [values])
    assert found
    assert not any(value.any() for value in found.values())


def test_the_trial_leaves_the_model_as_it_was() -> None:
    for name in ("llama", "gpt2", "granite"):
        model = make(name).train()
        before = copy.deepcopy(model.state_dict())
        Passes(model)
        assert model.training
        assert all(value.equal(before[key]) for key, value in model.state_dict().items())
        assert all(weight.grad is None for weight in model.parameters())


def hidden_states(model: Any, rows: list[Tokens], layer: int) -> Tensor:
    """(N, d) states behind a layer at the labelled tokens, one row at a time, by transformers' own output."""
    parts = []
    for row in rows:
        out = model(input_ids=torch.tensor([row.input_ids]), output_hidden_states=True)
        labelled = [t for t, label in enumerate(row.labels) if t and label != IGNORED]
        parts.append(out.hidden_states[layer + 1][0, labelled])
    return torch.cat(parts)


def states_value(states: Tensor, targets: Tensor, reference: Tensor | None) -> Tensor:
    return state_distance(states, torch.zeros(1) if reference is None else reference)


@pytest.mark.parametrize("layer", [0, 1])  # transformers puts the final norm on the states of the last one
@pytest.mark.parametrize("name", ["llama", "gpt2", "cohere"])
def test_states_behind_a_layer(name: str, layer: int) -> None:
    model = make(name)
    passes = Passes(model, layer)
    expected = hidden_states(model, FORGET, layer)
    ran: list[int] = []
    for number, block in enumerate(passes.layers):
        block.register_forward_hook(lambda module, inputs, output, number=number: ran.append(number))
    batch = pack_rows({"forget": FORGET})
    (found,) = passes.values(model, batch, [Span(slice(0, len(batch.targets)), states_value)])
    torch.testing.assert_close(found, state_distance(expected, torch.zeros(1)), rtol=1e-6, atol=1e-6)
    assert ran == list(range(3 if name == "gpt2" else layer + 1))  # GPT-2 runs its whole list of layers
    torch.testing.assert_close(passes.reference_at(model, batch)(slice(None)), expected, rtol=1e-6, atol=1e-6)
    assert model.config.num_hidden_layers == 3
    trained = gradients(model, [found])
    assert any(value.any() for value in trained.values())


def test_the_depth_is_put_back_after_an_exception() -> None:
    model = make("llama")

    def fails(states: Tensor, targets: Tensor, reference: Tensor | None) -> Tensor:
        raise KeyError

    with pytest.raises(KeyError):
        Passes(model, 0).values(model, BATCH, [Span(slice(0, 3), fails)])
    assert model.config.num_hidden_layers == 3
    assert labelled_logits(model, model.config, BATCH).shape == (len(BATCH.targets), VOCABULARY)
    assert not any(block._forward_hooks for block in model.model.layers)
