"""Every method of the registry through the trainer, against its formula in `formulas` by hand."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor

from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.registry import METHODS, method_of
from lume_unlearn.model import output_layer
from lume_unlearn.model.packing import IMPLEMENTATION
from tests.unlearn.formulas import FORMULAS, RETAIN_TERMS, Step, forget_mean
from tests.unlearn.rows import places
from tests.unlearn.training import (
    ALTERNATIVE,
    FORGET,
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

pytestmark = pytest.mark.usefixtures("little_to_collect")


def test_every_method_has_a_formula_here() -> None:
    missing, left = METHODS.keys() - FORMULAS.keys(), FORMULAS.keys() - METHODS.keys()
    assert not missing, f"add a row for {', '.join(sorted(missing))} to tests/unlearn/formulas.py"
    assert not left, f"tests/unlearn/formulas.py has rows of no method: {', '.join(sorted(left))}"


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
    + [(method, "full", {"retain_term": term}) for method, term in [*OTHER_TERMS, ("rmu", "none")]],
)
def test_steps_by_hand(method: str, tuning: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Log and weights of a short training."""
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


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_rows_pass_the_models_no_more_often_than_needed(method: str, tuning: str, tmp_path: Path) -> None:
    formula = FORMULAS[method]
    with passes_seen() as before:
        trainer = build(tmp_path, method, tuning)
    assert not counted(before, training=True)
    assert counted(before, training=False) == Counter(row.input_ids for side in formula.reference for row in ROWS[side])
    assert (trainer.terms.reference is not None) == bool(formula.live)
    if trainer.terms.reference is not None:
        assert (trainer.terms.reference.copy is None) == (tuning == "lora")  # the adapter off instead of a copy
    with passes_seen() as during:
        trainer.train()
    steps = [step for phase in steps_of(trainer) for step in phase]
    expected: Counter[str] = Counter()
    for forget, retain in steps:
        expected += {"forget": len(forget), "alternative": len(forget), "retain": len(retain)}
    for training, sides in ((True, formula.trained), (False, formula.live)):
        own = {row.input_ids: side for side in ROWS for row in ROWS[side]}
        seen = Counter(own[row] for row in counted(during, training).elements())
        assert seen == Counter({side: expected[side] for side in sides})
    assert sum(with_graph for with_graph, _ in during) == len(steps)
    assert len(during) == len(steps) * (1 + len(formula.live))


def shaken(trainer: Any) -> Any:
    """The trainer with its weights moved away from those before unlearning."""
    torch.manual_seed(4)
    with torch.no_grad():
        for weight in trainer.model.parameters():
            if weight.requires_grad:
                weight.add_(0.02 * torch.randn_like(weight))
    trainer.model.train()
    return trainer


def step_of(trainer: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Loss terms of one step over all rows, and the gradients of their weighted sum."""
    item = next(iter(trainer.get_train_dataloader()))
    trainer.model.zero_grad()
    found: Counter[str] = Counter()
    for batch in item["packs"]:
        terms = trainer.terms(trainer.model, batch, item["counts"], trainer.progress.values)
        sum(terms.values(), torch.zeros(())).backward()
        found.update({name: term.item() for name, term in terms.items()})
    return dict(found), {n: w.grad.clone() for n, w in trainer.model.named_parameters() if w.grad is not None}


def switch(trainer: Any, packs: bool, chunks: bool) -> None:
    """How the model and the one before unlearning are passed."""
    for passes in [trainer.passes, *([trainer.terms.reference.passes] if trainer.terms.reference else [])]:
        passes.packs, passes.chunks = packs, chunks
        passes.config._attn_implementation = IMPLEMENTATION if packs else "sdpa"


@pytest.mark.parametrize(
    ("method", "tuning"),
    [(name, "full") for name in METHODS]
    + [(name, "lora") for name in METHODS if name in FORMULAS and FORMULAS[name].live],
)
def test_packs_padding_and_chunks_give_the_same(
    method: str, tuning: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = shaken(build(tmp_path, method, tuning))
    terms, gradients = step_of(trainer)
    assert set(gradients) == expected_names(method, tuning, list(weights(trainer.model)))
    for packs, chunks, tokens in ((True, False, 1), (False, False, 1), (True, True, 3), (False, True, 1)):
        if METHODS[method].needs.hidden_states and not chunks:
            continue  # there are no logits to have whole
        switch(trainer, packs, chunks)
        monkeypatch.setattr(output_layer, "CHUNK_BYTES", tokens * 4 * 400)
        found, own = step_of(trainer)
        assert found == pytest.approx(terms, rel=1e-6, abs=1e-9), (packs, chunks, tokens)
        assert own.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(own[name], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"max_tokens": 20}, {"max_tokens": 45, "gradient_checkpointing": True}])
@pytest.mark.parametrize("method", METHODS)
def test_smaller_passes_and_recomputation_change_nothing(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    step = {"per_device_train_batch_size": 4} if METHODS[method].phases else {}  # a step of a chunk, not of a row
    trainers = [build(tmp_path, method, **step, **chosen) for chosen in ({}, options)]
    counts = []
    for trainer in trainers:
        with passes_seen() as seen:
            trainer.train()
        counts.append(len(seen))
    assert counts[1] > counts[0]
    for entry, expected in zip(*map(entries, trainers), strict=True):
        assert entry == pytest.approx(expected, rel=1e-6, abs=1e-7)
    for name, weight in weights(trainers[1].model).items():
        torch.testing.assert_close(weight, weights(trainers[0].model)[name], rtol=0, atol=1e-6)


@contextmanager
def noise(trainer: Any, labelled: bool) -> Iterator[None]:
    """Noise on the states that the losses are made from, at the labelled places or at all others."""
    rows = {row.input_ids: row for side in ROWS.values() for row in side}
    states, marks = trainer.method.needs.hidden_states, []

    def look(model: Any, args: Any, kwargs: Any) -> None:
        parts = [tuple(part.tolist()) for part in kwargs["input_ids"][0].split(list(kwargs["pack_lengths"].lengths))]
        carrying = [set((places(rows[ids]) - int(not states)).tolist()) for ids in parts]
        marks[:] = [
            (t in where) == labelled for ids, where in zip(parts, carrying, strict=True) for t in range(len(ids))
        ]

    def disturb(size: float) -> Callable[..., Tensor]:
        return lambda module, args, output: (
            output + size * torch.tensor(marks)[:, None] * (torch.arange(output.shape[-1]) % 3)
        )

    handles = []
    for size, model in enumerate(
        [trainer.model, *([trainer.terms.reference.copy] if trainer.terms.reference else [])], start=1
    ):
        handles.append(model.register_forward_pre_hook(look, with_kwargs=True))
        block = model.model.layers[0] if states else model.model.norm
        handles.append(block.register_forward_hook(disturb(size)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("method", METHODS)
def test_only_labelled_tokens_count(method: str, tmp_path: Path) -> None:
    trainer = shaken(build(tmp_path, method))
    terms, gradients = step_of(trainer)
    with noise(trainer, labelled=False):
        found, own = step_of(trainer)
    assert found == pytest.approx(terms, rel=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-9, atol=1e-12)
    with noise(trainer, labelled=True):
        found, _ = step_of(trainer)
    assert all(abs(found[name] - term) > 1e-3 for name, term in terms.items() if term)


@pytest.mark.parametrize("method", METHODS)
def test_training_goes_the_right_way(method: str, tmp_path: Path) -> None:
    formula, spec = FORMULAS[method], METHODS[method]
    alone = {"retain_term": "none"} if "none" in spec.retain_terms else {"retain_weight": 0.1}
    trainer = build(tmp_path, method, dtype=torch.float32, num_train_epochs=4, **alone)
    model = copy.deepcopy(trainer.model)
    sides = (FORGET, ALTERNATIVE, RETAIN, asdict(trainer.method))
    trainer.train()
    lowers = formula.lowers or (lambda step: -forget_mean(step))
    with torch.no_grad():
        before, after = (lowers(Step(now, model, *sides)).item() for now in (model, trainer.model))
    assert after < before - 0.02 * abs(before)


ELSEWHERE = {("task-vector", "scale")}  # no part of training: see test_merging
PARAMS = [(method, name) for method in METHODS for name in METHODS[method].params() if (method, name) not in ELSEWHERE]


def another(method: str, name: str, value: Any) -> Any:
    """Another value that the hyperparameter may have."""
    words = get_args(get_type_hints(METHODS[method])[name])
    for other in words or (value / 2, value + 1, value - 1, 0.0):
        with suppress(ConfigError):
            if other != value and getattr(method_of(method, **{name: other}), name) == other:
                return other
    raise AssertionError(f"{method}: no other value of {name}")


@pytest.mark.parametrize(("method", "name"), PARAMS)
def test_every_parameter_changes_the_result(method: str, name: str, tmp_path: Path) -> None:
    """Or the method would not use it. A value of the formula's row has to be one that matters on these rows."""
    params = FORMULAS[method].params
    value = params.get(name, METHODS[method].params()[name].default)
    results = []
    for number, chosen in enumerate((value, another(method, name, value))):
        trainer = build(tmp_path / str(number), method, params={**params, name: chosen})
        trainer.train()
        results.append(weights(trainer.model))
    assert any(not weight.equal(results[1][key]) for key, weight in results[0].items())
