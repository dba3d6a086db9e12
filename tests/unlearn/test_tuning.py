"""What a run trains: the last layers, weights by name, everything; and what an option cannot name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lume_unlearn.config import RunConfig, tuning_fault
from lume_unlearn.errors import ConfigError
from lume_unlearn.model.load import freeze

SIZES: dict[str, Any] = {"vocab_size": 60, "num_hidden_layers": 12, "num_attention_heads": 2, "num_key_value_heads": 2}
SIZES |= {"hidden_size": 8, "intermediate_size": 12}


def llama(**options: Any) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, **options))


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=8, n_layer=12, n_head=2))


def trained(model: Any) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def layers_of(names: set[str], before: str) -> set[int]:
    """Numbers of the layers of these weights, all of which stand below ``before``."""
    assert all(name.startswith(before) for name in names)
    return {int(name.removeprefix(before).split(".")[0]) for name in names}


@pytest.mark.parametrize(("build", "before"), [(llama, "model.layers."), (gpt2, "transformer.h.")])
@pytest.mark.parametrize("count", [1, 3, 12])
def test_the_last_layers(count: int, build: Callable[[], Any], before: str) -> None:
    model = build()
    freeze(model, f"last:{count}")
    assert layers_of(trained(model), before) == set(range(12 - count, 12))
    layer = {name for name in dict(model.named_parameters()) if name.startswith(f"{before}11.")}
    assert layer <= trained(model)  # all weights of a layer, its norms too


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (
            r"layers\.[0-5]\.mlp",
            {f"model.layers.{i}.mlp.{n}_proj.weight" for i in range(6) for n in ("up", "gate", "down")},
        ),
        (r"layers\.[567]\.mlp\.down_proj", {f"model.layers.{i}.mlp.down_proj.weight" for i in (5, 6, 7)}),
        ("embed_tokens", {"model.embed_tokens.weight"}),
        (r"^lm_head|^model\.norm", {"lm_head.weight", "model.norm.weight"}),
    ],
)
def test_weights_by_name(pattern: str, expected: set[str]) -> None:
    model = llama()
    freeze(model, f"modules:{pattern}")
    assert trained(model) == expected  # layers 10 and 11 are no "1." or "[0-5]."


def test_everything() -> None:
    model = llama()
    freeze(model, "full")
    assert trained(model) == set(dict(model.named_parameters()))


def test_tied_embeddings_are_one_weight_under_their_first_name() -> None:
    model = llama(tie_word_embeddings=True)
    freeze(model, "modules:embed_tokens")
    assert model.lm_head.weight.requires_grad
    freeze(model, "last:1")
    assert not model.lm_head.weight.requires_grad


@pytest.mark.parametrize("tuning", ["last:2", r"modules:mlp\.up"])
def test_frozen_weights_get_no_gradient(tuning: str) -> None:
    model = llama()
    freeze(model, tuning)
    model(input_ids=torch.tensor([[3, 4, 5]])).logits.square().sum().backward()
    with_gradient = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert with_gradient == trained(model) != set()


def test_more_layers_than_there_are() -> None:
    with pytest.raises(ConfigError, match=r"^--tuning last:13: the model has 12 decoder layers$"):
        freeze(llama(), "last:13")


def test_a_pattern_that_is_in_no_name_shows_how_names_look() -> None:
    with pytest.raises(ConfigError, match=r"^--tuning modules:mpl: found in no weight's name .*like lm_head.weight\)$"):
        freeze(llama(), "modules:mpl")


@pytest.mark.parametrize(
    "tuning", ["lora", "full", "last:1", "last:32", "modules:mlp", r"modules:layers\.[0-5]\.mlp:x"]
)
def test_what_can_work_has_no_fault(tuning: str) -> None:
    assert tuning_fault(tuning) is None


@pytest.mark.parametrize("tuning", ["", "loar", "last", "last:", "last:0", "last:-1", "last:1.5", "last:x", "modules:"])
def test_what_names_nothing(tuning: str) -> None:
    with pytest.raises(ConfigError, match=r"^--tuning .*: choose lora, full, last:K"):
        RunConfig(model="m", output="o", method="gd", tuning=tuning)


def test_a_pattern_that_is_none() -> None:
    with pytest.raises(ConfigError, match=r"^--tuning modules:\(mlp: not a regular expression: .*unterminated"):
        RunConfig(model="m", output="o", method="gd", tuning="modules:(mlp")
