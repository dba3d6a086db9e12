"""What holds for training with every method: log, arithmetic, frozen weights, the reference, the order of rows."""

import math
import re
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from transformers import TrainingArguments

from lume_unlearn.config import RunConfig
from lume_unlearn.data import schedule
from lume_unlearn.data.dataset import Sides
from lume_unlearn.data.packs import pack_rows
from lume_unlearn.model.forward import Passes, Span, compile_layers, use_packing
from lume_unlearn.model.output_layer import nll_value
from lume_unlearn.training.arguments import training_arguments
from tests.conftest import make_model
from tests.unlearn.formulas import FORMULAS
from tests.unlearn.tokens import half_labelled
from tests.unlearn.training import ALTERNATIVE, FORGET, RATE, build, entries, make_rows, weights

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


@pytest.mark.parametrize(("tuning", "precision"), [("full", "bfloat16"), ("lora", "bfloat16"), ("last:1", "float32")])
def test_the_kl_term_starts_at_0(tuning: str, precision: str, tmp_path: Path) -> None:
    trainer = build(tmp_path, "kl", tuning, torch.float32, precision=precision)
    trainer.train()
    first, second, _ = (entry["retain_loss"] for entry in entries(trainer))
    assert first == pytest.approx(0.0, abs=1e-6)
    assert second > 1e-5


@pytest.mark.parametrize(
    ("method", "tuning", "pattern"),
    [
        ("gd", "last:1", r"model\.layers\.1\."),
        ("ngdiff", "last:2", r"model\.layers\."),
        ("sugd", "modules:mlp|norm", "mlp|norm"),
        ("selective", "lora", r"\.lora_"),
    ],
)
def test_only_the_named_weights_are_trained(method: str, tuning: str, pattern: str, tmp_path: Path) -> None:
    trainer = build(tmp_path, method, tuning, weight_decay=0.1)
    before = weights(trainer.model)
    named = {name for name in before if re.search(pattern, name)}
    trainer.train()
    assert {name for name, weight in weights(trainer.model).items() if not weight.equal(before[name])} == named
    held = [weight for group in trainer.optimizer.param_groups for weight in group["params"]]
    assert {id(weight) for weight in held} == {id(trainer.model.get_parameter(name)) for name in named}


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


def test_several_alternatives_of_one_row_each_count(tmp_path: Path) -> None:
    """A row that is there twice, with one alternative each, is scored once and trained twice."""
    rows = {"forget": [FORGET[0], FORGET[0]], "alternative": [ALTERNATIVE[0], ALTERNATIVE[1]]}
    trainer = build(tmp_path, "dpo", rows=rows, epochs=1, batch_size=2)
    assert len(trainer.sides.reference) == 3
    item = next(iter(trainer.get_train_dataloader()))
    assert item["packs"][0].row_counts == (2, 2, 2)
    assert item["sizes"].forget == [5, 5]


def test_each_epoch_has_other_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[schedule.Pair]] = []
    item = Sides.__getitem__
    monkeypatch.setattr(Sides, "__getitem__", lambda sides, step: drawn.append(step.pairs) or item(sides, step))
    rows = {"forget": make_rows(7, [(5 + i, 2) for i in range(6)])}
    build(tmp_path, "gd", "lora", rows=rows, seed=3, epochs=2.5, batch_size=3).train()
    epochs = [schedule.paired(6, 4, 3, 3, epoch) for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert drawn[:5] == [*epochs[0], *epochs[1], epochs[2][0]]


def test_an_empty_micro_batch_gives_no_loss_and_no_gradient(tmp_path: Path) -> None:
    """A process with fewer micro-batches than another adds empty ones."""
    for method in ("gd", "npo", "dpo", "idk", "kl", "token-npo", "rmu", "undial", "ceu", "pdu", "simnpo", "satimp"):
        trainer = build(tmp_path, method)
        sizes = next(iter(trainer.get_train_dataloader()))["sizes"]
        terms = trainer.terms(trainer.model, trainer.sides.pack([]), sizes)
        sum(terms.values(), torch.zeros(())).backward()
        assert [term.item() for term in terms.values()] == [0.0] * len(terms), method
        found = [weight.grad for weight in trainer.model.parameters() if weight.grad is not None]
        assert found, method
        assert not any(gradient.any() for gradient in found), method


def test_terms_of_several_processes_add_up_to_those_of_one(tmp_path: Path) -> None:
    for method in ("gd", "npo", "simnpo", "ceu", "rmu", "dpo", "sugd"):
        trainer = build(tmp_path, method)
        keys = [schedule.Pair((f,), (f,)) for f in range(4)]
        whole, *shares = [trainer.sides[schedule.Step([part], keys)] for part in (keys, keys[:1], keys[1:])]
        expected = trainer.terms(trainer.model, whole["packs"][0], whole["sizes"])
        for name, value in expected.items():
            parts = [trainer.terms(trainer.model, s["packs"][0], s["sizes"])[name].item() for s in shares]
            assert sum(parts) == pytest.approx(value.item(), rel=1e-6), (method, name)


def test_a_process_uses_one_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda args: 4))
    assert training_arguments(RunConfig(model="m", output=str(tmp_path), method="ga"))._n_gpu == 1


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounter]:
    """Count compiled graphs and run them without kernels, which is quicker."""
    torch.compiler.reset()
    counter = CompileCounter()
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=counter))
    yield counter
    torch.compiler.reset()


def test_compiled_layers_train_the_same(tmp_path: Path, counter: CompileCounter) -> None:
    plain, compiled = (build(tmp_path / str(on), "kl", compile=on, epochs=2) for on in (False, True))
    plain.train()
    compiled.train()
    for found, expected in zip(entries(compiled), entries(plain), strict=True):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-8)
    for name, weight in weights(compiled.model).items():  # of the same names too
        torch.testing.assert_close(weight, weights(plain.model)[name], rtol=0, atol=1e-5)
    assert counter.frame_count > 0


def test_packs_of_other_sizes_are_not_compiled_again(counter: CompileCounter) -> None:
    model = make_model()
    use_packing(model)
    passes = Passes(model)
    compile_layers(model)
    counts = []
    for seed, lengths in enumerate([(3, 21, 9), (30, 4), (7, 5, 6, 8, 40), (12, 11, 10)]):
        batch = pack_rows({"forget": half_labelled(400, lengths, seed)})
        (nll,) = passes.values(model, batch, [Span(slice(0, len(batch.targets)), nll_value)])
        nll.sum().backward()  # type: ignore[no-untyped-call]
        counts.append(counter.frame_count)
    assert len(set(counts)) == 1
    assert counts[0] < 2 * len(model.model.layers) + 2  # the layers share what is compiled
