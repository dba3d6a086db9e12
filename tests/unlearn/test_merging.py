"""Weight arithmetic: closed forms, loops by hand, and adapters of a tiny Llama merged and turned around."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model
from peft.utils.merge_utils import ties as peft_ties
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM

from lume_unlearn import modeling
from lume_unlearn.config import ConfigError
from lume_unlearn.merging import adapter_factors, low_rank, negate_adapter, negated, subtract_training, ties, ties_merge

INPUT = torch.arange(2, 40)[None]
TARGETS = ["q_proj", "down_proj"]
Adapt = Callable[..., Path]


@pytest.fixture
def adapt(model_dir: Path, tmp_path: Path) -> Adapt:
    """(name, seed, options) to the folder of a LoRA adapter whose two factors are random."""

    def make(name: str, seed: int, model: Path = model_dir, **options: Any) -> Path:
        torch.manual_seed(seed)
        plain: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS, "task_type": "CAUSAL_LM"}
        wrapped = get_peft_model(LlamaForCausalLM.from_pretrained(model), LoraConfig(**(plain | options)))
        for key, weight in wrapped.named_parameters():
            if "lora_" in key:
                weight.data.normal_(std=0.2)
        wrapped.save_pretrained(tmp_path / name, save_embedding_layers=False)
        return tmp_path / name

    return make


@pytest.fixture
def pair(adapt: Adapt) -> list[str]:
    return [str(adapt("one", 1)), str(adapt("two", 2))]


def edit(adapter: Path, **settings: Any) -> None:
    """Change an adapter's configuration on disk."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def weights_of(model: Any) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def added(model_dir: Path, adapter: str) -> dict[str, Tensor]:
    """What PEFT's own folding in adds to each weight."""
    before = weights_of(LlamaForCausalLM.from_pretrained(model_dir))
    after = weights_of(modeling.merged_model(str(model_dir), adapter))
    return {name: after[name] - before[name] for name in before}


def ties_by_hand(deltas: list[Tensor], weights: list[float], density: float) -> Tensor:
    """Entry by entry."""
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


def test_negated_by_hand() -> None:
    before = {"weight": torch.tensor([1.0, 2.0, 3.0]), "steps": torch.tensor([7]), "mask": torch.tensor([True, False])}
    after = {"weight": torch.tensor([1.5, 2.0, 1.0]), "steps": torch.tensor([9]), "mask": torch.tensor([False, False])}
    found = negated(before, after, 2.0)
    assert found["weight"].tolist() == [0.0, 2.0, 7.0]
    assert found["steps"].tolist() == [7]
    assert found["mask"].tolist() == [True, False]
    assert before["weight"].tolist() == [1.0, 2.0, 3.0]


def test_negated_computes_in_float32_and_keeps_the_dtype() -> None:
    before, after = torch.tensor([1.0]), torch.tensor([1.0 + 2**-10])  # bfloat16 does not know the difference
    found = negated({"w": before.bfloat16()}, {"w": after}, 64.0)["w"]
    assert found.dtype == torch.bfloat16
    assert found.item() == 1.0 - 2**-4


@pytest.mark.parametrize(("other", "message"), [({"b": torch.ones(2)}, "only: a, b"), ({"a": torch.ones(3)}, r"a: .*")])
def test_negated_names_what_differs(other: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        negated({"a": torch.ones(2)}, other, 1.0)


@pytest.mark.parametrize("tied", [False, True])
def test_subtracted_training_by_hand(tied: bool, model: LlamaForCausalLM, tmp_path: Path) -> None:
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    model.save_pretrained(tmp_path)
    before = weights_of(model)
    for weight in model.parameters():
        weight.data += 0.01 * torch.randn_like(weight)
    expected = {name: before[name] - 5 * (after - before[name]) for name, after in weights_of(model).items()}
    subtract_training(str(tmp_path), model, 5.0)
    torch.testing.assert_close(weights_of(model), expected)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied


def test_rounding_to_the_dtype_of_training_is_no_training(model: LlamaForCausalLM, model_dir: Path) -> None:
    trained = LlamaForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16)
    before = weights_of(trained)
    subtract_training(str(model_dir), trained, 5.0)
    assert all(value.equal(before[name]) for name, value in weights_of(trained).items())


def test_subtraction_of_another_model_is_refused(model: LlamaForCausalLM, model_dir: Path) -> None:
    model.resize_token_embeddings(410)
    with pytest.raises(ValueError, match=r"shape \(400, 32\) before, \(410, 32\) after"):
        subtract_training(str(model_dir), model, 1.0)


@pytest.mark.parametrize("targets", [TARGETS, ["q_proj", "embed_tokens"]])
def test_a_negated_adapter_by_hand(targets: list[str], adapt: Adapt, model_dir: Path) -> None:
    adapter = str(adapt("one", 1, target_modules=targets))
    by_hand = LlamaForCausalLM.from_pretrained(model_dir)
    for name, delta in added(model_dir, adapter).items():
        by_hand.get_parameter(name).data -= 3.0 * delta
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(model_dir), adapter)
    with torch.no_grad():
        trained = model(INPUT).logits
        negate_adapter(model, 3.0)
        torch.testing.assert_close(model(INPUT).logits, by_hand(INPUT).logits, rtol=1e-4, atol=1e-4)
        assert (model(INPUT).logits - trained).abs().max() > 0.1


# TIES


def test_ties_of_a_case_worked_out() -> None:
    deltas = [torch.tensor([5.0, -1.0, 3.0, 0.5]), torch.tensor([-2.0, -4.0, -3.0, 0.25])]
    # of two entries each: [5, 0, 3, 0] and [0, -4, -3, 0]; signs + - + +, the third by the rule for a sum of 0
    assert ties(deltas, [1.0, 1.0], 0.5).tolist() == [5.0, -4.0, 3.0, 0.0]
    # all entries: sums 3, -5, 0, 0.75
    assert ties(deltas, [1.0, 3.0], 1.0).tolist() == [5.0, (-1 - 12) / 2, 3.0, (0.5 + 0.75) / 2]


def test_the_sign_is_elected_without_the_weights() -> None:
    assert ties([torch.tensor([2.0]), torch.tensor([-1.0])], [0.1, 9.0], 1.0).tolist() == [pytest.approx(0.2)]


@pytest.mark.parametrize("density", [0.1, 0.33, 0.8, 1.0])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, 2.0, -1.0]])
@pytest.mark.filterwarnings("ignore:The density")
def test_ties_equals_a_loop_and_peft(weights: list[float], density: float) -> None:
    torch.manual_seed(0)
    deltas = [torch.randn(7, 11) for _ in weights]
    found = ties(deltas, weights, density)
    torch.testing.assert_close(found, ties_by_hand(deltas, weights, density))
    torch.testing.assert_close(found, peft_ties(deltas, torch.tensor(weights), density))


def test_equal_magnitudes_keep_no_more_than_asked() -> None:
    assert ties([torch.ones(10)], [1.0], 0.35).sum() == 3


# Adapters on disk


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"layers.1.mlp.down_proj": 2}, "alpha_pattern": {"q_proj": 16}},
        {"use_rslora": True, "rank_pattern": {"q_proj": 3}, "alpha_pattern": {r"layers\.0\..*down_proj": 1}},
        {"layers_to_transform": [1]},
    ],
)
def test_factors_give_what_peft_folds_in(options: dict[str, Any], adapt: Adapt, model_dir: Path) -> None:
    adapter = str(adapt("one", 1, **options))
    expected = {name: delta for name, delta in added(model_dir, adapter).items() if delta.any()}
    found = {f"{module}.weight": up @ down for module, (up, down) in adapter_factors(adapter).items()}
    assert len(found) == (2 if "layers_to_transform" in options else 4)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "not supported: use_dora"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, r"embed_tokens\.lora_embedding_A.*: not supported"),
        ({"modules_to_save": ["norm"]}, "not supported: modules_to_save"),
        ({"lora_bias": True}, "not supported: lora_bias"),
        ({"ensure_weight_tying": True}, "not supported: ensure_weight_tying"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights pissa"),
    ],
)
def test_adapters_with_more_to_them_are_refused(options: dict[str, Any], message: str, adapt: Adapt) -> None:
    with pytest.raises(ConfigError, match=message):
        adapter_factors(str(adapt("one", 1, **options)))


def test_another_kind_of_adapter_is_refused(model: LlamaForCausalLM, tmp_path: Path) -> None:
    get_peft_model(model, LoHaConfig(target_modules=TARGETS)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="LOHA; only LoRA"):
        adapter_factors(str(tmp_path))


def test_unreadable_adapters_are_named(adapt: Adapt, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"empty: .*no adapter_config\.json"):
        adapter_factors(str(tmp_path / "empty"))
    adapter = adapt("one", 1)
    weights = adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    del tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"]
    save_file(tensors, weights)
    with pytest.raises(ConfigError, match=r"layers\.0\.self_attn\.q_proj has no A and B"):
        adapter_factors(str(adapter))
    weights.write_bytes(b"no safetensors")
    with pytest.raises(ConfigError, match=r"one: .* cannot be read"):
        adapter_factors(str(adapter))
    weights.rename(adapter / "adapter_model.bin")
    with pytest.raises(ConfigError, match="pickles are never loaded"):
        adapter_factors(str(adapter))
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"one: .*adapter_config\.json"):
        adapter_factors(str(adapter))


# Merging


def test_the_merged_model_by_hand(adapt: Adapt, model_dir: Path, tmp_path: Path) -> None:
    adapters = [str(adapt("one", 1)), str(adapt("two", 2, r=8, use_rslora=True))]
    ties_merge(str(model_dir), adapters, tmp_path / "merged", 0.8, [1.0, 0.5], "full", 1)
    found = LlamaForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    changes = [added(model_dir, adapter) for adapter in adapters]
    before = weights_of(LlamaForCausalLM.from_pretrained(model_dir))
    changed = 0
    for name, weight in found.named_parameters():
        assert weight.dtype == torch.float32
        delta = ties_by_hand([change[name] for change in changes], [1.0, 0.5], 0.8)
        changed += bool(delta.any())
        torch.testing.assert_close(weight.detach(), before[name] + delta, rtol=1e-5, atol=1e-5)
    assert changed == 4
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("the fox").input_ids


def test_an_adapter_of_full_rank_equals_the_merged_model(
    pair: list[str], model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for tuning in ("full", "lora"):
        ties_merge(str(model_dir), pair, tmp_path / tuning, 0.5, [1.0, 1.0], tuning, 32)  # type: ignore[arg-type]
    found = weights_of(modeling.merged_model(str(model_dir), str(tmp_path / "lora")))
    expected = weights_of(LlamaForCausalLM.from_pretrained(tmp_path / "full"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(model_dir)
    assert AutoTokenizer.from_pretrained(tmp_path / "lora")("the fox").input_ids
    assert not caplog.records


def test_what_a_low_rank_loses_is_said(
    pair: list[str], model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "lume_unlearn"):
        ties_merge(str(model_dir), pair, tmp_path / "merged", 0.8, [1.0, 1.0], "lora", 4)
    lost = {}
    for module, (up, down) in adapter_factors(str(tmp_path / "merged")).items():
        changes = [added(model_dir, adapter)[f"{module}.weight"] for adapter in pair]
        delta = ties_by_hand(changes, [1.0, 1.0], 0.8)
        lost[module] = ((delta - up @ down).norm() / delta.norm()).item()
    most = max(lost, key=lambda module: lost[module])
    assert f"rank 4: the adapter loses up to {lost[most]:.1%}" in caplog.text
    assert f"most at {most}" in caplog.text


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (6, 6)])
@pytest.mark.parametrize("rank", [1, 4, 6, 8])
def test_low_rank_is_the_truncated_decomposition(shape: tuple[int, int], rank: int) -> None:
    torch.manual_seed(0)
    delta = torch.randn(shape)
    up, down, lost = low_rank(delta, rank)
    left, sizes, right = torch.linalg.svd(delta, full_matrices=False)
    assert up.shape == (shape[0], rank)
    assert down.shape == (rank, shape[1])
    torch.testing.assert_close(up @ down, left[:, :rank] * sizes[:rank] @ right[:rank], rtol=1e-5, atol=1e-5)
    assert lost == pytest.approx((sizes[rank:].norm() / sizes.norm()).item(), abs=1e-6)
    balanced = torch.nn.functional.pad(sizes[:rank], (0, max(0, rank - 6))).sqrt().sort().values
    for factor in (up, down.T):
        torch.testing.assert_close(factor.norm(dim=0).sort().values, balanced, rtol=1e-5, atol=1e-5)


def test_low_rank_of_nothing_is_nothing() -> None:
    up, down, lost = low_rank(torch.zeros(3, 5), 2)
    assert not up.any()
    assert not down.any()
    assert lost == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"density": 0.0}, r"--density 0\.0"),
        ({"density": 1.1}, r"--density 1\.1"),
        ({"density": float("nan")}, "--density nan"),
        ({"weights": [1.0]}, "--weights: 1 given for 2 adapters"),
        ({"adapters": ["one"], "weights": [1.0]}, "--adapters: 1 given"),
        ({"rank": 0}, "--rank 0"),
        ({"adapters": ["one", "none"]}, r"none: .*no adapter_config\.json"),
        ({"adapters": ["one", "fewer"]}, r"only one of them has model\.layers\.0\.mlp\.down_proj"),
        ({"adapters": ["one", "other"]}, "different models, .* and somewhere/else"),
        ({"adapters": ["one", "wider"]}, r"layers\.0\.mlp\.down_proj.* another shape"),
        ({"adapters": ["wider", "wider"]}, r"--model .*: has no model\.layers\.0\.mlp\.down_proj of shape \(32, 80\)"),
        ({"adapters": ["one", "one"], "model": "nowhere"}, "--model nowhere"),
    ],
)
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_what_cannot_be_merged_is_refused(
    tuning: str, wrong: dict[str, Any], message: str, adapt: Adapt, model: LlamaForCausalLM, tmp_path: Path
) -> None:
    adapt("one", 1)
    adapt("fewer", 2, target_modules=["q_proj"])
    edit(adapt("other", 2), base_model_name_or_path="somewhere/else")
    model_dir = json.loads((tmp_path / "one" / "adapter_config.json").read_text())["base_model_name_or_path"]
    model.config.intermediate_size = 80
    LlamaForCausalLM(model.config).save_pretrained(tmp_path / "wide_model")
    edit(adapt("wider", 2, model=tmp_path / "wide_model"), base_model_name_or_path=model_dir)
    options = {"model": model_dir, "adapters": ["one", "fewer"], "density": 0.8, "weights": [1.0, 1.0], "rank": 4}
    options |= wrong
    options["adapters"] = [str(tmp_path / name) for name in options["adapters"]]
    with pytest.raises(ConfigError, match=message):
        ties_merge(output=tmp_path / "merged", tuning=tuning, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "merged").exists()


def test_an_output_in_use_is_refused(pair: list[str], model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--output"):
        ties_merge(str(model_dir), pair, tmp_path, 0.8, [1.0, 1.0], "full", 4)


def test_a_shared_weight_is_not_merged_into(
    adapt: Adapt, model: LlamaForCausalLM, tmp_path: Path, tokenizer: Any
) -> None:
    model.config.tie_word_embeddings = True
    model.tie_weights()
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "tied")
    pair = [str(adapt(name, 1, model=tmp_path / "tied", target_modules=["lm_head"])) for name in ("one", "two")]
    with pytest.raises(ConfigError, match="lm_head shares its weight"):
        ties_merge(str(tmp_path / "tied"), pair, tmp_path / "full", 1.0, [1.0, 1.0], "full", 4)
    ties_merge(str(tmp_path / "tied"), pair, tmp_path / "lora", 1.0, [1.0, 1.0], "lora", 4)
    logits = [
        PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tmp_path / "tied"), folder)(INPUT).logits
        for folder in (pair[0], str(tmp_path / "lora"))
    ]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)  # two equal updates merge into themselves
