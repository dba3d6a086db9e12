"""`relearning`: the copies that the probes train and score, and the models that they are made of."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lume_tasks.data.rows import Row
from lume_unlearn.audit.quantisation import rounded_copy
from lume_unlearn.errors import ConfigError
from lume_unlearn.model.packing import IMPLEMENTATION
from lume_unlearn.training.relearning import plain_copy, relearning
from tests.conftest import loaded_with_adapter, make_model, make_rows, trained_copy


@pytest.mark.parametrize("adapted", [False, True])
def test_copies_leave_the_model_unchanged_and_hold_its_adapter(
    adapted: bool, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    given: Any = model
    if adapted:
        given = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules="all-linear", init_lora_weights=False))
    ids = torch.tensor([tokenizer.encode("The fox")])
    before = {name: value.clone() for name, value in given.state_dict().items()}
    assert torch.allclose(plain_copy(given)(ids).logits, given.eval()(ids).logits, atol=1e-5)
    for changed in (
        rounded_copy(given, 4),
        trained_copy(given, tokenizer, [Row("a-qa0", "The fox", "jumps", "own")], steps=1),
    ):
        assert not hasattr(changed, "peft_config")
        assert not torch.equal(changed(ids).logits, given(ids).logits)
    assert all(torch.equal(before[name], value) for name, value in given.state_dict().items())


def test_an_adapter_that_transformers_has_loaded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^model: its adapter was loaded by transformers"):
        plain_copy(loaded_with_adapter(tmp_path, LoraConfig(target_modules=["q_proj"])))


def test_a_curve_of_relearning_does_not_depend_on_its_length(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    curves: dict[int, dict[int, Any]] = {}
    for steps in (3, 12):
        for step, trained in relearning(model, tokenizer, make_rows("forget", 20), steps=steps):
            assert not trained.training
            curves.setdefault(steps, {})[step] = copy.deepcopy(trained.state_dict())
    assert [list(curve) for curve in curves.values()] == [[3], [5, 10, 12]]
    (after_5,) = dict(relearning(model, tokenizer, make_rows("forget", 20), steps=5)).values()
    for name, weight in after_5.state_dict().items():
        assert torch.equal(weight, curves[12][5][name])
        assert name.startswith("model.embed") or not torch.equal(weight, curves[12][10][name])


@pytest.mark.parametrize(
    ("family", "own"), [("llama", "sdpa"), ("llama", IMPLEMENTATION), ("gemma2", "eager"), ("mamba", "eager")]
)
def test_copies_are_scored_with_the_models_own_attention(
    family: str, own: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Gemma 2 and Mamba do not support SDPA; a model that was trained has packed attention."""
    options = {"head_dim": 8} if family == "gemma2" else {}
    model, ids = make_model(family=family, **options), torch.tensor([tokenizer.encode("The fox")])
    model.set_attn_implementation(own)
    for _, trained in relearning(model, tokenizer, make_rows("forget", 2), steps=6):
        assert trained.config._attn_implementation == own
        logits = trained(ids).logits
    if family == "llama":
        trained.set_attn_implementation("sdpa")
        assert trained(ids).logits.equal(logits)


@pytest.mark.parametrize("adapted", [False, True])
def test_a_model_in_bfloat16_relearns_as_in_float32(adapted: bool, tokenizer: PreTrainedTokenizerFast) -> None:
    """Its adapter is merged in float32, too. FlashAttention, which float32 does not allow, is replaced."""
    given: Any = make_model().bfloat16()
    if adapted:
        given = get_peft_model(given, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    exact = copy.deepcopy(given).float()
    given.config._attn_implementation = "flash_attention_2"
    expected = trained_copy(exact, tokenizer, make_rows("forget", 2), steps=2).state_dict()
    for _, found in relearning(given, tokenizer, make_rows("forget", 2), steps=2):
        assert found.config._attn_implementation == "sdpa"
        assert all(weight.equal(expected[name]) for name, weight in found.state_dict().items())
    assert {weight.dtype for weight in found.parameters()} == {torch.float32}
