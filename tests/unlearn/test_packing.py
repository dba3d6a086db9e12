"""Rows packed into one sequence get what they get alone: logits, losses, gradients."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
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
from lume_unlearn.data.packs import SIDES, Pack, pack_rows
from lume_unlearn.methods.common import IGNORED, token_nll
from lume_unlearn.methods.spec import Side
from lume_unlearn.model import forward, packing
from lume_unlearn.model.forward import labelled_logits, use_packing
from lume_unlearn.model.packing import IMPLEMENTATION, can_pack
from tests.unlearn.tokens import half_labelled, sizes

VOCABULARY = 120
SIZES: dict[str, Any] = sizes(VOCABULARY, 2)
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama-gqa": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2)),
    "olmo": lambda: OlmoForCausalLM(OlmoConfig(**SIZES)),
    "olmo-tied": lambda: OlmoForCausalLM(OlmoConfig(**SIZES, tie_word_embeddings=True, clip_qkv=1.0)),
    # Some of the rows below are longer than its window, some are not.
    "mistral-window": lambda: MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=6)),
}
LENGTHS = [3, 41, 2, 17, 90, 5]


def make(name: str) -> Any:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def make_rows(lengths: list[int] = LENGTHS, seed: int = 1) -> list[Tokens]:
    """Rows whose second half, or last token, is labelled."""
    return half_labelled(VOCABULARY, lengths, seed)


def alone(model: Any, rows: list[Tokens]) -> Tensor:
    """(N, V) logits at the labelled positions, one row at a time, by a plain call."""
    parts = []
    for row in rows:
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
        parts.append(logits[torch.tensor(row.labels[1:]) != IGNORED])
    return torch.cat(parts)


def as_pack(rows: list[Tokens]) -> Pack:
    return pack_rows({"forget": rows})


def nll(model: Any, rows: list[Tokens]) -> Tensor:
    pack = as_pack(rows)
    return token_nll(labelled_logits(model, model.config, pack), pack.targets)


def checkpoint(model: Any) -> None:
    model.gradient_checkpointing_enable()
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    assert found
    return found


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(
            gradient, theirs[name], rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("name", MODELS)
def test_packed_equals_padded_equals_alone(name: str) -> None:
    padded, rows = make(name), make_rows()
    packed = copy.deepcopy(padded)
    assert use_packing(packed)
    assert packed.config._attn_implementation == IMPLEMENTATION
    batch = as_pack(rows)
    expected = alone(padded, rows)
    for model in (packed, padded):
        found = labelled_logits(model, model.config, batch)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    targets = torch.cat([torch.tensor([label for label in row.labels if label != IGNORED]) for row in rows])
    assert batch.targets.equal(targets)
    by_hand = gradients(padded, -expected.log_softmax(-1)[range(len(targets)), targets].mean())
    assert_same_gradients(gradients(packed, nll(packed, rows).mean()), by_hand)
    assert_same_gradients(gradients(padded, nll(padded, rows).mean()), by_hand)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("name", ["llama-gqa", "olmo"])
def test_packed_equals_padded_with_lora(name: str, checkpointing: bool) -> None:
    adapters = []
    for pack in (False, True):
        model = make(name)
        assert not pack or use_packing(model)
        torch.manual_seed(5)
        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        adapters.append(get_peft_model(model, lora))
    padded, packed = adapters
    if checkpointing:
        packed.train()  # recomputes only then; there is no dropout in these models
        checkpoint(packed)
    rows = make_rows()
    torch.testing.assert_close(nll(packed, rows), nll(padded, rows), rtol=1e-5, atol=1e-5)
    found = gradients(packed, nll(packed, rows).mean())
    assert all("lora" in key for key in found)
    assert_same_gradients(found, gradients(padded, nll(padded, rows).mean()))


@pytest.mark.parametrize("name", ["llama-gqa", "olmo"])
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    plain, rows = make(name), make_rows()
    use_packing(plain)
    checkpointed = copy.deepcopy(plain).train()
    checkpoint(checkpointed)
    assert_same_gradients(
        gradients(checkpointed, nll(checkpointed, rows).mean()), gradients(plain, nll(plain, rows).mean())
    )


def test_packed_equals_padded_under_bfloat16_autocast() -> None:
    padded = make("llama-gqa")
    packed = copy.deepcopy(padded)
    use_packing(packed)
    rows = make_rows()
    exact = alone(padded, rows)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found = [labelled_logits(model, model.config, as_pack(rows)) for model in (packed, padded)]
    errors = [(logits.float() - exact).abs().max().item() for logits in found]
    assert errors[0] < 1.5 * errors[1]  # rounding of the same size, and no more
    assert 0 < errors[0] < 0.05 * exact.abs().max().item()


@pytest.mark.parametrize("name", MODELS)
def test_no_row_sees_another(name: str) -> None:
    model = make(name)
    use_packing(model)
    rows = make_rows()
    before = labelled_logits(model, model.config, as_pack(rows))
    changed = list(rows)
    changed[3] = Tokens((2,) * 17, rows[3].labels)
    after = labelled_logits(model, model.config, as_pack(changed))
    others = as_pack(rows).rows != 3
    assert before[others].equal(after[others])
    assert not torch.allclose(before[~others], after[~others])


def test_unlabelled_positions_carry_no_loss() -> None:
    padded, rows = make("llama-gqa"), make_rows()
    packed = copy.deepcopy(padded)
    use_packing(packed)
    seen: list[Tensor] = []

    def watch(module: Any, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    for model in (padded, packed):
        model.lm_head.register_forward_hook(watch)
        nll(model, rows).sum().backward()
    in_padded, in_packed = ((logits.grad.abs().sum(-1) > 0).tolist() for logits in seen)  # type: ignore[union-attr]
    # Each a step before the token that it predicts.
    predicts = [[label != IGNORED for label in row.labels[1:]] + [False] for row in rows]
    for found, expected in zip(in_padded, predicts, strict=True):
        assert found[: len(expected)] == expected
        assert not any(found[len(expected) :])
    assert in_packed == [[flag for row in predicts for flag in row]]


def test_the_label_of_a_first_token_counts_for_nothing() -> None:
    batch = as_pack([Tokens((5, 6), (5, 6)), Tokens((7,), (7,)), Tokens((8, 9, 3), (8, IGNORED, 3))])
    assert batch.targets.tolist() == [6, 3]
    assert batch.keep.tolist() == [0, 4]
    assert batch.rows.tolist() == [0, 2]


@pytest.mark.parametrize("side", SIDES)
def test_one_side_is_the_pack_of_its_rows_alone(side: Side) -> None:
    rows = {"forget": make_rows([4, 9]), "alternative": make_rows([3, 8], seed=3), "retain": make_rows([2, 30, 7], 2)}
    whole = replace(pack_rows(rows), reference=torch.arange(50.0))
    ours, theirs = whole.only(side), pack_rows({side: rows[side]})
    for field in vars(theirs):
        value, expected = getattr(ours, field), getattr(theirs, field)
        assert value.equal(expected) if isinstance(expected, Tensor) else value == expected, field
    assert whole.targets[whole.tokens_of(side)].equal(theirs.targets)
    assert whole.lengths[whole.rows_of(side)] == theirs.lengths


def test_a_side_without_rows_is_empty() -> None:
    pack = pack_rows({"forget": make_rows([4]), "retain": make_rows([5])})
    assert pack.only("alternative").lengths == ()
    assert pack.only("alternative").targets.numel() == 0
    assert pack.tokens_of("alternative") == slice(2, 2)


def gpt2() -> Any:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=1)
    )


def lfm2() -> Any:  # short convolutions between its layers of attention
    return Lfm2ForCausalLM(Lfm2Config(**SIZES, num_key_value_heads=2, layer_types=["conv", "full_attention"]))


def gpt_oss() -> Any:  # learned sinks in its softmax
    sizes = SIZES | {"head_dim": 8, "num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1}
    return GptOssForCausalLM(GptOssConfig(**sizes, layer_types=["full_attention"] * 2))


@pytest.mark.parametrize("build", [gpt2, lfm2, gpt_oss])
def test_a_model_that_cannot_pack_keeps_its_attention_and_is_padded(build: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model, rows = build().eval(), make_rows()
    own = model.config._attn_implementation
    assert not use_packing(model)
    assert model.config._attn_implementation == own != IMPLEMENTATION
    found = labelled_logits(model, model.config, as_pack(rows))
    torch.testing.assert_close(found, alone(model, rows), rtol=1e-4, atol=1e-5)


def test_declarations_alone_would_not_tell() -> None:
    assert not can_pack(gpt2())
    assert can_pack(lfm2())
    assert can_pack(gpt_oss())


@pytest.mark.parametrize("name", MODELS)
def test_a_plain_call_with_padding_and_generation_are_as_with_sdpa(name: str) -> None:
    plain = make(name)
    packed = copy.deepcopy(plain)
    use_packing(packed)
    torch.manual_seed(3)
    ids = torch.randint(2, VOCABULARY, (3, 12))
    mask = torch.ones_like(ids)
    mask[0, :5] = mask[1, :9] = 0  # on the left, as for generation
    with torch.no_grad():
        for given in (mask, mask.flip(1)):
            expected, found = (
                model(input_ids=ids, attention_mask=given).logits[given.bool()] for model in (plain, packed)
            )
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    generated = [m.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False) for m in (plain, packed)]
    assert generated[0].equal(generated[1])


def test_a_saved_model_knows_nothing_of_packing(tmp_path: Path) -> None:
    model = make("llama-gqa")
    use_packing(model)
    model.save_pretrained(tmp_path)
    assert IMPLEMENTATION not in (tmp_path / "config.json").read_text()
    assert "attn_implementation" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config._attn_implementation == "sdpa"
    rows = make_rows()
    torch.testing.assert_close(alone(loaded, rows), alone(model, rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama-gqa", "mistral-window"])
def test_an_attention_of_transformers_that_keeps_rows_apart_may_be_asked_for(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "TRANSFORMERS_ATTENTION", ("eager",))  # the one that runs everywhere
    model, rows = make(name), make_rows()
    expected = alone(model, rows)
    assert use_packing(model, "eager")
    assert model.config._attn_implementation == "eager"
    found = labelled_logits(model, model.config, pack_rows({"forget": rows}))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_an_attention_that_does_not_keep_rows_apart_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "TRANSFORMERS_ATTENTION", ("sdpa",))
    model = gpt2()  # learned positions and a mask of its own
    with pytest.raises(ValueError, match="does not keep rows apart"):
        use_packing(model, "sdpa")


def test_flash_attention_is_told_the_bounds() -> None:
    batch = pack_rows({"forget": make_rows([3, 5])})
    model = make("llama")
    model.config._attn_implementation = "flash_attention_2"
    told = packing.keeping_apart(model.config, batch)
    assert told["cu_seq_lens_q"].tolist() == told["cu_seq_lens_k"].tolist() == [0, 3, 8]
    assert told["max_length_q"] == told["max_length_k"] == 5


def test_a_kernel_that_does_not_run_here_means_padding_and_is_said(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own, kind = forward.labelled_logits, model.config._attn_implementation

    def fail_with(error: Exception) -> None:
        def logits(model: Any, config: Any, batch: Any) -> Tensor:
            if packing.packs(config):
                raise error
            return own(model, config, batch)

        monkeypatch.setattr(forward, "labelled_logits", logits)

    fail_with(RuntimeError("no kernel for this card"))
    assert not forward.use_packing(model)
    assert model.config._attn_implementation == kind
    assert "rows will be padded, which is slower: packed attention does not run here (no kernel" in caplog.text
    fail_with(torch.OutOfMemoryError("full"))  # has advice of its own
    with pytest.raises(torch.OutOfMemoryError):
        forward.use_packing(model)
