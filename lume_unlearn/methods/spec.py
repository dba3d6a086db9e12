"""What an unlearning method is: the types that a method's file fills in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal, TypeAlias

from lume_unlearn.methods.common import Tensor, row_mean

RetainTerm = Literal["nll", "kl", "js", "nll+kl", "states", "none"]
Side = Literal["forget", "alternative", "retain"]


@dataclass(frozen=True)
class Pair:
    """One item of an optimiser step: indices into the lists of forget and of retain rows."""

    forget: tuple[int, ...] = ()
    retain: tuple[int, ...] = ()


@dataclass(frozen=True)
class TokenCounts:
    """Labelled tokens of each row of one whole optimiser step, over all micro-batches and processes."""

    forget: list[int]
    alternative: list[int]
    retain: list[int]

    def tokens(self, side: Side) -> int:
        """Return the labelled tokens of one side, to divide a token mean by; 1 instead of 0."""
        tokens: list[int] = getattr(self, side)
        return max(sum(tokens), 1)

    def rows(self, side: Side) -> int:
        """Return the rows of one side, to divide a mean over rows by; 1 instead of 0."""
        return max(len(getattr(self, side)), 1)


@dataclass(frozen=True)
class Rows:
    """The labelled tokens of one side in one micro-batch, flat (see `common`)."""

    values: Tensor
    """(N,) loss of each token: its NLL in nats, or what the method's ``per_token_loss`` returns."""
    rows: Tensor
    """(N,) row of each token, from 0."""
    count: int
    """Rows of this side in this micro-batch."""
    reference: Tensor
    """(N,) reference NLL, or with ``teacher`` the teacher's; empty unless the method asks for it."""
    nll: Tensor | None = None
    """(N,) NLL beside ``values``, if the method asks for it."""

    def mean(self, count: int) -> Tensor:
        """Return `row_mean` of the values, divided by ``count`` rows."""
        return row_mean(self.values, self.rows, self.count, count)


@dataclass(frozen=True)
class Batch:
    """What a loss may use of one micro-batch."""

    forget: Rows
    alternative: Rows
    """The alternative of each forget row, in the same order; without rows unless the method asks for them."""
    counts: TokenCounts
    params: Mapping[str, Any]
    """The method's parameters in force."""


@dataclass(frozen=True)
class Param:
    """A number or a word that only some methods have: an option of the command line, and a key of recipes."""

    default: float | str
    help: str
    choices: tuple[str, ...] = ()
    """The words allowed; none for a number."""
    zero: bool = False
    """Whether 0 is allowed; negative numbers never are."""
    whole: bool = False
    """Whether it must be a whole number."""
    most: float = inf
    """The largest value allowed."""
    search: tuple[float, float] | None = None
    """The range in which `lume-unlearn compare` tunes it, None to leave it at its default."""

    def fault(self, value: object) -> str | None:
        """Return what is wrong with a value, or None."""
        if self.choices:
            return None if value in self.choices else f"choose one of {', '.join(self.choices)}"
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < inf:
            return "must be a number, and not negative"
        if value == 0 and not self.zero:
            return "must be above 0"
        if self.whole and value != int(value):
            return "must be a whole number"
        return f"must be at most {self.most:g}" if value > self.most else None


Loss: TypeAlias = Callable[[Batch], Tensor]
"""This micro-batch's share of the step's loss: the shares of all micro-batches and processes add up to it."""
RetainMean: TypeAlias = Callable[[Rows, TokenCounts], Tensor]
"""The same for the values of the retain tokens."""
PerTokenLoss: TypeAlias = Callable[[Mapping[str, Any], Tensor, Tensor, Any], Tensor]
"""(params, logits or hidden states, targets, the reference's or None) to (N,) values, each from its own token alone.

For a method with ``select`` the last argument is a pair: the reference logits, and the tokens selected, (N,) bool."""
Select: TypeAlias = Callable[[Mapping[str, float], Tensor, Tensor], Tensor]
"""(params, reference NLL (N,), rows (N,)) of the forget tokens to the tokens selected, (N,) bool, row by row."""
Adapt: TypeAlias = Callable[[dict[str, float], float, float, Mapping[str, float]], dict[str, float]]
"""(state, retain loss of the step, epochs completed, params) to the next state; its "weight" is the retain weight."""
Phases: TypeAlias = Callable[[int, int, int, int, Mapping[str, float]], list[list[list[Pair]]]]
"""(forget rows, retain rows, batch size, epochs, params) to phases of steps of pairs."""


def forget_token_mean(batch: Batch) -> Tensor:
    """Average the values of the forget tokens over all forget tokens of the step."""
    return batch.forget.values.sum() / batch.counts.tokens("forget")


def retain_token_mean(rows: Rows, counts: TokenCounts) -> Tensor:
    """Average the values of the retain tokens over all retain tokens of the step."""
    return rows.values.sum() / counts.tokens("retain")


@dataclass(frozen=True)
class Method:
    """One unlearning method. Whatever it does not need costs nothing."""

    name: str
    title: str
    citation: str
    formula: str
    """The loss on forget rows in a few words, for the tables."""
    loss: Loss = forget_token_mean
    """By default the token mean of the forget tokens' values, which training lowers."""
    retain: RetainTerm = "nll"
    """The term on retain rows unless ``--retain_term`` names another."""
    retain_terms: tuple[RetainTerm, ...] = ("nll", "kl", "js", "nll+kl", "none")
    """The terms that it can have."""
    retain_mean: RetainMean = retain_token_mean
    per_token_loss: PerTokenLoss | None = None
    """Value of each forget token where it is not its NLL."""
    needs_reference_forward: bool = False
    """Whether ``per_token_loss`` needs the reference logits of forget rows, in every step."""
    select: Select | None = None
    """Which forget tokens ``per_token_loss`` treats apart; needs ``reference_nll`` and ``needs_reference_forward``."""
    hidden_states: bool = False
    """Whether values come from the hidden states after decoder layer ``layer`` of ``params`` instead of logits."""
    reference_nll: tuple[Side, ...] = ()
    """Sides whose reference NLL is needed: computed once."""
    teacher: bool = False
    """Whether forget tokens need the counterfactual teacher (``per_token_loss``'s reference) and its NLL: see
    `methods.counterfactual`. The parameters ``contexts`` and ``window`` say what it predicts from."""
    nll: Callable[[Mapping[str, Any]], bool] = lambda params: False
    """Whether the loss needs the NLL of forget tokens beside ``per_token_loss``."""
    alternative: Literal["refusals", "file"] | None = None
    """Where another answer to each forget row comes from."""
    uses_forget_rows: bool = True
    """Whether the model in training reads the forget rows themselves."""
    params: Mapping[str, Param] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Options whose default is the paper's rather than the package's."""
    adapt: Adapt | None = None
    """For a retain weight that changes while training."""
    phases: Phases | None = None
    """For methods with phases, each with a fresh optimiser and learning rate schedule."""
    normalised: bool = False
    """Whether both gradients are normalised and the learning rate is searched (`ngdiff`)."""
    negated: bool = False
    """Whether the model learns the forget rows, and the change of its weights is then subtracted (`task-vector`)."""
