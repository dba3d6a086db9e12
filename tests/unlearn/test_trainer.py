"""What holds for training with every method: log, arithmetic, frozen weights, the reference, the order of rows."""

import math
from functools import partialmethod

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from transformers import TrainingArguments

from lume_unlearn.data import schedule
from lume_unlearn.data.examples import Examples
from lume_unlearn.methods.registry import method_of
from lume_unlearn.training.arguments import UnlearningArguments, filled_in
from tests.conftest import make_model
from tests.unlearn.formulas import FORMULAS, selective
from tests.unlearn.rows import make_rows
from tests.unlearn.training import RATE, RETAIN_WEIGHT, build, entries, weights


def test_logged_terms_are_means_over_the_steps_since_the_last_entry(tmp_path):
    logs = []
    for every in (1, 2):
        trainer = build(tmp_path, "kl", "lora", logging_steps=every, max_tokens=30, num_train_epochs=4)
        trainer.train()
        logs.append(entries(trainer))
    each, every_other = logs
    assert [entry["step"] for entry in every_other] == [1, 2, 4]  # Trainer logs the first step as well
    for name in ("loss", "forget_loss", "retain_loss"):
        value = [entry[name] for entry in each]
        expected = [value[0], value[1], (value[2] + value[3]) / 2]
        assert [entry[name] for entry in every_other] == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(("schedule", "last"), [("constant", 1.0), ("linear", 0.5), ("cosine", 0.5)])
def test_warmup_starts_above_zero(schedule, last, tmp_path):
    options = {"warmup_steps": 0.5, "lr_scheduler_type": schedule}
    trainer = build(tmp_path, "gd", num_train_epochs=4, **options)
    before = weights(trainer.model)
    trainer.train()
    assert [entry["learning_rate"] / RATE for entry in entries(trainer)] == pytest.approx([1 / 3, 2 / 3, 1.0, last])
    one_step = build(tmp_path, "gd", num_train_epochs=1, **options)
    one_step.train()
    assert any(not value.equal(before[name]) for name, value in weights(one_step.model).items())


def test_bfloat16_arithmetic_is_near_the_exact_one(tmp_path):
    logs = []
    for bf16, expected in ((False, torch.float32), (True, torch.bfloat16)):
        trainer, seen = build(tmp_path, "npo", "full", torch.float32, bf16=bf16, num_train_epochs=1), set()
        projection = trainer.model.model.layers[0].self_attn.q_proj
        projection.register_forward_hook(lambda *call, seen=seen: seen.add(call[-1].dtype))
        trainer.run_reference()
        trainer.train()
        assert seen == {expected}  # the reference is scored in the same arithmetic
        logs.append(entries(trainer)[0])
    assert logs[1]["retain_loss"] == pytest.approx(logs[0]["retain_loss"], rel=0.02)
    assert logs[1]["retain_loss"] != pytest.approx(logs[0]["retain_loss"], rel=1e-6)
    # NPO is (2 / beta) ln 2 at the start, up to rounding: reference and training have other rows in a forward pass.
    assert logs[1]["forget_loss"] == pytest.approx(2 / FORMULAS["npo"].params["beta"] * math.log(2), rel=0.01)


def test_each_epoch_has_other_pairs(tmp_path, monkeypatch):
    drawn = []
    item = Examples.__getitem__
    monkeypatch.setattr(Examples, "__getitem__", lambda rows, step: drawn.append(step.pairs) or item(rows, step))
    rows = {"forget": make_rows(7, [(5 + i, 2) for i in range(6)])}
    build(tmp_path, "gd", "lora", rows=rows, seed=3, num_train_epochs=2.5, per_device_train_batch_size=3).train()
    epochs = [schedule.paired(6, 4, 3, 3, epoch) for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert drawn[:5] == [*epochs[0], *epochs[1], epochs[2][0]]


def test_rows_of_a_step_are_batch_size_times_accumulation_steps(tmp_path):
    results = []
    for rows, times in ((2, 1), (1, 2)):
        options = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": times}
        trainer = build(tmp_path, "npo", "lora", num_train_epochs=2, **options)
        trainer.train()
        results.append((entries(trainer), weights(trainer.model)))
        assert trainer.record.content["arguments"].get("gradient_accumulation_steps", 1) == times
    (log, expected), (other, found) = results
    assert len(log) == 4  # four forget rows, two a step, two epochs
    assert log == other
    assert all(weight.equal(found[name]) for name, weight in expected.items())


def test_an_adapter_learns_in_all_layers_under_gradient_checkpointing(tmp_path):
    trainer = build(tmp_path, "npo", "lora", gradient_checkpointing=True, num_train_epochs=1)
    seen = []
    trainer.model.get_base_model().model.layers[0].input_layernorm.register_forward_hook(
        lambda *args: seen.append(args[2])
    )
    trainer.train()
    assert len(seen) > 1  # computed again in the backward pass
    moved = {name: bool(weight.any()) for name, weight in trainer.model.named_parameters() if "lora_B" in name}
    assert len(moved) == 14  # two layers of seven linear modules
    assert all(moved.values()), moved


def test_a_process_uses_one_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda args: 4))
    args = UnlearningArguments(output_dir=str(tmp_path))
    assert filled_in(args, method_of("ga"), make_model())._n_gpu == 1


def test_compiled_layers_train_the_same_and_are_compiled_once(tmp_path, monkeypatch):
    """Also with micro-batches of different sizes. Graphs are counted and run without kernels, which is quicker."""
    counter = CompileCounter()
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=counter))
    options = {"num_train_epochs": 1, "max_tokens": 60}
    plain, compiled = (build(tmp_path / str(on), "kl", torch_compile=on, **options) for on in (False, True))
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


TWO_STEPS = {"num_train_epochs": 4, "per_device_train_batch_size": 2}


def test_pdu_logs_its_dual_variable(tmp_path):
    params = {"epsilon": 0.55, "dual_step": 3.0, "dual_warmup": 2.0}
    trainer = build(tmp_path, "pdu", learning_rate=3e-3, params=params, **TWO_STEPS)
    trainer.train()
    found = entries(trainer)
    expected, weight = [], RETAIN_WEIGHT
    for step, entry in enumerate(found, start=1):  # two steps an epoch
        if step / 2 > 2:
            weight = max(0.0, weight + 3.0 * (entry["retain_loss"] - 0.55))
        expected.append(weight)
    assert [entry["retain_weight"] for entry in found] == pytest.approx(expected, rel=1e-6)
    assert expected[3] == RETAIN_WEIGHT != expected[4]  # two whole epochs without


def test_selective_raises_the_retain_weight_with_the_retain_loss(tmp_path):
    trainer = build(tmp_path, "selective", learning_rate=1e-2, retain_weight=0.4, **TWO_STEPS)
    trainer.train()
    found = entries(trainer)
    losses = [entry["retain_loss"] for entry in found]
    average = sum(losses[:2]) / 2  # of the first epoch
    expected = [0.4, 0.4, *(selective(0.4, [average, loss], {}) for loss in losses[2:])]
    assert [entry["retain_weight"] for entry in found] == pytest.approx(expected)
    assert max(expected) > 1.2, "the example is to lose retain rows"
