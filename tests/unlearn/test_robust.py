"""`--robust` and `--protect`: gradients by hand; and what these options and `--stop_when` refuse."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lume_unlearn.config import RunConfig
from lume_unlearn.data.encode import Tokens
from lume_unlearn.errors import ConfigError
from lume_unlearn.training import split
from lume_unlearn.training.split import projected, steepest
from tests.unlearn.formulas import FORMULAS, Step
from tests.unlearn.rows import nll
from tests.unlearn.training import ALTERNATIVE, FORGET, FORGET_WEIGHT, RETAIN, RETAIN_WEIGHT, build, entries, weights

pytestmark = pytest.mark.usefixtures("little_to_collect")


def vectors(*values: list[float]) -> list[Tensor | None]:
    return [torch.tensor(value) for value in values]


def test_projection_removes_only_what_opposes() -> None:
    assert projected(vectors([1.0], [1.0]), vectors([-1.0], [0.0])) == [torch.tensor([0.0]), torch.tensor([1.0])]
    kept = vectors([1.0], [1.0])
    assert projected(kept, vectors([1.0], [0.0])) is kept
    assert projected([None, torch.tensor([1.0])], [torch.tensor([2.0]), None])[0] is None


def test_steepest_has_length_rho() -> None:
    three, four = steepest(vectors([3.0], [4.0]), 0.1)
    assert three is not None
    assert four is not None
    assert (three.item(), four.item()) == pytest.approx((0.06, 0.08))
    assert steepest(vectors([0.0]), 0.1) == [torch.tensor([0.0])]


def gradients(model: Any, before: Any, method: str, side: str, kept: Sequence[Tokens] = RETAIN) -> list[Tensor]:
    """Gradient of one term of the formula by the trained weights of a model."""
    step = Step(model, before, FORGET, ALTERNATIVE, kept, FORMULAS[method].params)
    term = FORMULAS[method].forget if side == "forget" else FORMULAS[method].retain
    assert term is not None
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return list(torch.autograd.grad(term(step), trained, allow_unused=True))


def moved(model: Any, change: list[Any]) -> Any:
    """A copy with a change of its trained weights."""
    copied = copy.deepcopy(model)
    trained = [weight for weight in copied.parameters() if weight.requires_grad]
    with torch.no_grad():
        for weight, delta in zip(trained, change, strict=True):
            weight.add_(delta)
    return copied


def flat(tensors: list[Any]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors if tensor is not None])


def after_step(trainer: Any) -> list[Tensor]:
    """The gradients that the trainer's first step leaves."""
    item = next(iter(trainer.get_train_dataloader()))
    trainer.model.zero_grad()
    start = weights(trainer.model)
    trainer.training_step(trainer.model, item)
    for name, weight in weights(trainer.model).items():
        assert weight.equal(start[name]), "the weights are where they were"
    return [weight.grad for weight in trainer.model.parameters() if weight.requires_grad]


CASES = [(method, tuning) for method in ("gd", "npo", "counterfactual") for tuning in ("full", "lora")]


@pytest.mark.parametrize(("method", "tuning"), [*CASES, ("dpo", "full"), ("rmu", "full")])
@pytest.mark.parametrize("options", [{}, {"micro_batch_size": 1}], ids=["one pass", "accumulated"])
def test_sam_takes_the_forget_gradient_where_it_is_steepest(
    method: str, tuning: str, options: dict[str, Any], tmp_path: Path
) -> None:
    trainer = build(tmp_path, method, tuning, robust="sam", sam_rho=0.3, **options)
    model, before = trainer.model, copy.deepcopy(trainer.model)
    first = gradients(model, before, method, "forget")
    length = flat(first).norm()
    there = moved(model, [0.0 if g is None else 0.3 * g / length for g in first])
    forget, retain = gradients(there, before, method, "forget"), gradients(model, before, method, "retain")
    expected = [
        sum(w * g for w, g in ((FORGET_WEIGHT, f), (RETAIN_WEIGHT, r)) if g is not None)
        for f, r in zip(forget, retain, strict=True)
    ]
    found = flat(after_step(trainer))
    rounding = 1e-9 if method == "gd" else 5e-6  # what is computed once is kept in float32
    torch.testing.assert_close(found, flat(expected), rtol=1e-6, atol=rounding)
    if method != "rmu":  # a plain distance in a small layer: nearly the same gradient everywhere
        unmoved = [FORGET_WEIGHT * f for f in first if f is not None]
        assert (flat(unmoved) - FORGET_WEIGHT * flat(forget)).abs().max() > 100 * rounding


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_path_takes_the_forget_gradient_where_relearning_leads(
    tuning: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split, "FURTHEST", 0.0)
    there = build(tmp_path, "gd", tuning, robust="path", path_rate=1e-2)
    forget, retain = (gradients(there.model, there.model, "gd", side) for side in ("forget", "retain"))
    expected = FORGET_WEIGHT * flat(forget) + RETAIN_WEIGHT * flat(retain)
    torch.testing.assert_close(flat(after_step(there)), expected, rtol=1e-6, atol=1e-9)
    delta = there.kept["path"]
    relearned = moved(there.model, delta)
    with torch.no_grad():
        values = [torch.cat([nll(model, row) for row in FORGET]).mean() for model in (there.model, relearned)]
    assert values[1] < values[0]
    monkeypatch.setattr(split, "FURTHEST", 1.0)
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: torch.tensor(1.0))
    trainer = build(tmp_path, "gd", tuning, robust="path", path_rate=1e-2)
    found = after_step(trainer)
    moved_forget = gradients(relearned, relearned, "gd", "forget")
    expected = FORGET_WEIGHT * flat(moved_forget) + RETAIN_WEIGHT * flat(retain)
    torch.testing.assert_close(flat(found), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_protect_leaves_no_part_against_the_retain_gradient(tuning: str, tmp_path: Path) -> None:
    kept = [*FORGET[:3], RETAIN[0]]  # so that forgetting raises the retain loss
    trainer = build(tmp_path, "gd", tuning, protect="project", rows={"retain": kept})
    model = trainer.model
    forget, retain = (gradients(model, model, "gd", side, kept) for side in ("forget", "retain"))
    product = flat(forget) @ flat(retain)
    assert product < 0, "else there is nothing to remove"
    wanted = flat(forget) - product / flat(retain).square().sum() * flat(retain)
    expected = FORGET_WEIGHT * wanted + RETAIN_WEIGHT * flat(retain)
    torch.testing.assert_close(flat(after_step(trainer)), expected, rtol=1e-6, atol=1e-9)
    first = flat(trainer.kept["retain"])
    after_step(trainer)  # the same rows again
    torch.testing.assert_close(flat(trainer.kept["retain"]), 0.8 * flat(retain) + 0.2 * first)


@pytest.mark.parametrize("options", [{"robust": "sam"}, {"robust": "path"}, {"protect": "project"}])
def test_wrapped_methods_still_forget(options: dict[str, Any], tmp_path: Path) -> None:
    trainer = build(tmp_path, "gd", epochs=6, **options)
    trainer.train()
    losses = [-entry["forget_loss"] for entry in entries(trainer)]
    assert losses[-1] > losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "ngdiff", "tuning": "full", "robust": "sam"}, "--robust: not supported for ngdiff"),
        ({"method": "task-vector", "protect": "project"}, "--protect: not supported for task-vector"),
        ({"method": "ga", "protect": "project"}, "--protect project: needs a retain term"),
        ({"method": "rmu", "robust": "path"}, "--robust path: not supported for rmu"),
        ({"method": "gd", "stop_when": "level"}, "--stop_when level: needs --unseen FILE"),
        ({"method": "agad", "stop_when": "masc"}, "--stop_when: not supported for agad"),
        ({"method": "gd", "substitutes": "x.jsonl"}, "--substitutes: gd has no counterfactual teacher"),
        ({"method": "gd", "unseen": "x.jsonl"}, "--unseen: neither gd nor --stop_when level follows these texts"),
        ({"method": "counterfactual", "params": {"contexts": 0}}, "--contexts 0: the teacher predicts from nothing"),
        ({"method": "level", "params": {"contexts": 0}}, "--contexts 0: give --unseen FILE"),
        (
            {"method": "counterfactual", "params": {"divergence": "l2"}},
            "--divergence l2: choose one of kl, reverse, js",
        ),
    ],
)
def test_what_does_not_work_is_said_before_loading(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig("no model", "no output", **options)
