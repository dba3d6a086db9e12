"""`robust`: the gradient of a step at moved weights, by hand."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from lume_unlearn.errors import ConfigError
from lume_unlearn.training import robust
from lume_unlearn.training.robust import damped, selected, steepest
from tests.unlearn.formulas import FORMULAS, Step
from tests.unlearn.rows import nll
from tests.unlearn.training import (
    ALTERNATIVE,
    CONTROL,
    FORGET,
    FORGET_WEIGHT,
    QUANTILES,
    RETAIN,
    RETAIN_WEIGHT,
    build,
    weights,
)


def test_a_zero_gradient_leads_nowhere():
    assert steepest([torch.tensor([0.0])], 0.1) == [torch.tensor([0.0])]


def gradients(model: Any, before: Any, method: str, side: str) -> list[Tensor]:
    """Gradient of one weighted term of the formula by the trained weights of a model."""
    step = Step(model, before, FORGET, ALTERNATIVE, RETAIN, FORMULAS[method].params, CONTROL, QUANTILES)
    term = FORMULAS[method].forget if side == "forget" else FORMULAS[method].retain
    assert term is not None
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    # The weight is in the loss: Llama's norms are in float32, so that a gradient is not scaled exactly.
    loss = term(step) * (FORGET_WEIGHT if side == "forget" else RETAIN_WEIGHT)
    return list(torch.autograd.grad(loss, trained, allow_unused=True))


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


@pytest.mark.parametrize("max_tokens", [8192, 1])
@pytest.mark.parametrize(
    ("method", "tuning"),
    [("gd", "full"), ("npo", "lora"), ("counterfactual", "lora"), ("dpo", "full"), ("rmu", "full")],
)
def test_sam_takes_the_forget_gradient_where_it_is_steepest(method, tuning, max_tokens, tmp_path):
    trainer = build(tmp_path, method, tuning, robust="sam", sam_rho=0.3, max_tokens=max_tokens)
    model, before = trainer.model, copy.deepcopy(trainer.model)
    first = gradients(model, before, method, "forget")
    length = flat(first).norm()
    there = moved(model, [0.0 if g is None else 0.3 * g / length for g in first])
    forget, retain = gradients(there, before, method, "forget"), gradients(model, before, method, "retain")
    expected = [sum(g for g in pair if g is not None) for pair in zip(forget, retain, strict=True)]
    found = flat(after_step(trainer))
    rounding = 1e-9 if method == "gd" else 5e-6  # what is computed once is kept in float32
    torch.testing.assert_close(found, flat(expected), rtol=1e-6, atol=rounding)
    if method != "rmu":  # a plain distance in a small layer: nearly the same gradient everywhere
        assert (flat(first) - flat(forget)).abs().max() > 100 * rounding


def relearned(model: Any, rate: float, rows: list[Any]) -> Any:
    """A copy after four AdamW steps on rows, which are fewer than the eight of a step."""
    copied = copy.deepcopy(model)
    trained = [weight for weight in copied.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(4):
        optimizer.zero_grad()
        torch.cat([nll(copied, row) for row in rows]).mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    return copied


@pytest.mark.parametrize(("tuning", "max_tokens"), [("full", 8192), ("lora", 60), ("lora", 1)])
@pytest.mark.parametrize("one", [False, True])
def test_path_takes_the_gradient_of_rows_of_other_documents_where_relearning_leads(
    one, tuning, max_tokens, tmp_path, monkeypatch
):
    for share in (0.0, 0.75):  # of the way
        monkeypatch.setattr(robust, "FURTHEST", 1.0)
        monkeypatch.setattr(torch, "rand", lambda *args, share=share, **kwargs: torch.tensor(share))
        trainer = build(tmp_path, "gd", tuning, robust="path", path_rate=3e-3, path_steps=4, max_tokens=max_tokens)
        if one:  # document: then its rows are divided
            monkeypatch.setattr(type(trainer.forget[0]), "stem", "one")
        half = torch.randperm(4, generator=torch.Generator().manual_seed(trainer.args.seed * 1_000_003))[:2].tolist()
        rows = [[FORGET[i] for i in range(4) if (i in half) == inside] for inside in (True, False)]
        model = trainer.model
        there = relearned(model, 3e-3, rows[0])
        if share == 0:
            values = [torch.cat([nll(own, row) for row in rows[0]]).mean() for own in (model, there)]
            assert values[1] < values[0] - 0.01
        pairs = zip(there.parameters(), model.parameters(), strict=True)
        between = moved(model, [share * (end - start).detach() for end, start in pairs if start.requires_grad])
        expected = flat(gradients(model, model, "gd", "retain"))
        count = sum(len(nll(model, row)) for row in FORGET)
        for at, own in ((model, rows[0]), (between, rows[1])):
            trained = [weight for weight in at.parameters() if weight.requires_grad]
            loss = -FORGET_WEIGHT * torch.cat([nll(at, row) for row in own]).sum() / count
            expected = expected + flat(list(torch.autograd.grad(loss, trained, allow_unused=True)))
        torch.testing.assert_close(flat(after_step(trainer)), expected, rtol=1e-6, atol=1e-9)


def test_path_of_a_single_row_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--robust path: needs two forget rows"):
        build(tmp_path, "gd", robust="path", rows={"forget": FORGET[:1]})


def test_damping_by_hand():
    left, _ = torch.linalg.qr(torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    right, _ = torch.linalg.qr(torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    gradient = left @ torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)) @ right.T
    values = torch.linalg.svdvals(damped(gradient, 0.5))  # two of four components: 4 / 2^2, 2 and 1
    torch.testing.assert_close(values, torch.tensor([2.0, 1.0, 1.0, 0.0], dtype=torch.float64), rtol=1e-3, atol=1e-3)
    few = left[:, :2] @ torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64)) @ right[:, :2].T
    few = torch.nn.functional.pad(few, (0, 36, 0, 35))  # rank 2 of 40: nothing of it is rounded away
    torch.testing.assert_close(damped(few, 0.5), few, rtol=1e-3, atol=1e-6)
    for other in (torch.zeros(4, 4), torch.randn(4), torch.randn(1, 9)):
        assert damped(other, 0.5).equal(other)


def test_select_damps_the_forget_gradient_and_leaves_its_length_and_the_retain_term(tmp_path):
    trainer = build(tmp_path, "gd", "full", robust="select", select_share=0.5)
    model = trainer.model
    forget, retain = (gradients(model, model, "gd", side) for side in ("forget", "retain"))
    found = after_step(trainer)
    random = torch.get_rng_state()
    expected = selected([g.float() for g in forget], 0.5, float(flat(forget).norm()))
    assert torch.get_rng_state().equal(random)
    torch.testing.assert_close(flat(found), flat(expected) + flat(retain), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(flat(expected).norm(), flat(forget).norm().float())
    assert (flat(expected) - flat(forget)).norm() > 0.1 * flat(forget).norm()
