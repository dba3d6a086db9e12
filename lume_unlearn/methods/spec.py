"""What an unlearning method is: the types of the registry in `methods`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal

from torch import Tensor

from lume_unlearn.data.schedule import Key
from lume_unlearn.methods import losses

RetainTerm = Literal["nll", "kl", "nll+kl", "states", "none"]
RETAIN_TERMS: tuple[RetainTerm, ...] = ("nll", "kl", "nll+kl", "states", "none")
Side = Literal["forget", "alternative"]


def asks_before(term: RetainTerm) -> bool:
    """Whether a retain term needs the model before unlearning in every step."""
    return term not in ("nll", "none")


@dataclass(frozen=True)
class Sizes:
    """Labelled tokens of each row of one whole optimiser step, over all passes and processes."""

    forget: list[int]
    alternative: list[int]
    retain: list[int]

    @property
    def forget_tokens(self) -> int:
        """Labelled tokens of the step's forget rows, to divide a token mean by; 1 instead of 0."""
        return max(sum(self.forget), 1)

    @property
    def forget_rows(self) -> int:
        """Forget rows of the step, to divide a mean over rows by; 1 instead of 0."""
        return max(len(self.forget), 1)


@dataclass(frozen=True)
class Rows:
    """The labelled tokens of one side in one forward pass, flat (see `losses`)."""

    values: Tensor
    """(N,) value of each token: its NLL in nats, or what the method's ``value`` makes of its logits or states."""
    rows: Tensor
    """(N,) row of each token, from 0."""
    count: int
    """Rows of this side in this pass."""
    reference: Tensor
    """(N,) NLL before unlearning; empty unless the method asks for it."""


@dataclass(frozen=True)
class Batch:
    """What a loss may use of one forward pass."""

    forget: Rows
    alternative: Rows
    """The alternative of each forget row, in the same order; without rows unless the method asks for them."""
    sizes: Sizes
    params: Mapping[str, float]
    """The method's parameters in force."""


@dataclass(frozen=True)
class Param:
    """A number that only some methods have; an option of the command line by its name, and a key of recipes."""

    default: float
    help: str
    zero: bool = False
    """Whether 0 is a sensible value; less never is."""
    whole: bool = False
    """Whether it has to be a whole number."""
    most: float = inf
    """The largest sensible value."""

    def fault(self, value: object) -> str | None:
        """What is wrong with a value."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < inf:
            return "must be a number, and not negative"
        if value == 0 and not self.zero:
            return "must be above 0"
        if self.whole and value != int(value):
            return "must be a whole number"
        return f"must be at most {self.most:g}" if value > self.most else None


ForgetLoss = Callable[[Batch], Tensor]
"""This pass's share of the optimiser step's loss: the shares of all passes and processes add up to it."""
Value = Callable[[Mapping[str, float], Tensor, Tensor, Tensor | None], Tensor]
"""(params, logits or states, targets, the reference's or None) to (N,) values, each from its own row alone."""
Adapt = Callable[[dict[str, float], float, float, Mapping[str, float]], dict[str, float]]
"""(state, retain loss of the step, epochs passed, params) to the next state; its "weight" is the retain weight."""


@dataclass(frozen=True)
class Method:
    """One unlearning method. Whatever it does not need costs nothing."""

    name: str
    title: str
    citation: str
    formula: str
    """The loss on forget rows in a few words, for the tables."""
    forget: ForgetLoss
    retain: RetainTerm = "nll"
    """The term on retain rows unless ``--retain_term`` names another."""
    retain_terms: tuple[RetainTerm, ...] = ("nll", "kl", "nll+kl", "none")
    """The terms that it can have."""
    retain_mean: Callable[[Rows, Sizes], Tensor] = lambda rows, sizes: losses.token_mean(
        rows.values, max(sum(sizes.retain), 1)
    )
    """How the values of the retain tokens are averaged: by tokens, if not said otherwise."""
    value: Value | None = None
    """Value of each forget token where it is not its NLL."""
    live_reference: bool = False
    """Whether ``value`` needs the logits of the model before unlearning on forget rows, in every step."""
    states: bool = False
    """Whether values come from hidden states (behind decoder layer ``layer`` of ``params``) instead of logits."""
    reference: tuple[Side, ...] = ()
    """Rows whose NLL before unlearning is needed: computed once."""
    alternative: Literal["refusals", "file"] | None = None
    """Where another answer to each forget row comes from."""
    forget_pass: bool = True
    """Whether forget rows go through the model at all."""
    params: Mapping[str, Param] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Options whose default is the paper's rather than the package's."""
    adapt: Adapt | None = None
    """For a retain weight that changes while training."""
    phases: Callable[[int, int, int, int, Mapping[str, float]], list[list[list[Key]]]] | None = None
    """(forget rows, retain rows, batch size, epochs, params) to phases, each with a fresh optimiser and schedule."""
    normalised: bool = False
    """Whether the gradients of both terms are normalised and the learning rate found (`ngdiff`)."""
    negated: bool = False
    """Whether training is for learning the forget rows, and the change is then turned around."""
