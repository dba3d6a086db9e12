"""Every loss of logits and labels against its formula; then the value of each token: gradients, and invariances.

The reductions are in test_loss_reductions.py.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import one_hot
from torch.nn.utils.rnn import pad_sequence

from lume_unlearn.data.encode import Tokens
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods import losses
from lume_unlearn.methods.common import IGNORED, at_least_float32, token_mean, token_nll
from lume_unlearn.methods.jensun import js_to_token
from lume_unlearn.methods.losses import functional
from lume_unlearn.methods.masc import masc_margin, masc_tau
from lume_unlearn.methods.pdu import pdu_dual
from lume_unlearn.methods.registry import METHODS
from lume_unlearn.methods.retain import js_tokens, kl_tokens, state_distance
from lume_unlearn.methods.rmu import rmu_direction
from lume_unlearn.methods.selective import selective_weight
from lume_unlearn.methods.shred import shred_selected
from tests.conftest import make_model
from tests.unlearn.formulas import FORMULAS, KL_WEIGHT, RETAIN_TERMS, SEED, Step, teacher
from tests.unlearn.rows import asked, half_labelled, logits, made_up, own_mask, places, states
from tests.unlearn.token_losses import (
    ceu_tokens,
    divergence_tokens,
    masc_tokens,
    pdu_tokens,
    shred_tokens,
    undial_tokens,
)

TARGETS = torch.tensor([2, 0, 4])
LOGITS = [[0.3, -1.2, 0.8, 0.1, -0.4], [2.0, 0.5, -0.7, 1.1, 0.0], [-0.2, 0.9, 0.4, -1.5, 0.6]]
REFERENCE = [[0.1, 0.7, 1.9, -0.3, 0.2], [-0.6, 0.4, 1.3, 0.9, -1.1], [0.5, -0.8, 0.0, 0.2, 1.4]]

TokenLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
OF_LOGITS: dict[str, TokenLoss] = {
    "nll": lambda z, _, y: token_nll(z, y),
    "kl": lambda z, ref, _: kl_tokens(z, ref),
    "js": lambda z, ref, _: js_tokens(z, ref),
    "jensun": lambda z, _, y: js_to_token(token_nll(z, y)),
    "masc": lambda z, _, y: masc_tokens(z, y, 0.4, 0.25, 0.9, 2),
    "shred": lambda z, ref, y: shred_tokens(z, ref, y, y > 0, 3.0, 2),
    "undial": lambda z, ref, y: undial_tokens(z, ref, y, 3.0),
    "ceu": lambda z, _, y: ceu_tokens(z, y),
    "pdu": lambda z, _, y: pdu_tokens(z),
    "distance": lambda z, ref, _: state_distance(z, ref),
    "kl of log-probabilities": lambda z, ref, _: divergence_tokens(z, at_least_float32(ref).log_softmax(-1), "kl"),
    "reverse kl": lambda z, ref, _: divergence_tokens(z, at_least_float32(ref).log_softmax(-1), "reverse"),
    "js of log-probabilities": lambda z, ref, _: divergence_tokens(z, at_least_float32(ref).log_softmax(-1), "js"),
}
every_loss = pytest.mark.parametrize("loss", OF_LOGITS.values(), ids=OF_LOGITS.keys())


def logits_(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(LOGITS, dtype=dtype, requires_grad=True)


def reference(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(REFERENCE, dtype=dtype)


def of_probabilities(*p: float) -> Tensor:
    """(1, V) logits with these probabilities, shifted so that they are not log-probabilities already."""
    return torch.tensor([p], dtype=torch.float64).log() + 0.7


FORGET, ALTERNATIVE, RETAIN, CONTROL = (
    half_labelled(lengths, seed) for seed, lengths in enumerate([(6, 9, 14), (5, 3, 7), (8, 4), (7, 9, 12)])
)


def padded(rows: Sequence[Tokens], output: Callable[[Tokens], Tensor], shift: int = 1) -> Tensor:
    """(B, T, V) outputs of the labelled tokens of each row, at the position before each; noise elsewhere."""
    found = [output(row) for row in rows]
    whole = torch.randn(len(rows), max(len(row.labels) for row in rows), found[0].shape[-1], dtype=found[0].dtype)
    for number, (row, values) in enumerate(zip(rows, found, strict=True)):
        whole[number, places(row) - shift] = values
    return whole


def labels_of(rows: Sequence[Tokens]) -> Tensor:
    return pad_sequence([torch.tensor(row.labels) for row in rows], batch_first=True, padding_value=IGNORED)


def masks_of(rows: Sequence[Tokens]) -> Tensor:
    found = torch.zeros(labels_of(rows).shape, dtype=torch.float64)
    for mask, row in zip(found, rows, strict=True):
        mask[row.labelled] = own_mask(row.scored)
    return found


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_of_logits_and_labels_equals_the_formula(name):
    model, before = (make_model(seed=seed).double() for seed in (0, 1))
    method, formula = METHODS[name], FORMULAS[name]
    step = Step(model, before, FORGET, ALTERNATIVE, [], formula.params, CONTROL, [0.3, 0.5, 0.7])
    if name == "rmu":  # the seed of the formula's direction
        method = type("RMU", (method,), {"seed": SEED})
    loss, other = functional(method), dict(zip(ALTERNATIVE, CONTROL, strict=True))

    def said(row):
        found = logits(before, asked(row, other[row]))
        return 1e4 * one_hot(torch.tensor(row.targets), found.shape[-1]).double() if made_up(row) else found

    available = {
        "logits": lambda: padded(FORGET, lambda row: logits(model, row)),
        "labels": lambda: labels_of(FORGET),
        "hidden_states": lambda: padded(FORGET, lambda row: states(model, row, formula.params["layer"]), 0),
        "reference_logits": lambda: padded(FORGET, lambda row: logits(before, row)),
        "teacher_logits": lambda: padded(FORGET, lambda row: teacher(step, row).log() + 0.7),
        "own_words": lambda: masks_of(FORGET),
        "control_logits": lambda: padded(CONTROL, lambda row: logits(model, row)),
        "control_labels": lambda: labels_of(CONTROL),
        "control_own_words": lambda: masks_of(CONTROL),
        "quantiles": lambda: torch.tensor(step.quantiles, dtype=torch.float64),
        "alternative_logits": lambda: padded(ALTERNATIVE, lambda row: logits(model, row)),
        "alternative_labels": lambda: labels_of(ALTERNATIVE),
        "alternative_teacher_logits": lambda: padded(ALTERNATIVE, said),
        "alternative_reference_logits": lambda: padded(ALTERNATIVE, lambda row: logits(before, row)),
    }
    tensors = [available[key]() for key in signature(loss).parameters if key in available]
    found, expected = loss(*tensors, **formula.params), formula.forget(step)
    assert found.item() == pytest.approx(expected.item(), rel=1e-7)
    weight = model.model.embed_tokens.weight
    torch.testing.assert_close(*(torch.autograd.grad(value, weight)[0] for value in (found, expected)))


@pytest.mark.parametrize("term", ["nll", "kl", "js", "nll+kl"])
def test_the_retain_term_of_logits_and_labels_equals_the_formula(term):
    model, before = (make_model(seed=seed).double() for seed in (0, 1))
    own, known = (padded(RETAIN, partial(logits, of)) for of in (model, before))
    expected = RETAIN_TERMS[term]
    found = losses.retain(own, labels_of(RETAIN), known, term, kl_weight=KL_WEIGHT)
    assert found.item() == pytest.approx(expected(Step(model, before, [], [], RETAIN, {})).item(), rel=1e-9)


def test_a_loss_takes_and_checks_the_hyperparameters_of_its_method():
    assert {"alternative_logits", "beta"} <= signature(losses.dpo).parameters.keys()
    with pytest.raises(ConfigError, match="--beta -1: must be above 0"):
        losses.npo(torch.zeros(1, 2, 3), torch.zeros(1, 2), torch.zeros(1, 2, 3), -1)


@every_loss
def test_a_loss_changes_neither_its_inputs_nor_the_reference(loss):
    z, ref = logits_(), reference().requires_grad_()
    values = loss(z, ref, TARGETS)
    assert values.dtype == torch.float64
    values.sum().backward()
    assert ref.grad is None
    assert torch.equal(z, logits_())
    assert torch.equal(ref, reference())


def test_worked_examples():
    first, three_to_one = torch.tensor([0]), of_probabilities(0.75, 0.25)
    assert token_nll(of_probabilities(0.25, 0.25, 0.5), first).item() == pytest.approx(math.log(4.0))
    assert kl_tokens(three_to_one, of_probabilities(0.5, 0.5)).item() == pytest.approx(0.143841, abs=1e-6)
    halves = of_probabilities(0.5, 0.5).log_softmax(-1)
    for kind, value in (("kl", 0.143841), ("reverse", 0.130812), ("js", 0.033822)):
        assert divergence_tokens(three_to_one, halves, kind).item() == pytest.approx(value, abs=1e-6)
    assert js_to_token(torch.tensor(math.log(2.0))).item() == pytest.approx(0.215762, abs=1e-6)
    four = of_probabilities(0.75, 0.125, 0.0625, 0.0625)
    assert masc_margin(four, first, 1.0, 2).item() == pytest.approx(math.log(4.0))
    assert masc_tau(0.7) == pytest.approx(0.847298, abs=1e-6)
    assert masc_tokens(three_to_one, first, 0.7, 0.25, 1.0, 10).item() == pytest.approx(2.005257, abs=1e-6)
    surprise, rows = torch.tensor([1.0, 3.0, 3.0, 2.0, 5.0]), torch.tensor([0, 0, 0, 0, 1])
    assert shred_selected(surprise, rows, 0.5).tolist() == [False, True, True, False, True]
    two = of_probabilities(0.5, 0.375, 0.125).repeat(2, 1)
    values = shred_tokens(two, two, torch.tensor([0, 0]), torch.tensor([True, False]), math.log(8.0), 2)
    assert values.tolist() == pytest.approx([math.log(2.0), math.log(8 / 7)])
    assert undial_tokens(three_to_one, three_to_one, first, math.log(3.0)).item() == pytest.approx(0.836988, abs=1e-6)
    assert ceu_tokens(of_probabilities(0.5, 0.375, 0.125), first).item() == pytest.approx(1.255482, abs=1e-6)
    assert pdu_tokens(torch.tensor([[3.0, 1.0, 2.0, -2.0]])).item() == 4.0
    states = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    assert state_distance(states, torch.tensor([1.0, 0.0])).tolist() == [2.0, 0.5]
    assert state_distance(states, torch.tensor([[1.0, 0.0], [3.0, 1.0]])).tolist() == [2.0, 5.0]


@pytest.mark.parametrize("loss", [kl_tokens, js_tokens, state_distance])
def test_there_is_no_gradient_at_the_reference(loss):
    z = logits_()
    values = loss(z, z.detach().clone())
    assert values.tolist() == pytest.approx([0.0] * 3, abs=1e-15)
    assert torch.autograd.grad(values.sum(), z)[0].abs().max().item() < 1e-15


def test_jensun_keeps_its_accuracy_at_tokens_that_are_nearly_certain():
    """Near p = 1 the value is nll ln(2) / 2: in float32 the textbook formula has no correct digit there."""
    nll = torch.tensor([1e-7], requires_grad=True)
    value = js_to_token(nll)
    assert value.item() == pytest.approx(1e-7 * math.log(2.0) / 2, rel=1e-5)
    assert torch.autograd.grad(value.sum(), nll)[0].item() == pytest.approx(math.log(2.0) / 2)


def test_masc_lets_go_of_tokens_below_the_margin_and_its_margin_is_the_log_odds():
    z = of_probabilities(0.65, 0.2, 0.15).requires_grad_()
    margin = masc_margin(z, torch.tensor([0]), 1.0, 10)
    assert margin.item() == pytest.approx(masc_tau(0.65))
    value = masc_tokens(z, torch.tensor([0]), 0.72, 0.25, 1.0, 10)
    assert value.item() == 0.0
    assert not torch.autograd.grad(value.sum(), z)[0].any()


@pytest.mark.parametrize("share", [0.01, 0.3, 0.34, 1.0])
def test_shred_selects_the_same_share_of_every_row_and_of_equal_tokens_the_first(share):
    lengths = (1, 3, 10)
    rows = torch.arange(3).repeat_interleave(torch.tensor(lengths))
    selected = shred_selected(torch.zeros(14), rows, share)
    expected = [t < math.ceil(share * length) for length in lengths for t in range(length)]
    assert selected.tolist() == expected


def test_ceu_at_a_certain_token_spreads_over_the_others():
    # p is (1, 0, 0) in float32, so q cannot come from p: it is (0, 3/4, 1/4) all the same.
    z = torch.tensor([[200.0, math.log(3.0), 0.0]], requires_grad=True)
    gradient = torch.autograd.grad(ceu_tokens(z, torch.tensor([0])).sum(), z)[0]
    assert gradient[0].tolist() == pytest.approx([1.0, -0.75, -0.25])


@pytest.mark.parametrize("name", [name for name in OF_LOGITS if name != "ceu"])  # q moves with z: see its own test
def test_gradients_against_finite_differences(name):
    assert gradcheck(lambda z: OF_LOGITS[name](z, reference(), TARGETS), (logits_(),))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_before_anything_else(loss, dtype):
    z, ref = logits_(dtype), reference(dtype)
    values = loss(z, ref, TARGETS)
    assert values.dtype == torch.float32
    assert torch.equal(values, loss(z.float(), ref.float(), TARGETS))


@every_loss
def test_without_tokens_the_mean_is_0(loss):
    z = torch.zeros(0, 5, requires_grad=True)
    mean = token_mean(loss(z, torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)))
    mean.backward()
    assert mean.item() == 0.0


@every_loss
@pytest.mark.parametrize("target", [0, 1, 2])
def test_extreme_logits_stay_finite(loss, target):
    z = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    values = loss(z, torch.tensor([[-1e4, 1e4, 0.0]]), torch.tensor([target]))
    assert values.isfinite().all()
    assert torch.autograd.grad(values.sum(), z)[0].isfinite().all()


# Scalar rules beside the losses at their edges; `formulas` has the rules themselves.


def test_rmu_direction_depends_on_the_seed_alone():
    first = rmu_direction(64, seed=3)
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(rmu_direction(64, seed=3), first)
    finally:
        torch.set_default_dtype(torch.float32)
    assert not torch.equal(rmu_direction(64, seed=4), first)
    assert torch.equal(torch.get_rng_state(), state)  # the shared generator was not drawn from


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (pdu_dual(1.0, 0.1, 0.3, 50.0), 0.0),  # never below 0
        (pdu_dual(0.0, 0.4, 0.3, 1.0), 0.1),  # and it comes back
        (pdu_dual(1.0, math.nan, 0.3, 1.0), math.nan),
        (selective_weight(2.8, 2.0), 2.1),  # 0.3 * 6^0.8 + 0.8 = 2.06
        (selective_weight(2.95, 2.0), 2.3),  # 2.45
        (selective_weight(1e4, 2.0), 2.3),
        (selective_weight(math.inf, 2.0), 2.3),
        (selective_weight(math.nan, 2.0), math.nan),
    ],
)
def test_rules_of_pdu_and_selective(found, expected):
    assert found == pytest.approx(expected, nan_ok=True)
