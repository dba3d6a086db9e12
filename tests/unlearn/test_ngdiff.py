"""NGDiff's trainer against its algorithm by hand: normalised gradients, and the learning rate search."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lume_unlearn.data.encode import Tokens
from lume_unlearn.methods.common import IGNORED
from tests.unlearn.formulas import Step, forget_mean, retain_mean
from tests.unlearn.training import FORGET, FORGET_WEIGHT, RATE, RETAIN, RETAIN_WEIGHT, build, entries, weights

pytestmark = pytest.mark.usefixtures("little_to_collect")
OWN: dict[str, Any] = {"lr_schedule": "constant", "max_grad_norm": 0.0, "weight_decay": 0.01}


class ByHand:
    """The algorithm on a copy of a trainer's model."""

    def __init__(self, trainer: Any) -> None:
        self.model = copy.deepcopy(trainer.model)
        self.trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        named = [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]
        decayed = [[weight for name, weight in named if ("norm" in name) == is_norm] for is_norm in (False, True)]
        groups = [{"params": decayed[0], "weight_decay": 0.01}, {"params": decayed[1], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE)

    def loss(self, side: str) -> Tensor:
        step = Step(self.model, None, FORGET, [], RETAIN, {})
        return forget_mean(step) if side == "forget" else retain_mean(step)

    def gradient(self, side: str) -> tuple[float, Tensor]:
        """The side's loss, and its gradient by all weights as one vector of length 1."""
        loss = self.loss(side)
        parts = torch.autograd.grad(loss, self.trained)
        flat = torch.cat([part.flatten() for part in parts])
        return loss.item(), flat / flat.square().sum().sqrt()

    def step(self, search: bool, low: float, high: float) -> dict[str, float]:
        """One step; the next step's rate is in the optimiser."""
        retain, along = self.gradient("retain")
        forget, against = self.gradient("forget")
        whole = RETAIN_WEIGHT * along - FORGET_WEIGHT * against
        parts = whole.split([weight.numel() for weight in self.trained])
        for weight, part in zip(self.trained, parts, strict=True):
            weight.grad = part.view_as(weight)
        rate = self.optimizer.param_groups[0]["lr"]
        start = [weight.detach().clone() for weight in self.trained]
        self.optimizer.step()
        if search:
            end = [weight.detach().clone() for weight in self.trained]
            found = []
            for times in (-1.0, 0.0, 1.0):
                self.place([a + times * (b - a) for a, b in zip(start, end, strict=True)])
                with torch.no_grad():
                    found.append(self.loss("retain").item())
            self.place(end)
            # The parabola through (-rate, .), (0, .), (rate, .): a x^2 + b x + c has its bottom at -b / 2a.
            a = (found[0] - 2 * found[1] + found[2]) / (2 * rate**2)
            b = (found[2] - found[0]) / (2 * rate)
            if a > 0:
                for group in self.optimizer.param_groups:
                    group["lr"] = min(max(-b / (2 * a), low), high)
        entry = {"loss": retain - forget, "forget_loss": forget, "retain_loss": retain}
        return entry | {"grad_norm": whole.square().sum().sqrt().item(), "learning_rate": rate}

    @torch.no_grad()
    def place(self, values: list[Tensor]) -> None:
        for weight, value in zip(self.trained, values, strict=True):
            weight.copy_(value)


@pytest.mark.parametrize(
    ("tuning", "every", "times"),
    [("full", 0, 10.0), ("full", 1, 10.0), ("lora", 1, 1.2), ("lora", 2, 10.0), ("last:1", 2, 10.0)],
)
def test_steps_equal_the_algorithm_by_hand(tuning: str, every: int, times: float, tmp_path: Path) -> None:
    trainer = build(tmp_path, "ngdiff", tuning, epochs=4, params={"rate_every": every, "rate_range": times}, **OWN)
    start, hand = weights(trainer.model), ByHand(trainer)
    found = [
        hand.step(search=every > 0 and number % every == 0, low=RATE / times, high=RATE * times)
        for number in range(1, 5)
    ]
    trainer.train()
    rates = [entry["learning_rate"] for entry in found]
    assert rates[:every] == [RATE] * every
    assert (rates[every] != RATE) == (every > 0), "the example is to find another rate at once"
    for entry, expected in zip(entries(trainer), found, strict=True):
        assert {name: entry[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    for name, weight in weights(trainer.model).items():
        torch.testing.assert_close(weight, hand.model.get_parameter(name).detach(), rtol=0, atol=2e-6)
        assert weight.equal(start[name]) == (not hand.model.get_parameter(name).requires_grad)


def test_the_search_has_no_dropout_and_training_has(tmp_path: Path) -> None:
    plain = build(tmp_path, "ngdiff", "lora", lora_dropout=0.5, params={"rate_every": 1}, **OWN)
    inputs = next(iter(plain.get_train_dataloader()))
    plain.training_step(plain.model, inputs)
    assert plain.retain_loss(plain.model) == plain.retain_loss(plain.model)
    assert plain.model.training


def test_the_found_rate_survives_the_scheduler(tmp_path: Path) -> None:
    """Under a falling schedule too: the factor applies to the rate found."""
    trainer = build(tmp_path, "ngdiff", epochs=4, params={"rate_every": 2}, **(OWN | {"lr_schedule": "linear"}))
    trainer.train()
    rates = [entry["learning_rate"] for entry in entries(trainer)]
    assert rates[:2] == pytest.approx([RATE, 0.75 * RATE])
    assert rates[2:] != pytest.approx([0.5 * RATE, 0.25 * RATE])


def test_a_side_without_gradient_leaves_the_other(tmp_path: Path) -> None:
    """0 / 0 would be NaN in every weight."""
    unlabelled = [Tokens(row.input_ids, (IGNORED,) * len(row.input_ids)) for row in FORGET]
    trainer = build(tmp_path, "ngdiff", params={"rate_every": 0}, rows={"forget": unlabelled}, **OWN)
    trainer.train()
    assert [entry["forget_loss"] for entry in entries(trainer)] == [0.0, 0.0, 0.0]
    losses = [entry["retain_loss"] for entry in entries(trainer)]
    assert losses[0] > losses[1] > losses[2]
