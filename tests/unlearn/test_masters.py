"""``weights="masters"``: bfloat16 weights, and the float32 masters that the optimiser changes."""

from typing import Any

import pytest
import torch
from torch import nn

from lume_unlearn.errors import ConfigError
from lume_unlearn.model import masters
from lume_unlearn.model.masters import keep_masters, step_masters
from tests.conftest import assert_same_weights, saved_weights
from tests.unlearn.training import build, entries, weights

needs_grad_dtype = pytest.mark.skipif(not masters.AVAILABLE, reason="this torch has no Tensor.grad_dtype")
pytestmark = [needs_grad_dtype]
WAYS: dict[str, dict[str, Any]] = {
    "float32": {"bf16": False},
    "autocast": {"bf16": True},
    "masters": {"bf16": True, "weights": "masters"},
}


@pytest.mark.parametrize(("method", "tuning"), [("gd", "full"), ("npo", "full"), ("kl", "last:1")])
def test_masters_are_as_near_to_float32_arithmetic_as_autocast(method, tuning, tmp_path):
    losses = {}
    updates = {}
    for way, options in WAYS.items():
        trainer = build(tmp_path, method, tuning, torch.float32, learning_rate=1e-4, num_train_epochs=4, **options)
        named = trainer.model.named_parameters()
        start = {name: getattr(weight, "master", weight).to(weight.device, copy=True) for name, weight in named}
        seen = set()
        trainer.model.model.layers[1].register_forward_pre_hook(lambda layer, args, seen=seen: seen.add(args[0].dtype))
        trainer.train()
        assert seen == {torch.bfloat16 if way == "masters" else torch.float32}  # hidden states between the layers
        losses[way] = [entry["forget_loss"] for entry in entries(trainer)]
        updates[way] = torch.cat([(weight - start[name]).flatten() for name, weight in weights(trainer.model).items()])
    # Each loss has a rounding error of bfloat16, whose eps is 2**-7.
    assert losses["masters"] == pytest.approx(losses["autocast"], rel=2**-7)
    assert losses["masters"] != losses["autocast"]
    distances = {way: (updates[way] - updates["float32"]).abs().mean() for way in ("autocast", "masters")}
    assert distances["masters"] < 2 * distances["autocast"] < 0.3 * updates["float32"].abs().mean()


class OneWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        keep_masters(self)

    def backward(self, gradient: float) -> None:
        (self.weight * gradient).sum().backward()


def test_a_small_step_moves_the_masters_and_many_move_the_weights():
    model = OneWeight()
    weight = model.weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0)
    step_masters(optimizer)
    for step in range(1, 301):
        model.backward(0.5)
        optimizer.step()
        model.zero_grad()
        if step in (1, 190, 300):
            # Adam's step is the learning rate as long as the gradient does not change.
            torch.testing.assert_close(weight.master, torch.full((4,), 1 - 1e-5 * step), rtol=0, atol=5e-6)
            # Halfway to the next smaller bfloat16 is 1 - 2**-9, which step 196 reaches.
            assert weight.equal(torch.full((4,), 1.0 if step < 196 else 1 - 2**-8, dtype=torch.bfloat16))


def test_gradients_of_micro_batches_are_added_in_float32():
    model = OneWeight()
    for _ in range(1000):
        model.backward(1.0078125)  # bfloat16 sums of this end at 256
    assert model.weight.grad is not None
    assert model.weight.grad.equal(torch.full((4,), 1007.8125))


def test_a_rollback_restores_the_masters(make_run, model_dir, caplog):
    options = {"on_collapse": "rollback", "collapse_bound": 1e-6, "monitor_steps": 1}
    found = make_run("gd", tuning="full", retain_weight=1e-3, **options, **WAYS["masters"])()
    assert "rolling back to the weights of step 0" in caplog.text
    assert_same_weights(found, model_dir)


def test_a_task_vector_is_made_of_the_masters(make_run, model_dir):
    results = [saved_weights(make_run("task-vector", way, tuning="last:1", **WAYS[way])()) for way in WAYS]
    (exact, _, found), start = results, saved_weights(model_dir)
    for name, weight in found.items():
        trained = "layers.1." in name
        assert weight.equal(start[name]) == (not trained)
        if trained:  # Adam's first steps have the size of the learning rate, whatever the size of the gradient
            assert (weight - exact[name]).abs().mean() < 0.2 * (exact[name] - start[name]).abs().mean()


def test_masters_are_refused_where_they_do_not_work(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="--weights masters: needs bfloat16 arithmetic, which is off here"):
        build(tmp_path, "gd", weights="masters")
    monkeypatch.setattr(masters, "AVAILABLE", False)
    with pytest.raises(ConfigError, match=r"--weights masters: torch .* has no Tensor.grad_dtype"):
        build(tmp_path, "gd", **WAYS["masters"])
