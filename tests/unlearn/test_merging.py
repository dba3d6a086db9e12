"""Weight arithmetic: closed forms, loops by hand, and adapters of a tiny Llama merged and negated."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from lume_unlearn.cli import main
from lume_unlearn.errors import ConfigError
from lume_unlearn.model import load
from lume_unlearn.model.merge import merge_ties, negate_adapter, negated, subtract_training, ties_update

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


def weights_of(model: Any) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def added(model_dir: Path, adapter: str) -> dict[str, Tensor]:
    """What PEFT's own folding in adds to each weight."""
    before = weights_of(LlamaForCausalLM.from_pretrained(model_dir))
    after = weights_of(load.merged_model(str(model_dir), adapter))
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


def merged_by_rule(deltas: list[Tensor], weights: list[float], density: float) -> Tensor:
    """`ties_update` of these updates."""
    by_name = dict(zip(load.adapter_names(len(deltas)), deltas, strict=True))
    return ties_update(SimpleNamespace(get_delta_weight=by_name.__getitem__), weights, density)


def test_ties_worked_example() -> None:
    deltas = [torch.tensor([5.0, -1.0, 3.0, 0.5]), torch.tensor([-2.0, -4.0, -3.0, 0.25])]
    # of two entries each: [5, 0, 3, 0] and [0, -4, -3, 0]; signs + - + +, the third by the rule for a sum of 0
    assert merged_by_rule(deltas, [1.0, 1.0], 0.5).tolist() == [5.0, -4.0, 3.0, 0.0]
    # all entries: sums 3, -5, 0, 0.75
    assert merged_by_rule(deltas, [1.0, 3.0], 1.0).tolist() == [5.0, (-1 - 12) / 2, 3.0, (0.5 + 0.75) / 2]
    # the sign is elected without the weights
    assert merged_by_rule([torch.tensor([2.0]), torch.tensor([-1.0])], [0.5, 9.0], 1.0).tolist() == [1.0]


@pytest.mark.parametrize("density", [0.1, 0.33, 0.8, 1.0])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, 2.0, -1.0]])
def test_ties_equals_the_formula_entry_by_entry(weights: list[float], density: float) -> None:
    torch.manual_seed(0)
    deltas = [torch.randn(7, 11) for _ in weights]
    found = merged_by_rule(deltas, weights, density)
    torch.testing.assert_close(found, ties_by_hand(deltas, weights, density), rtol=0, atol=1e-6)


def changes(model_dir: Path, adapters: list[str], weights: list[float], density: float) -> dict[str, Tensor]:
    """The merged update of each weight by hand."""
    updates = [added(model_dir, adapter) for adapter in adapters]
    return {name: ties_by_hand([update[name] for update in updates], weights, density) for name in updates[0]}


def test_merged_model_equals_the_formula(adapt: Adapt, model_dir: Path, tmp_path: Path) -> None:
    adapters = [str(adapt("one", 1)), str(adapt("two", 2, r=8, use_rslora=True))]
    merge_ties(adapters, str(tmp_path / "merged"), 0.8, [1.0, 0.5])
    before = weights_of(LlamaForCausalLM.from_pretrained(model_dir))
    expected = changes(model_dir, adapters, [1.0, 0.5], 0.8)
    assert sum(bool(change.any()) for change in expected.values()) == 4
    for name, weight in LlamaForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").named_parameters():
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight.detach(), before[name] + expected[name], rtol=0, atol=2e-6)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("the fox").input_ids


@pytest.mark.parametrize("rank", [4, 32])
def test_merged_adapter_is_the_nearest_of_its_rank(
    rank: int, adapt: Adapt, model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rank-stabilised adapters of different ranks; with the rank of the weights nothing is lost."""
    adapters = [str(adapt("one", 1, use_rslora=True)), str(adapt("two", 2, r=8))]
    with caplog.at_level(logging.WARNING, "lume_unlearn"):
        merge_ties(adapters, str(tmp_path / "merged"), 0.8, [1.0, 0.5], rank=rank)
    found = added(model_dir, str(tmp_path / "merged"))
    lost = []
    for name, change in changes(model_dir, adapters, [1.0, 0.5], 0.8).items():
        left, sizes, right = torch.linalg.svd(change, full_matrices=False) if change.dim() == 2 else (0, change, 0)
        nearest = left[:, :rank] * sizes[:rank] @ right[:rank] if change.dim() == 2 else change
        torch.testing.assert_close(found[name], nearest, rtol=0, atol=2e-6)
        lost.append(((change - nearest).norm() / change.norm().clamp(min=1e-30)).item())
    said = f"--rank {rank}: the adapter loses up to {max(lost):.1%} of a merged update"
    assert (said in caplog.text) == (rank == 4)
    config = json.loads((tmp_path / "merged" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(model_dir)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("the fox").input_ids


@pytest.mark.parametrize("rank", [None, 4])
def test_dtype_of_the_saved_weights(rank: int | None, pair: list[str], tmp_path: Path) -> None:
    merge_ties(pair, str(tmp_path / "merged"), rank=rank, dtype="bfloat16")
    (file,) = (tmp_path / "merged").glob("*.safetensors")
    assert {value.dtype for value in load_file(file).values()} == {torch.bfloat16}


def test_conv1d_weights_are_merged_too(tmp_path: Path, tokenizer: Any) -> None:
    """GPT-2 stores its weights transposed."""
    folder = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=400, n_positions=64, n_embd=16, n_layer=1, n_head=2)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name in ("one", "two"):
        wrapped = get_peft_model(GPT2LMHeadModel.from_pretrained(folder), LoraConfig(target_modules=["c_attn"]))
        for key, weight in wrapped.named_parameters():
            if "lora_" in key:
                weight.data.normal_()
        wrapped.save_pretrained(tmp_path / name)
    pair = [str(tmp_path / "one"), str(tmp_path / "two")]
    merge_ties(pair, str(tmp_path / "full"))
    merge_ties(pair, str(tmp_path / "lora"), rank=16)
    full = load.load_model(str(tmp_path / "full"), torch.float32)
    lora = load.merged_model(str(folder), str(tmp_path / "lora"))
    torch.testing.assert_close(weights_of(lora), weights_of(full), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"density": 0.0}, r"--density 0\.0"),
        ({"density": float("nan")}, "--density nan"),
        ({"weights": [1.0]}, "--weights: 1 given for 2 adapters"),
        ({"adapters": ["one"]}, "--ties .*one: name two or more adapters"),
        ({"rank": 0}, "--rank 0"),
        ({"rank": 33}, "--rank 33: larger than a dimension of .*q_proj"),
        ({"adapters": ["one", "none"]}, r"--ties .*none: .*no adapter_config\.json"),
        ({"adapters": ["one", "fewer"]}, "only some of the adapters have .*down_proj"),
        ({"adapters": ["one", "other"]}, "name different models"),
        ({"adapters": ["one", "dora"]}, "dora: it has use_dora"),
        ({"adapters": ["one", "loha"]}, "loha: is no LoRA adapter"),
        ({"model": "nowhere"}, "--model nowhere"),
    ],
)
def test_what_cannot_be_merged_is_refused(
    wrong: dict[str, Any], message: str, adapt: Adapt, model: LlamaForCausalLM, tmp_path: Path
) -> None:
    adapt("one", 1)
    adapt("two", 2)
    adapt("fewer", 2, target_modules=["q_proj"])
    adapt("dora", 2, use_dora=True)
    other = adapt("other", 2) / "adapter_config.json"
    other.write_text(json.dumps(json.loads(other.read_text()) | {"base_model_name_or_path": "somewhere/else"}))
    get_peft_model(model, LoHaConfig(target_modules=TARGETS)).save_pretrained(tmp_path / "loha")
    loha = tmp_path / "loha" / "adapter_config.json"
    one = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    loha.write_text(
        json.dumps(json.loads(loha.read_text()) | {"base_model_name_or_path": one["base_model_name_or_path"]})
    )
    options = {"adapters": ["one", "two"]} | wrong
    options["adapters"] = [str(tmp_path / name) for name in options["adapters"]]
    with pytest.raises(ConfigError, match=message):
        merge_ties(output=str(tmp_path / "merged"), **options)
    assert not list((tmp_path / "merged").glob("*"))


def test_merge_command_with_ties(pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = ",".join(pair)
    given = ["merge", "--ties", both, "--density", "0.5", "--weights", "1,0.5", "--output", str(tmp_path / "command")]
    assert main(given) == 0
    assert capsys.readouterr().out == f"Written to {tmp_path / 'command'}.\n"
    merge_ties(pair, str(tmp_path / "python"), 0.5, [1.0, 0.5])
    files = [load_file(tmp_path / folder / "model.safetensors") for folder in ("command", "python")]
    torch.testing.assert_close(*files, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name one adapter by --adapter, or several by --ties A,B"),
        (["--adapter", "a", "--ties", "a,b"], "name one adapter by --adapter, or several by --ties A,B"),
        (["--adapter", "a", "--rank", "4"], "--rank: only with --ties"),
        (["--ties", "a,b", "--weights", "1,x"], "--weights 1,x: give numbers with commas between them"),
    ],
)
def test_merge_options_that_contradict(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", "--output", "o", *options]) == 1
    assert capsys.readouterr().err.startswith(f"lume-unlearn merge: {message}")
