"""Weight arithmetic: task vectors are negated, and an adapter is merged, as their formulas say."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from lume_unlearn.compare.training import loader
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.task_vector import negated
from lume_unlearn.model.forward import Passes
from lume_unlearn.model.load import load_model
from lume_unlearn.model.reference import Reference
from lume_unlearn.training.merge import merge, negate
from lume_unlearn.training.relearning import plain_copy
from tests.conftest import make_model, saved_weights

TARGETS = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_fc"]}
Adapt = Callable[..., Path]


@pytest.fixture(params=["llama", "gpt2"])
def family(request: pytest.FixtureRequest, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Models as folders; GPT-2 stores its weights transposed (Conv1D)."""
    folder = tmp_path / request.param
    make_model(family=request.param).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def adapt(model_dir: Path, tmp_path: Path) -> Adapt:
    """(name, model, options) to the folder of a random LoRA adapter."""

    def make(name: str = "adapter", model: Path = model_dir, **options: Any) -> Path:
        torch.manual_seed(1)
        plain: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS["llama"], "task_type": "CAUSAL_LM"}
        wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(**(plain | options)))
        for key, weight in wrapped.named_parameters():
            if "lora_" in key:
                weight.data.normal_(std=0.2)
        wrapped.save_pretrained(tmp_path / name, save_embedding_layers=False)
        return tmp_path / name

    return make


def weights_of(model: Any) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def test_bfloat16_weights_leave_the_rotary_frequencies_in_float32(model_dir, adapt):
    """bfloat16 would round them, and `model.float()` would not repair that."""
    adapter = adapt()
    exact = make_model().model.rotary_emb.inv_freq
    copied = Reference(make_model(), Passes(make_model()), "bfloat16").copy
    found = [loader(given, False)(torch.bfloat16) for given in (str(model_dir), str(adapter), make_model())]
    found += [
        merge(model=make_model(), adapter=str(adapter), dtype="bfloat16"),
        plain_copy(make_model(), torch.bfloat16),
    ]
    found += [load_model(str(adapter), torch.bfloat16), copied]
    for model in found:
        assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
        assert model.model.rotary_emb.inv_freq.equal(exact)


def test_negated_weights_by_hand():
    before = {"weight": torch.tensor([1.0, 2.0, 3.0]), "steps": torch.tensor([7])}
    after = {"weight": torch.tensor([1.5, 2.0, 1.0]), "steps": torch.tensor([9])}
    found = negated(before, after, 2.0)
    assert found["weight"].tolist() == [0.0, 2.0, 7.0]
    assert found["steps"].tolist() == [7]
    assert before["weight"].tolist() == [1.0, 2.0, 3.0]
    # 2^-10 is below the precision of bfloat16: computed in float32, then rounded
    half = negated({"w": torch.tensor([1.0]).bfloat16()}, {"w": torch.tensor([1.0 + 2**-10])}, 64.0)["w"]
    assert (half.dtype, half.item()) == (torch.bfloat16, 1.0 - 2**-4)


def test_negated_training_of_tied_weights(model):
    model.config.tie_word_embeddings = True
    model.tie_weights()
    before, start = weights_of(model), {name: weight.clone() for name, weight in model.state_dict().items()}
    for weight in model.parameters():
        weight.data += 0.01 * torch.randn_like(weight)
    expected = {name: before[name] - 5 * (after - before[name]) for name, after in weights_of(model).items()}
    negate(model, start, 5.0)
    torch.testing.assert_close(weights_of(model), expected)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(("dtype", "off"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_merged_weights_are_the_models_plus_scaled_products(dtype, off, family, adapt, tmp_path, command):
    adapter, output = adapt("one", family, target_modules=TARGETS[family.name]), tmp_path / "merged"
    assert command("merge", "--adapter", adapter, "--output", output, "--dtype", dtype)[0] == 0
    factors, before, after = saved_weights(adapter), saved_weights(family), saved_weights(output)
    assert {weight.dtype for weight in after.values()} == {getattr(torch, dtype)}
    for name, weight in before.items():
        a = factors.get(f"base_model.model.{name.removesuffix('weight')}lora_A.weight")
        if a is not None:
            product = 1.5 * factors[f"base_model.model.{name.removesuffix('weight')}lora_B.weight"] @ a
            weight += product.T if family.name == "gpt2" else product
        torch.testing.assert_close(after[name].float(), weight, rtol=off, atol=off)
    assert len(factors) == 2 * 4
    assert AutoTokenizer.from_pretrained(output)("the fox").input_ids


def test_model_and_adapter_in_memory_merge_as_folders_do(adapt, model_dir, tmp_path):
    adapter = str(adapt())
    expected = weights_of(merge(str(model_dir), adapter))
    loaded = LlamaForCausalLM.from_pretrained(model_dir)
    torch.testing.assert_close(weights_of(merge(loaded, adapter)), expected)
    adapted = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(model_dir), adapter)
    merged = merge(adapted, output=str(tmp_path / "merged"))
    torch.testing.assert_close(weights_of(merged), expected)
    torch.testing.assert_close(weights_of(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), expected)
    assert not isinstance(merged, PeftModel)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"adapter": "none"}, r"--adapter .*none: no such folder"),
        ({"adapter": "nameless"}, "nameless: names no base model; add it to .*--model MODEL"),
        ({"adapter": None}, "--adapter: name the adapter's folder"),
        ({"model": "nowhere"}, "--model nowhere"),
    ],
)
def test_what_cannot_be_merged_is_refused(wrong, message, adapt, tmp_path):
    adapt("one")
    nameless = adapt("nameless") / "adapter_config.json"
    nameless.write_text(json.dumps(json.loads(nameless.read_text()) | {"base_model_name_or_path": None}))
    options = {"adapter": "one"} | wrong
    if options["adapter"]:
        options["adapter"] = str(tmp_path / options["adapter"])
    with pytest.raises(ConfigError, match=message):
        merge(output=str(tmp_path / "merged"), **options)
    assert not list((tmp_path / "merged").glob("*"))
