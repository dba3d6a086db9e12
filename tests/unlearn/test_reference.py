"""The reference model: NLLs computed once, an adapter turned off, a frozen copy."""

from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, get_peft_model

from lume_unlearn.data.packs import pack_rows
from lume_unlearn.model import reference
from lume_unlearn.model.forward import Passes, labelled_logits, use_packing
from lume_unlearn.model.load import trainable
from lume_unlearn.model.reference import Reference, token_nlls
from tests.conftest import make_model
from tests.unlearn.rows import half_labelled, nll

CPU = torch.device("cpu")

ROWS = half_labelled((3, 21, 2, 9, 30))
BATCH = pack_rows({"forget": ROWS})


def make(tuning: str, **options: Any) -> Any:
    """A model at the start of a run."""
    model = make_model(**options)
    use_packing(model)
    if tuning != "lora":
        trainable(model, tuning)
        return model
    targets = ["q_proj", "down_proj", "lm_head"]
    config = LoraConfig(r=3, target_modules=targets, lora_dropout=0.5, init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def train(model: Any) -> None:
    """Change every trained weight."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.3)


@pytest.mark.parametrize("tuning", ["full", "lora", "last:1"])
def test_reference_logits_are_those_before_training_without_dropout(tuning):
    model, plain = make(tuning, attention_dropout=0.4), make_model()
    expected = labelled_logits(plain, plain.config, BATCH)
    frozen = Reference(model, Passes(model))
    assert (frozen.copy is None) == (tuning == "lora")
    if frozen.copy is not None:  # it shares the weights that are not trained
        for name, weight in model.named_parameters():
            assert (frozen.copy.get_parameter(name) is weight) == (not weight.requires_grad), name
    train(model)
    model.train()
    at = frozen.at(model, BATCH)
    assert model.training
    for part in (slice(None), slice(3, 11)):
        torch.testing.assert_close(at(part), expected[part], rtol=1e-4, atol=1e-4)
        assert not at(part).requires_grad
    now = labelled_logits(model.eval(), model.config, BATCH)
    assert (now - expected).abs().max() > 0.5  # training did change it, and the adapter is on again


def test_an_offloaded_copy_gives_the_same_logits(monkeypatch):
    """With a GPU the copy has no weights on it between forward passes, not even those of its output layer."""
    model = make("last:1")
    expected = labelled_logits(model, model.config, BATCH)
    monkeypatch.setattr(reference, "_convert", lambda copied, kind: cpu_offload(copied, execution_device=CPU))
    offloaded = Reference(model, Passes(model), "cpu")
    assert all(weight.is_meta for weight in offloaded.copy.parameters())
    train(model)
    found = offloaded.at(model, BATCH)
    for part in (slice(None), slice(3, 11)):
        torch.testing.assert_close(found(part), expected[part], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("tuning", "max_tokens"), [("full", 1), ("lora", 60), ("full", 10_000)])
def test_nlls_are_those_of_each_row_alone_without_dropout(tuning, max_tokens):
    model = make(tuning, attention_dropout=0.3).eval()
    expected = {row: nll(model, row) for row in ROWS}
    model.train()
    found = token_nlls(model, Passes(model), [*ROWS, *ROWS[:2]], max_tokens)
    assert model.training
    assert found.keys() == expected.keys()
    for row, values in found.items():
        torch.testing.assert_close(values, expected[row].detach(), rtol=1e-4, atol=1e-5)
        assert (values.dtype, values.requires_grad, values.shape) == (torch.float32, False, (row.scored,))
