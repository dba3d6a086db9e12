"""What holds for training with every method: log, arithmetic, frozen weights, the reference, the order of rows."""

import math
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from transformers import TrainingArguments

from lume_unlearn.config import RunConfig
from lume_unlearn.data import schedule
from lume_unlearn.data.dataset import Sides
from lume_unlearn.training.arguments import training_arguments
from tests.unlearn.formulas import FORMULAS, selective
from tests.unlearn.training import RATE, RETAIN_WEIGHT, build, entries, make_rows, weights

pytestmark = pytest.mark.usefixtures("little_to_collect")


def test_logged_terms_are_means_over_the_steps_since_the_last_entry(tmp_path: Path) -> None:
    logs = []
    for every in (1, 2):
        trainer = build(tmp_path, "kl", "lora", logging_steps=every, micro_batch_size=1, epochs=5)
        trainer.train()
        logs.append(entries(trainer))
    each, every_other = logs
    assert [entry["step"] for entry in every_other] == [1, 2, 4]  # Trainer logs the first step as well
    for name in ("loss", "forget_loss", "retain_loss"):
        value = [entry[name] for entry in each]
        expected = [value[0], value[1], (value[2] + value[3]) / 2]
        assert [entry[name] for entry in every_other] == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(("lr_schedule", "last"), [("constant", 1.0), ("linear", 0.5), ("cosine", 0.5)])
def test_warmup_starts_above_zero(lr_schedule: str, last: float, tmp_path: Path) -> None:
    trainer = build(tmp_path, "gd", epochs=4, warmup=0.5, lr_schedule=lr_schedule)
    before = weights(trainer.model)
    trainer.train()
    assert [entry["learning_rate"] / RATE for entry in entries(trainer)] == pytest.approx([1 / 3, 2 / 3, 1.0, last])
    one_step = build(tmp_path, "gd", epochs=1, warmup=0.5, lr_schedule=lr_schedule)
    one_step.train()
    assert any(not value.equal(before[name]) for name, value in weights(one_step.model).items())


def test_bfloat16_arithmetic_is_near_the_exact_one(tmp_path: Path) -> None:
    logs = []
    for precision in ("float32", "bfloat16"):
        trainer = build(tmp_path, "npo", "full", torch.float32, precision=precision, epochs=1)
        trainer.train()
        logs.append(entries(trainer)[0])
    assert logs[1]["retain_loss"] == pytest.approx(logs[0]["retain_loss"], rel=0.02)
    assert logs[1]["retain_loss"] != pytest.approx(logs[0]["retain_loss"], rel=1e-6)
    # The reference was scored in the same arithmetic: at the start, NPO is exactly (2 / beta) ln 2.
    assert logs[1]["forget_loss"] == pytest.approx(2 / FORMULAS["npo"].params["beta"] * math.log(2), rel=1e-4)


def test_each_epoch_has_other_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[schedule.Pair]] = []
    item = Sides.__getitem__
    monkeypatch.setattr(Sides, "__getitem__", lambda sides, step: drawn.append(step.pairs) or item(sides, step))
    rows = {"forget": make_rows(7, [(5 + i, 2) for i in range(6)])}
    build(tmp_path, "gd", "lora", rows=rows, seed=3, epochs=2.5, batch_size=3).train()
    epochs = [schedule.paired(6, 4, 3, 3, epoch) for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert drawn[:5] == [*epochs[0], *epochs[1], epochs[2][0]]


def test_a_process_uses_one_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda args: 4))
    assert training_arguments(RunConfig(model="m", output=str(tmp_path), method="ga"))._n_gpu == 1


def test_compiled_layers_train_the_same_and_are_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with micro-batches of different sizes. Graphs are counted and run without kernels, which is quicker."""
    counter = CompileCounter()
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=counter))
    options: dict[str, Any] = {"epochs": 2, "max_tokens": 60}
    plain, compiled = (build(tmp_path / str(on), "kl", compile=on, **options) for on in (False, True))
    torch.compiler.reset()
    plain.train()
    compiled.train()
    torch.compiler.reset()
    for found, expected in zip(entries(compiled), entries(plain), strict=True):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-8)
    for name, weight in weights(compiled.model).items():  # of the same names too
        torch.testing.assert_close(weight, weights(plain.model)[name], rtol=0, atol=1e-5)
    assert len(compiled.model.model.layers) == 2
    assert 0 < counter.frame_count <= 8  # the same number for the model and its reference copy


def test_pdu_logs_its_dual_variable(tmp_path: Path) -> None:
    params = {"epsilon": 0.55, "dual_step": 3.0, "dual_warmup": 2.0}
    trainer = build(tmp_path, "pdu", epochs=4, batch_size=2, learning_rate=3e-3, params=params)
    trainer.train()
    found = entries(trainer)
    expected, weight = [], RETAIN_WEIGHT
    for step, entry in enumerate(found, start=1):  # two steps an epoch
        if step / 2 > 2:
            weight = max(0.0, weight + 3.0 * (entry["retain_loss"] - 0.55))
        expected.append(weight)
    assert [entry["retain_weight"] for entry in found] == pytest.approx(expected, rel=1e-6)
    assert expected[3] == RETAIN_WEIGHT != expected[4]  # two whole epochs without


def test_selective_raises_the_retain_weight_with_the_retain_loss(tmp_path: Path) -> None:
    trainer = build(tmp_path, "selective", epochs=4, batch_size=2, learning_rate=1e-2, retain_weight=0.4)
    trainer.train()
    found = entries(trainer)
    losses = [entry["retain_loss"] for entry in found]
    average = sum(losses[:2]) / 2  # of the first epoch
    expected = [0.4, 0.4, *(selective(0.4, [average, loss], {}) for loss in losses[2:])]
    assert [entry["retain_weight"] for entry in found] == pytest.approx(expected)
    assert max(expected) > 1.2, "the example is to lose retain rows"
    used = [0.4, *expected[:-1]]
    for entry, weight in zip(found, used, strict=True):
        assert entry["loss"] == pytest.approx(0.7 * entry["forget_loss"] + weight * entry["retain_loss"], rel=1e-5)
