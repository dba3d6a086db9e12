"""Weight arithmetic: task vectors are negated, and adapters merged, as their formulas say."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from lume_unlearn.cli import main
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.task_vector import negated
from lume_unlearn.model import load
from lume_unlearn.training.merge import merge, negate_adapter, subtract_training
from tests.conftest import make_model, saved_weights

INPUT = torch.arange(2, 40)[None]
TARGETS = ["q_proj", "down_proj"]
Adapt = Callable[..., Path]


@pytest.fixture
def gpt2_dir(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """GPT-2 stores its weights transposed (Conv1D)."""
    make_model(family="gpt2").save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


@pytest.fixture
def adapt(model_dir: Path, tmp_path: Path) -> Adapt:
    """(name, seed, options) to the folder of a random LoRA adapter."""

    def make(name: str, seed: int, model: Path = model_dir, **options: Any) -> Path:
        torch.manual_seed(seed)
        targets = ["c_attn", "c_fc"] if model.name == "gpt2" else TARGETS
        plain: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": targets, "task_type": "CAUSAL_LM"}
        wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(**(plain | options)))
        for key, weight in wrapped.named_parameters():
            if "lora_" in key:
                weight.data.normal_(std=0.2)
        wrapped.save_pretrained(tmp_path / name, save_embedding_layers=False)
        return tmp_path / name

    return make


def weights_of(model: Any) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def added(model_dir: Path, adapter: str) -> dict[str, Tensor]:
    """What PEFT adds to each weight when it merges the adapter."""
    before = weights_of(AutoModelForCausalLM.from_pretrained(model_dir))
    after = weights_of(load.merged_model(str(model_dir), adapter))
    return {name: after[name] - before[name] for name in before}


def ties_by_hand(deltas: list[Tensor], weights: list[float], density: float) -> Tensor:
    """TIES, entry by entry."""
    rows = [delta.flatten().tolist() for delta in deltas]
    for row in rows:
        smallest_first = sorted(range(len(row)), key=lambda i: abs(row[i]))
        for i in smallest_first[: len(row) - int(density * len(row))]:
            row[i] = 0.0
    merged = []
    for entries in zip(*rows, strict=True):
        positive = sum(entries) >= 0
        chosen = [(w, x) for w, x in zip(weights, entries, strict=True) if (x > 0 if positive else x < 0)]
        merged.append(sum(w * x for w, x in chosen) / max(1, len(chosen)))
    return torch.tensor(merged).view(deltas[0].shape)


# Task vectors


def test_negated_weights_by_hand() -> None:
    before = {"weight": torch.tensor([1.0, 2.0, 3.0]), "steps": torch.tensor([7])}
    after = {"weight": torch.tensor([1.5, 2.0, 1.0]), "steps": torch.tensor([9])}
    found = negated(before, after, 2.0)
    assert found["weight"].tolist() == [0.0, 2.0, 7.0]
    assert found["steps"].tolist() == [7]
    assert before["weight"].tolist() == [1.0, 2.0, 3.0]
    # 2^-10 is below the precision of bfloat16: computed in float32, then rounded
    half = negated({"w": torch.tensor([1.0]).bfloat16()}, {"w": torch.tensor([1.0 + 2**-10])}, 64.0)["w"]
    assert (half.dtype, half.item()) == (torch.bfloat16, 1.0 - 2**-4)


def test_subtracted_training_of_tied_weights(model: LlamaForCausalLM, tmp_path: Path) -> None:
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path)
    before = weights_of(model)
    for weight in model.parameters():
        weight.data += 0.01 * torch.randn_like(weight)
    expected = {name: before[name] - 5 * (after - before[name]) for name, after in weights_of(model).items()}
    subtract_training(str(tmp_path), model, 5.0)
    torch.testing.assert_close(weights_of(model), expected)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_negated_adapter_by_hand(adapt: Adapt, model_dir: Path) -> None:
    adapter = str(adapt("one", 1, target_modules=["q_proj", "embed_tokens"]))
    by_hand = LlamaForCausalLM.from_pretrained(model_dir)
    for name, delta in added(model_dir, adapter).items():
        by_hand.get_parameter(name).data -= 3.0 * delta
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(model_dir), adapter)
    with torch.no_grad():
        negate_adapter(model, 3.0)
        torch.testing.assert_close(model(INPUT).logits, by_hand(INPUT).logits, rtol=1e-4, atol=1e-4)


# TIES


def changes(model_dir: Path, adapters: list[str]) -> dict[str, Tensor]:
    """The merged update of each weight by hand, with density 0.8 and weights 1 and 0.5."""
    updates = [added(model_dir, adapter) for adapter in adapters]
    return {name: ties_by_hand([update[name] for update in updates], [1.0, 0.5], 0.8) for name in updates[0]}


@pytest.mark.parametrize("family", ["model_dir", "gpt2_dir"])
def test_a_merged_model_equals_the_formula(
    family: str, adapt: Adapt, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    model_dir: Path = request.getfixturevalue(family)
    adapters = [str(adapt("one", 1, model_dir)), str(adapt("two", 2, model_dir, r=8, use_rslora=True))]
    output = tmp_path / "merged"
    assert main(["merge", "--ties", ",".join(adapters), "--weights", "1,0.5", "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"Written to {output}.\n"
    before = weights_of(AutoModelForCausalLM.from_pretrained(model_dir))
    expected = changes(model_dir, adapters)
    assert sum(bool(change.any()) for change in expected.values()) == 4
    for name, weight in AutoModelForCausalLM.from_pretrained(output, dtype="auto").named_parameters():
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight.detach(), before[name] + expected[name], rtol=0, atol=2e-6)
    assert AutoTokenizer.from_pretrained(output)("the fox").input_ids


@pytest.mark.parametrize(
    ("rank", "family", "dtype", "off"),
    [(4, "model_dir", "float32", 2e-6), (32, "model_dir", "float32", 2e-6), (4, "gpt2_dir", "bfloat16", 2e-2)],
)
def test_a_merged_adapter_is_the_nearest_of_its_rank(
    rank: int, family: str, dtype: str, off: float, adapt: Adapt, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model_dir: Path = request.getfixturevalue(family)
    adapters = [str(adapt("one", 1, model_dir, use_rslora=True)), str(adapt("two", 2, model_dir, r=8))]
    merge(adapters, str(tmp_path / "merged"), 0.8, [1.0, 0.5], rank=rank, dtype=dtype)
    assert {value.dtype for value in saved_weights(tmp_path / "merged").values()} == {getattr(torch, dtype)}
    found = added(model_dir, str(tmp_path / "merged"))
    for name, change in changes(model_dir, adapters).items():
        nearest = change
        if change.dim() == 2:
            left, sizes, right = torch.linalg.svd(change, full_matrices=False)
            nearest = left[:, :rank] * sizes[:rank] @ right[:rank]
        torch.testing.assert_close(found[name], nearest, rtol=0, atol=off)
    config = json.loads((tmp_path / "merged" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(model_dir)


@pytest.mark.parametrize(("dtype", "off"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_one_adapter_is_merged_into_its_model(
    dtype: str, off: float, adapt: Adapt, model_dir: Path, tmp_path: Path
) -> None:
    adapter, output = str(adapt("one", 1)), str(tmp_path / "merged")
    assert main(["merge", "--adapter", adapter, "--output", output, "--dtype", dtype]) == 0
    before, after = saved_weights(model_dir), saved_weights(output)
    assert {weight.dtype for weight in after.values()} == {getattr(torch, dtype)}
    for name, change in added(model_dir, adapter).items():
        torch.testing.assert_close(after[name].float(), before[name] + change, rtol=off, atol=off)
        assert change.any() == any(target in name for target in TARGETS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"adapters": ["one", "none"]}, r"--ties .*none: .*no adapter_config\.json"),
        ({"adapters": ["one", "fewer"]}, "only some of the adapters have .*down_proj"),
        ({"adapters": ["one", "other"]}, "name different models"),
        ({"adapters": ["one", "dora"]}, "dora: has use_dora"),
        ({"model": "nowhere"}, "--model nowhere"),
    ],
)
def test_adapters_that_cannot_be_merged_are_refused(
    wrong: dict[str, Any], message: str, adapt: Adapt, tmp_path: Path
) -> None:
    adapt("one", 1)
    adapt("two", 2)
    adapt("fewer", 2, target_modules=["q_proj"])
    adapt("dora", 2, use_dora=True)
    other = adapt("other", 2) / "adapter_config.json"
    other.write_text(json.dumps(json.loads(other.read_text()) | {"base_model_name_or_path": "somewhere/else"}))
    options = {"adapters": ["one", "two"]} | wrong
    options["adapters"] = [str(tmp_path / name) for name in options["adapters"]]
    with pytest.raises(ConfigError, match=message):
        merge(output=str(tmp_path / "merged"), **options)
    assert not list((tmp_path / "merged").glob("*"))
