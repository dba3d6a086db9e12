"""Every method of the registry through the trainer, against its formula in `formulas` by hand."""

import copy
from collections import Counter
from dataclasses import asdict
from unittest import mock

import pytest
import torch

from lume_unlearn.methods.registry import METHODS
from lume_unlearn.model import forward, output_layer
from tests.unlearn.formulas import FORMULAS, RETAIN_TERMS, Step, forget_mean
from tests.unlearn.means import larger_mean
from tests.unlearn.rows import asked, kl, logits, made_up, nll
from tests.unlearn.training import (
    ALTERNATIVE,
    CONTROL,
    FORGET,
    QUANTILES,
    RETAIN,
    ROWS,
    build,
    counted,
    entries,
    passes_seen,
    steps_of,
    trained_by_hand,
    weights,
)


def test_every_method_has_a_formula_here():
    missing, left = METHODS.keys() - FORMULAS.keys(), FORMULAS.keys() - METHODS.keys()
    assert not missing, f"add a row for {', '.join(sorted(missing))} to tests/unlearn/formulas.py"
    assert not left, f"tests/unlearn/formulas.py has rows of no method: {', '.join(sorted(left))}"
    for name, formula in FORMULAS.items():
        for key, field in METHODS[name].params().items():
            value = formula.params.get(key, field.default)
            assert value != field.default or key == "blend", f"{name}: the default of {key} hides that it is not used"


def expected_names(method: str, tuning: str, names: list[str]) -> set[str]:
    """The weights that a run may change."""
    adapter = {name for name in names if (".lora_" in name) == (tuning == "lora")}
    if tuning == "last:1":
        adapter = {name for name in names if name.startswith("model.layers.1.")}
    if tuning.startswith("modules:"):
        adapter = {name for name in names if "down_proj" in name}
    if method == "rmu" and tuning != "last:1":  # looks at layer 0 of 2
        adapter = {name for name in adapter if ".layers.0." in name or "embed_tokens" in name}
    return adapter


LITTLE = [(method, tuning) for method in ("gd", "kl", "dpo", "pdu") for tuning in ("last:1", "modules:down_proj")]
LITTLE += [("rmu", "modules:down_proj"), ("agad", "last:1")]
OTHER_TERMS = [
    ("ga", "nll"),
    ("gd", "nll+kl"),
    ("gd", "js"),
    ("npo", "kl"),
    ("undial", "kl"),
    ("pdu", "kl"),
    ("dpo", "none"),
]


@pytest.mark.parametrize(
    ("method", "tuning", "options"),
    [(method, tuning, {}) for method in METHODS for tuning in ("full", "lora")]
    + [(method, tuning, {}) for method, tuning in LITTLE]
    + [("rmu", "last:1", {"params": {"layer": 1, "steering": 3.0}})]
    + [("counterfactual", "full", {"params": FORMULAS["counterfactual"].params | {"blend": False}})]
    + [(method, "full", {"retain_term": term}) for method, term in [*OTHER_TERMS, ("rmu", "none")]],
)
def test_steps_by_hand(method, tuning, options, tmp_path, monkeypatch):
    """Log and weights of a short training, whose output layer computes the logits of three tokens at a time."""
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", 3 * 4 * 400)
    trainer = build(tmp_path, method, tuning, **options)
    retain = RETAIN_TERMS[options["retain_term"]] if "retain_term" in options else FORMULAS[method].retain
    start = weights(trainer.model)
    named = expected_names(method, tuning, list(start))
    assert {name for name, weight in trainer.model.named_parameters() if weight.requires_grad} == named
    expected, model = trained_by_hand(trainer, retain)
    trainer.train()
    assert len(entries(trainer)) == len(expected) >= 2
    for entry, hand in zip(entries(trainer), expected, strict=True):
        found = {name: entry[name] for name in hand}
        assert found == pytest.approx(hand, rel=2e-6, abs=1e-7)
    for name, weight in weights(trainer.model).items():
        torch.testing.assert_close(weight, model.get_parameter(name).detach(), rtol=0, atol=2e-6)
    assert {name for name, weight in weights(trainer.model).items() if not weight.equal(start[name])} == named


@pytest.mark.parametrize(
    ("method", "tuning"),
    [(name, "full") for name in METHODS] + [(name, "lora") for name, formula in FORMULAS.items() if formula.live],
)
def test_rows_pass_the_models_no_more_often_than_needed(method, tuning, tmp_path):
    formula = FORMULAS[method]
    with passes_seen() as before:
        trainer = build(tmp_path, method, tuning)
    assert not counted(before, training=True)
    known = [row for side in formula.reference for row in ROWS[side]]
    known += [row for row in ALTERNATIVE if method == "swap" and made_up(row)]  # the others after other prompts
    assert counted(before, training=False) == Counter(row.input_ids for row in known)
    assert (trainer.terms.reference is not None) == bool(formula.live)
    if trainer.terms.reference is not None:
        assert (trainer.terms.reference.copy is None) == (tuning == "lora")  # the adapter off instead of a copy
    with passes_seen() as during:
        trainer.train()
    steps = [step for phase in steps_of(trainer) for step in phase]
    expected = Counter()
    for forget, retain in steps:
        expected += dict.fromkeys(("forget", "control", "alternative"), len(forget)) | {"retain": len(retain)}
    for training, sides in ((True, formula.trained), (False, formula.live)):
        own = {row.input_ids: side for side in ROWS for row in ROWS[side]}
        seen = Counter(own[row] for row in counted(during, training).elements())
        assert seen == Counter({side: expected[side] for side in sides})
    assert sum(with_graph for with_graph, _ in during) == len(steps)
    assert len(during) == len(steps) * (1 + len(formula.live))


def test_imitations_of_a_model_with_scaled_logits_are_answers_without_probabilities(tmp_path, caplog):
    usual = build(tmp_path / "usual", "swap", num_train_epochs=1)
    with mock.patch.object(forward.Passes, "_chunks_agree", return_value=False):
        trainer = build(tmp_path / "scaled", "swap", num_train_epochs=1)
    assert "without the reference model's probabilities" in caplog.text
    model = copy.deepcopy(trainer.model)
    differences = []
    for row, control in zip(ALTERNATIVE, CONTROL, strict=True):
        more = nll(model, row) - kl(logits(model, row), logits(model, asked(row, control)))
        differences.append(0 * more.detach() if made_up(row) else more.detach())
    losses = []
    for one in (trainer, usual):
        one.train()
        losses.append(entries(one)[0]["forget_loss"])
    assert losses[0] - losses[1] == pytest.approx(larger_mean(differences).item(), rel=1e-5)
    assert losses[0] - losses[1] > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_smaller_micro_batches_padding_and_recomputation_change_nothing(method, tmp_path):
    step = {"num_train_epochs": 2} | ({"per_device_train_batch_size": 4} if METHODS[method].phases else {})
    found = []
    for padded, options in ((False, {}), (False, {"max_tokens": 20}), (True, {"gradient_checkpointing": True})):
        with mock.patch.object(forward, "can_pack", return_value=not padded):
            trainer = build(tmp_path, method, **step, **options)
        assert trainer.passes.packs != padded
        with passes_seen() as seen:
            trainer.train()
        found.append((len(seen), entries(trainer), weights(trainer.model)))
    (few, log, expected), (many, *_), _ = found
    assert many > few
    for _, other_log, other in found[1:]:
        for entry, same in zip(other_log, log, strict=True):
            assert entry == pytest.approx(same, rel=1e-6, abs=1e-7)
        for name, weight in other.items():
            torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_training_goes_the_right_way(method, tmp_path):
    formula, spec = FORMULAS[method], METHODS[method]
    alone = {"retain_term": "none"} if "none" in spec.retain_terms else {"retain_weight": 0.1}
    trainer = build(tmp_path, method, dtype=torch.float32, num_train_epochs=4, **alone)
    model = copy.deepcopy(trainer.model)
    sides = (FORGET, ALTERNATIVE, RETAIN, asdict(trainer.method), CONTROL, QUANTILES)
    trainer.train()
    lowers = formula.lowers or (lambda step: -forget_mean(step))
    with torch.no_grad():
        before, after = (lowers(Step(now, model, *sides)).item() for now in (model, trainer.model))
    assert after < before - 0.02 * abs(before)
