"""The unlearning depth score: its formula by hand, and activation patching against a plain loop over one row."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lume_unlearn.data.encode import Tokens
from lume_unlearn.errors import ConfigError
from lume_unlearn.evaluation.depth import depth, row_scores
from lume_unlearn.model.forward import use_packing
from tests.conftest import make_model
from tests.unlearn.training import FORGET, known_model


def test_row_scores_by_hand() -> None:
    # Rows: the docstring's example; ratios below 0 and above 1; no layer above the threshold.
    retrained = torch.tensor([[0.01, 1.0, 0.05], [1.0, 2.0, 0.04], [3.0, 1.0, -1.0]])
    unlearned = torch.tensor([[5.0, -1.0, 1.0], [0.5, 9.0, 1.0], [4.0, 0.5, 1.0]])
    first, second, third = row_scores(retrained, unlearned).tolist()
    assert (first, second) == pytest.approx((3.5 / 4, 2.5 / 4))
    assert math.isnan(third)


def model_of(family: str, seed: int) -> Any:
    return make_model(seed=seed, family=family) if family == "llama" else make_model(seed=seed, family=family, **GPT2)


GPT2 = {"n_layer": 2, "n_embd": 32, "n_head": 4}  # no packed attention


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_retrained_scores_1_and_target_scores_0(family: str) -> None:
    target, retrained = model_of(family, 0), model_of(family, 1)
    assert depth(target, retrained, retrained, FORGET, 60).score == 1.0
    found = depth(target, retrained, target, FORGET, 60)
    assert found.score == pytest.approx(0.0, abs=1e-6)
    assert found.unlearned == pytest.approx([0.0, 0.0], abs=1e-6)


@torch.no_grad()
def plain_nll(model: Any, row: Tokens, layer: int | None = None, states: Tensor | None = None) -> Any:
    """Run a Llama layer by layer; after ``layer`` use ``states`` where they predict labelled tokens, or return them."""
    ids = torch.tensor([row.input_ids])
    hidden = model.model.embed_tokens(ids)
    rotary = model.model.rotary_emb(hidden, torch.arange(len(row.input_ids))[None])
    positions = [t - 1 for t, label in enumerate(row.labels) if t and label >= 0]
    for number, block in enumerate(model.model.layers):
        hidden = block(hidden, position_embeddings=rotary)
        if number == layer:
            if states is None:
                return hidden
            for t in positions:
                hidden[0, t] = states[0, t]
    logprobs = model.lm_head(model.model.norm(hidden)).log_softmax(-1)
    return -sum(logprobs[0, t, row.input_ids[t + 1]].item() for t in positions) / len(positions)


@pytest.mark.parametrize("packed", [False, True])
def test_deltas_and_score_equal_a_plain_loop(packed: bool) -> None:
    target, unlearned, retrained = known_model(), copy.deepcopy(known_model()), make_model(seed=1)
    unlearned.model.layers[1].load_state_dict(retrained.model.layers[1].state_dict())
    row = FORGET[2]
    expected: dict[str, list[float]] = {}
    for name, source in (("retrained", retrained), ("unlearned", unlearned)):
        states = [plain_nll(source, row, layer) for layer in range(2)]
        expected[name] = [plain_nll(target, row, i, states[i]) - plain_nll(target, row) for i in range(2)]
    if packed:
        unlearned.set_attn_implementation("sdpa")
        assert use_packing(unlearned)
    found = depth(target, retrained, unlearned, [row], 100)
    assert found.retrained == pytest.approx(expected["retrained"], abs=1e-4)
    assert found.unlearned == pytest.approx(expected["unlearned"], abs=1e-4)
    d1, d2 = expected["retrained"], expected["unlearned"]
    assert min(d1) > 0.05
    assert 0 < found.score < 1
    assert found.score == pytest.approx(sum(a * min(max(b / a, 0), 1) for a, b in zip(d1, d2, strict=True)) / sum(d1))
    batch = depth(target, retrained, unlearned, FORGET, 100)
    assert batch.rows == len(FORGET)
    single = [depth(target, retrained, unlearned, [row], 100).score for row in FORGET]
    assert batch.score == pytest.approx(sum(single) / len(single), abs=1e-5)


def test_rows_without_a_layer_above_the_threshold_have_no_value() -> None:
    found = depth(known_model(), known_model(), make_model(seed=1), FORGET, 100)
    assert found.rows == 0
    assert math.isnan(found.score)


@pytest.mark.parametrize("options", [{"num_hidden_layers": 3}, {"hidden_size": 64}])
def test_models_of_another_shape_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="the target has 2 layers of width 32, the retrained model"):
        depth(make_model(), make_model(**options), make_model(), FORGET, 100)
