"""Training against the formulas by hand, and what must not change it: micro batches, logging, the reference."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid
from transformers import LlamaForCausalLM, TrainingArguments

from lume_unlearn import modeling
from lume_unlearn.config import ConfigError, RunConfig
from lume_unlearn.data import PairDataset, Tokens, epoch_pairs, pack_rows
from lume_unlearn.forward import Reference
from lume_unlearn.losses import IGNORED
from lume_unlearn.methods import METHODS
from lume_unlearn.record import Record
from lume_unlearn.trainer import UnlearningTrainer
from lume_unlearn.unlearning import make_trainer, training_arguments

TUNINGS = ("full", "lora")
RATE = 1e-3


def make_rows(seed: int, count: int = 4) -> list[Tokens]:
    """Rows of different lengths whose last few tokens are labelled."""
    torch.manual_seed(seed)
    rows = []
    for i in range(count):
        ids = torch.randint(2, 400, (4 + 5 * i,)).tolist()
        rows.append(Tokens(ids, [IGNORED] * (2 + 2 * i) + ids[2 + 2 * i :]))
    return rows


FORGET, RETAIN = make_rows(1), make_rows(2)


pytestmark = pytest.mark.usefixtures("little_to_collect")


@pytest.fixture
def build(model_dir: Path, tokenizer: Any, tmp_path: Path) -> Any:
    """(options) to a trainer of two optimiser steps, each over all four pairs, at constant order of magnitude."""

    def _build(rows: int = 4, **options: Any) -> UnlearningTrainer:
        plain = {"epochs": 2, "batch_size": 4, "micro_batch_size": 4, "learning_rate": RATE, "warmup": 0.0}
        plain |= {"weight_decay": 0.0, "lora_dropout": 0.0, "lora_rank": 4}
        config = RunConfig(**({"model": str(model_dir), "output": str(tmp_path)} | plain | options))  # type: ignore[arg-type]
        retain = make_rows(2, rows) if config.needs_retain else []
        torch.manual_seed(0)
        model = modeling.load_for_training(config)
        return make_trainer(config, model, tokenizer, PairDataset(make_rows(1, rows), retain), Record(config, {}))

    return _build


def steps_of(trainer: UnlearningTrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def weights_of(trainer: UnlearningTrainer) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def logits_by_hand(model: Any, row: Tokens) -> tuple[Tensor, Tensor]:
    """Logits at the positions that predict labelled tokens, and those tokens."""
    labels = torch.tensor(row.labels[1:])
    logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1][labels != IGNORED]
    return logits, labels[labels != IGNORED]


def nll_by_hand(model: Any, rows: list[Tokens]) -> list[Tensor]:
    found = []
    for row in rows:
        logits, targets = logits_by_hand(model, row)
        found.append(-log_softmax(logits, -1)[range(len(targets)), targets])
    return found


def terms_by_hand(method: str, model: Any, reference: Any, beta: float = 0.1) -> dict[str, Tensor]:
    """The method's formulas over all rows at once, in plain PyTorch."""
    forget = nll_by_hand(model, FORGET)
    terms = {"forget": -torch.cat(forget).sum() / sum(len(row) for row in forget)}
    if method == "npo":
        with torch.no_grad():
            before = nll_by_hand(reference, FORGET)
        sums = [now.sum() - then.sum() for now, then in zip(forget, before, strict=True)]
        terms["forget"] = -2 / beta * torch.stack([logsigmoid(beta * delta) for delta in sums]).mean()
    if method in ("gd", "npo"):
        terms["retain"] = torch.cat(nll_by_hand(model, RETAIN)).mean()
    if method == "kl":
        rows = []
        for row in RETAIN:
            logp = log_softmax(logits_by_hand(model, row)[0], -1)
            with torch.no_grad():
                before_logp = log_softmax(logits_by_hand(reference, row)[0], -1)
            rows.append((before_logp.exp() * (before_logp - logp)).sum(-1))
        terms["retain"] = torch.cat(rows).mean()
    return terms


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("method", METHODS)
def test_two_steps_by_hand(method: str, tuning: str, build: Any) -> None:
    trainer = build(method=method, tuning=tuning, forget_weight=0.7, retain_weight=1.3)
    model, reference = copy.deepcopy(trainer.model), copy.deepcopy(trainer.model)
    trainer.train()

    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    for step, entry in enumerate(steps_of(trainer)):
        terms = terms_by_hand(method, model, reference)
        loss = 0.7 * terms["forget"] + 1.3 * terms.get("retain", torch.tensor(0.0))
        assert entry["loss"] == pytest.approx(loss.item(), rel=1e-5)
        for name, term in terms.items():
            assert entry[f"{name}_loss"] == pytest.approx(term.item(), rel=1e-5, abs=1e-6)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        assert entry["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / 2)  # linear decay over two steps
        optimizer.step()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weights_of(trainer)[name], weight.detach(), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("method", METHODS)
def test_micro_batches_change_nothing(method: str, tuning: str, build: Any) -> None:
    runs = []
    for micro in (4, 2, 1):
        trainer = build(method=method, tuning=tuning, micro_batch_size=micro)
        trainer.train()
        runs.append((weights_of(trainer), steps_of(trainer)))
    for weights, steps in runs[1:]:
        for name, expected in runs[0][0].items():
            torch.testing.assert_close(weights[name], expected, rtol=1e-6, atol=2e-6)
        for entry, whole in zip(steps, runs[0][1], strict=True):
            assert entry == pytest.approx(whole, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("batch", "micro", "passes"), [(32, 8, 4), (32, 32, 1), (32, 100, 1), (7, 4, 2), (32, 5, 7)])
def test_accumulation_makes_up_the_batch(batch: int, micro: int, passes: int, tmp_path: Path) -> None:
    config = RunConfig(model="m", output=str(tmp_path), method="ga", batch_size=batch, micro_batch_size=micro)
    assert training_arguments(config).gradient_accumulation_steps == passes


def test_a_process_uses_one_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda args: 4))
    assert training_arguments(RunConfig(model="m", output=str(tmp_path), method="ga"))._n_gpu == 1


@contextmanager
def forward_passes() -> Iterator[list[bool]]:
    """Whether each pass of a whole model within the block kept a graph to train on."""
    passes: list[bool] = []

    def count(module: Any, inputs: Any, output: Any) -> None:
        if isinstance(module, LlamaForCausalLM):
            passes.append(torch.is_grad_enabled())

    handle = torch.nn.modules.module.register_module_forward_hook(count)
    try:
        yield passes
    finally:
        handle.remove()


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("method", METHODS)
def test_the_reference_is_asked_no_more_than_needed(method: str, tuning: str, build: Any) -> None:
    with forward_passes() as before:
        trainer = build(method=method, tuning=tuning, micro_batch_size=2)
    sums = 2 if METHODS[method].reference_sums else 0
    assert before.count(False) == 3 + sums  # packing is tried out with three passes; then once for each micro batch
    with forward_passes() as during:
        trainer.train()
    assert during.count(True) == 4  # two steps of two micro batches
    assert during.count(False) == (4 if method == "kl" else 0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("tuning", TUNINGS)
def test_kl_is_zero_at_first_and_its_reference_stays(tuning: str, precision: str, build: Any) -> None:
    trainer = build(method="kl", tuning=tuning, precision=precision, lora_dropout=0.5)
    original = copy.deepcopy(trainer.model)
    trainer.train()
    first, second = (entry["retain_loss"] for entry in steps_of(trainer))
    assert first == pytest.approx(0.0, abs=1e-6)
    assert second > 1e-4
    batch = pack_rows([], RETAIN)
    trainer.model.train()
    with trainer.accelerator.autocast():
        found = trainer.reference.labelled_tokens(trainer.model, trainer.model, batch).logits
        expected = Reference(original).labelled_tokens(original, original, batch).logits
    assert found.equal(expected)
    assert trainer.model.training
    if tuning == "lora":
        assert all(weight.requires_grad for name, weight in trainer.model.named_parameters() if "lora_" in name)


@pytest.mark.parametrize("tuning", TUNINGS)
def test_the_reference_has_no_dropout(tuning: str, build: Any) -> None:
    trainer = build(method="kl", tuning=tuning, lora_dropout=0.5)
    for module in trainer.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    reference = Reference(trainer.model)
    trainer.model.train()
    batch = pack_rows([], RETAIN)
    found = [reference.labelled_tokens(trainer.model, trainer.model, batch).logits for _ in range(2)]
    assert found[0].equal(found[1])
    torch.testing.assert_close(found[0], torch.cat([logits_by_hand(trainer.model.eval(), row)[0] for row in RETAIN]))


@pytest.mark.parametrize("method", METHODS)
def test_lora_trains_the_adapter_alone(method: str, build: Any) -> None:
    trainer = build(method=method, tuning="lora")
    before = weights_of(trainer)
    trainer.train()
    changed = {name for name, weight in weights_of(trainer).items() if not weight.equal(before[name])}
    assert changed == {name for name in before if "lora_" in name}
    # Attention and MLP of both layers, but not the output layer.
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in changed} == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }


@pytest.mark.parametrize("method", METHODS)
def test_full_tuning_trains_every_weight(method: str, build: Any) -> None:
    trainer = build(method=method, tuning="full")
    before = weights_of(trainer)
    trainer.train()
    assert all(not weight.equal(before[name]) for name, weight in weights_of(trainer).items())


def test_trained_weights_are_float32_in_bfloat16_arithmetic_too(build: Any) -> None:
    full = build(method="gd", tuning="full", precision="bfloat16", learning_rate=1e-5)
    before = weights_of(full)
    full.train()
    assert {weight.dtype for weight in full.model.parameters()} == {torch.float32}
    # A step of 1e-5 is kept: in bfloat16, weights of about 0.2 could not take it.
    moved = torch.cat([(weight - before[name]).abs().flatten() for name, weight in weights_of(full).items()])
    assert moved.max() < 3e-5
    assert (moved > 0).float().mean() > 0.5
    lora = build(method="gd", tuning="lora", precision="bfloat16")
    kinds = {("lora_" in name, weight.dtype) for name, weight in lora.model.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}


@pytest.mark.parametrize("method", ["npo", "kl"])
def test_logged_terms_are_means_over_the_steps_since_the_last_entry(method: str, build: Any) -> None:
    logs = []
    for every in (1, 2):
        trainer = build(method=method, tuning="lora", logging_steps=every, micro_batch_size=3, epochs=5)
        trainer.train()
        logs.append(steps_of(trainer))
    each, every_other = logs
    assert [entry["step"] for entry in every_other] == [1, 2, 4]  # Trainer logs the first step as well
    for name in ("loss", "forget_loss", "retain_loss"):
        value = [entry[name] for entry in each]
        expected = [value[0], value[1], (value[2] + value[3]) / 2]
        assert [entry[name] for entry in every_other] == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_each_epoch_has_pairs_of_its_own(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, int]] = []
    draw = PairDataset.__getitem__
    monkeypatch.setattr(PairDataset, "__getitem__", lambda data, key: drawn.append(key) or draw(data, key))
    build(method="gd", tuning="lora", rows=6, seed=3, epochs=2.5, batch_size=3).train()
    assert drawn[:12] == [*epoch_pairs(6, 6, 3, 0), *epoch_pairs(6, 6, 3, 1)]
    assert drawn[12:] == epoch_pairs(6, 6, 3, 2)[:3]


def test_an_epochs_last_step_is_divided_by_its_own_counts(build: Any) -> None:
    trainer = build(method="gd", tuning="full", rows=5, epochs=1, learning_rate=1e-12)
    trainer.train()
    rest = steps_of(trainer)[1]["forget_loss"]  # of one row alone
    means = [-row.mean().item() for row in nll_by_hand(trainer.model, make_rows(1, 5))]
    assert min(abs(rest - mean) for mean in means) < 1e-5


def test_divergence_is_an_error_that_names_the_learning_rate(build: Any) -> None:
    trainer = build(method="ga", tuning="full", learning_rate=1e30, epochs=4)
    with pytest.raises(ConfigError, match=r"--learning_rate 1e\+30: training diverged .* at step 2"):
        trainer.train()
