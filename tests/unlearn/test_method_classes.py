"""Method classes: what a class of one's own gets from `Method`, how hyperparameters are checked, and the registry."""

from dataclasses import asdict, dataclass, fields
from math import inf, nan
from typing import Literal

import numpy as np
import pytest
import torch

from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.base import Batch, Defaults, Method, Rows, TokenCounts, param
from lume_unlearn.methods.common import Tensor
from lume_unlearn.methods.losses import functional
from lume_unlearn.methods.npo import NPO
from lume_unlearn.methods.registry import METHODS, method_of
from lume_unlearn.methods.table import parameters
from lume_unlearn.training.arguments import UnlearningArguments


@dataclass
class Hinge(Method):
    """As a user writes it in a notebook."""

    margin: float = 5.0
    kind: Literal["hard", "soft"] = "hard"
    rounds: int = param(2, "rounds", most=4)
    whole: bool = False

    def forget_loss(self, batch: Batch) -> Tensor:
        return (self.margin - batch.forget.values).clamp(min=0).sum() / batch.counts.tokens("forget")


class Softer(Hinge):
    pass


class Undecorated(Method):
    margin: float = 5.0


@dataclass
class Untyped(Hinge):
    margin = 7.0


def test_a_class_of_ones_own_is_a_method():
    assert (Hinge.name, Softer.name, Hinge.retain_term) == ("hinge", "softer", "nll")
    assert list(Hinge.params()) == ["margin", "kind", "rounds", "whole"]
    values = torch.tensor([1.0, 6.0])
    rows = Rows(values, torch.tensor([0, 1]), 2, torch.zeros(0), values)
    batch = Batch(rows, rows, TokenCounts([1, 1], [], [1, 1]), {})
    assert Hinge(margin=3.0).forget_loss(batch).item() == 1.0
    assert Method.forget_loss(Hinge(), batch).item() == Hinge().retain_loss(rows, batch.counts).item() == 3.5
    labels = torch.tensor([[0, 1, -100]])
    assert functional(Hinge)(torch.zeros(1, 3, 2), labels, margin=1.0).item() == pytest.approx(1 - np.log(2))


@pytest.mark.parametrize("method", [Undecorated, Untyped])
def test_a_field_that_would_not_be_read_is_refused(method):
    with pytest.raises(TypeError, match=f"class {method.__name__}: margin: not read; write @dataclass"):
        method()


WRONG = {"margin": inf, "kind": "x", "rounds": 5, "whole": "false"}


@pytest.mark.parametrize(
    ("method", "params", "fault"),
    [
        ("npo", {"beta": -0.1}, "must be above 0"),
        ("npo", {"beta": nan}, "must be a finite number"),
        ("npo", {"beta": True}, "must be a finite number"),
        ("simnpo", {"beta": "1", "margin": -1}, "must be 0 or more"),
        ("rmu", {"layer": 1.5}, "must be a whole number"),
        ("agad", {"anneal_share": 1.5}, "must be at most 1"),
        ("counterfactual", {"divergence": "no"}, "choose one of kl, reverse, js"),
        (Hinge, WRONG, "choose one of hard, soft"),
        ("ga", {"beta": 0.1}, "ga has no such parameter"),
        (NPO(beta=0.2), {"betta": 1, "x": 2}, "npo has no such parameter (it has: beta)"),
    ],
)
def test_all_hyperparameters_that_cannot_work_are_named(method, params, fault):
    with pytest.raises(ConfigError) as caught:
        method_of(method, **params)
    named = [line.partition(":")[0] for line in str(caught.value).splitlines()]
    assert named == [f"--{name} {value!r}" for name, value in params.items()]
    assert fault in str(caught.value)


def test_an_unknown_method_is_refused_with_the_list_of_methods():
    with pytest.raises(ConfigError, match=f"--method 'nop': choose one of {', '.join(METHODS)}$"):
        method_of("nop")


def test_a_method_is_made_of_a_name_a_class_or_an_instance():
    own = NPO(beta=0.3)
    assert method_of("npo", beta=0.3) == method_of(NPO, beta=0.3) == method_of(own) == own
    assert (method_of(own, beta=0.4), own.beta) == (NPO(beta=0.4), 0.3)
    found = asdict(method_of("shred", beta=np.float32(2), top_k=3.0))  # plain numbers, for JSON
    assert {name: type(value) for name, value in found.items()} == {"share": float, "beta": float, "top_k": int}


def test_the_nll_beside_the_divergence_is_computed_only_if_it_has_a_weight():
    plain, weighted = (method_of("counterfactual", level_weight=weight).needs for weight in (0.0, 0.5))
    assert (plain.nll, weighted.nll, plain.teacher) == (False, True, True)


def test_a_hyperparameter_is_one_option_for_all_methods_that_have_it():
    found = parameters()
    for method in METHODS.values():
        assert all(found[name][0] == field.type for name, field in method.params().items())
    assert Defaults.__annotations__.keys() <= {field.name for field in fields(UnlearningArguments)}
