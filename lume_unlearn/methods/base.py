"""An unlearning method: a dataclass whose fields are its hyperparameters and whose methods are its loss.

    @dataclass
    class Hinge(Method):
        margin: float = param(5.0, "NLL in nats up to which a token is pushed")

        def forget_loss(self, batch):
            values = (self.margin - batch.forget.values).clamp(min=0)
            return values.sum() / batch.counts.tokens("forget")

Such a class works the same in a notebook and in this package: `UnlearningTrainer(model, Hinge(margin=3.0), ...)`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from inspect import get_annotations
from math import inf
from typing import Any, ClassVar, Literal, TypedDict, TypeVar, get_type_hints

from lume_unlearn.checks import check_types
from lume_unlearn.methods.common import Tensor, row_lengths, row_mean

RetainTerm = Literal["nll", "kl", "js", "nll+kl", "states", "none"]
Side = Literal["forget", "control", "alternative", "retain"]
Item = TypeVar("Item")


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
    control: list[int] = field(default_factory=list)

    def tokens(self, side: Side) -> int:
        """Return the labelled tokens of one side, to divide a token mean by; 1 instead of 0."""
        return max(int(sum(getattr(self, side))), 1)

    def rows(self, side: Side) -> int:
        """Return the rows of one side, to divide a mean over rows by; 1 instead of 0."""
        return max(len(getattr(self, side)), 1)


@dataclass(frozen=True)
class Rows:
    """The labelled tokens of one side in one micro-batch, flat (see `common`)."""

    values: Tensor
    """(N,) value of each token: its NLL in nats, or what the method's ``token_loss`` returns."""
    rows: Tensor
    """(N,) row of each token, from 0."""
    count: int
    """Rows of this side in this micro-batch."""
    reference: Tensor
    """(N,) reference NLL; with ``needs.teacher`` the teacher's NLL, or zeros in a run without contexts; with
    ``needs.persons`` 1 for each token of a word that only this row has, else 0. Empty if the method needs none."""
    nll: Tensor | None = None
    """(N,) NLL. Without ``token_loss`` it is ``values``; with ``token_loss`` it is there if ``needs.nll`` says so."""

    def mean(self, count: int) -> Tensor:
        """Return `row_mean` of the values, divided by ``count`` rows."""
        return row_mean(self.values, self.rows, self.count, count)

    def weights(self, rows: int, tokens: int) -> Tensor:
        """Return the weight of each token in a mean over rows or in a mean over tokens, the larger of the two: (N,).

        ``max(1 / (rows |S_b|), 1 / tokens)``, for the rows and tokens of this side in the whole optimiser step. In a
        mean over tokens, a short answer beside long texts has hardly any weight; in a mean over rows, a token of a long
        text.

        Worked example: in a step of rows with 1, 3 and 16 tokens, each weighs 1/3, 1/9 and 1/20.
        """
        lengths = row_lengths(self.rows, self.count).to(self.values.dtype)
        return (1 / (rows * lengths)).clamp(min=1 / tokens)[self.rows]


@dataclass(frozen=True)
class Batch:
    """What a loss can use: the values of one micro-batch, and the counts of its optimiser step."""

    forget: Rows
    alternative: Rows
    """The alternative of each forget row, in the same order; without rows unless the method needs them."""
    counts: TokenCounts
    """Tokens and rows of the whole optimiser step, which the micro-batch's sums are divided by."""
    state: Mapping[str, float]
    """The method's state: the last result of `Method.adapt`, and the ``shift`` of `level`."""
    control: Rows | None = None
    """Each forget row about an invented person, in the same order, if the method needs them."""
    quantiles: Tensor | None = None
    """(B,) of each forget row, if the method needs invented persons: see `methods.swap`."""
    texts: Tensor | None = None
    """(B,) bool: whether the control of each forget row is an unseen text, if the method needs invented persons."""


def param(
    default: Any, help: str, *, zero: bool = False, most: float = inf, search: tuple[float, float] | None = None
) -> Any:
    """Declare a hyperparameter: a field of a `Method`, an option of the command line, a key of recipes.

    The type of the field is int, float, bool or a Literal of the words allowed. A field without `param` is an option
    without help text, and any finite number is allowed.

    Args:
        default: its value unless given.
        help: one line for the help of the command line.
        zero: whether 0 is allowed; negative numbers never are.
        most: the largest number allowed.
        search: the range in which `compare` tunes it; None leaves it at its default.
    """
    return field(default=default, metadata={"help": help, "zero": zero, "most": most, "search": search})


@dataclass(frozen=True)
class Needs:
    """What a method needs besides the outputs of the model in training. What it does not need is not computed."""

    reference_nll: tuple[Side, ...] = ()
    """Sides whose reference NLL is needed (`Rows.reference`): computed once, before training."""
    reference_logits: bool = False
    """Reference logits of forget rows, in every step: the third argument of ``token_loss``."""
    teacher: bool = False
    """The counterfactual teacher (see `methods.counterfactual`): its log-probabilities are the third argument of
    ``token_loss``, and its NLL is `Rows.reference` of forget rows. The field ``contexts`` says how often it
    predicts, each time with other words substituted."""
    blend: bool = False
    """Take only the right token's probability from the teacher, and the others, rescaled, from the reference model."""
    hidden_states: bool = False
    """``token_loss`` gets the hidden states after decoder layer ``self.layer`` instead of logits."""
    alternatives: Literal["refusals", "file"] | None = None
    """Where another answer to each forget row comes from."""
    persons: bool = False
    """Each forget row about invented persons (`Batch.control`), and the reference model's answers about these
    (`Batch.alternative`): see `data.imitations`. The field ``controls`` is their number for each question and each text
    that names somebody, ``answers`` that for each other text."""
    forget_rows: bool = True
    """Whether the model in training reads the forget rows themselves."""
    nll: bool = False
    """NLL of forget tokens beside ``token_loss`` (`Rows.nll`)."""


class Defaults(TypedDict, total=False):
    """Fields of `UnlearningArguments` whose default a method may replace."""

    num_train_epochs: float
    per_device_train_batch_size: int
    learning_rate: dict[str, float]
    """The rate for "full" and for "lora", for models of any size; without it the rate depends on the model's size."""
    lr_scheduler_type: str
    warmup_steps: float
    """A share of the steps, below 1."""
    max_grad_norm: float
    forget_weight: float
    retain_weight: float
    kl_weight: float


@dataclass
class Method:
    """An unlearning method. Subclass it as a dataclass: fields are hyperparameters, ``forget_loss`` is the loss.

    The trainer minimises ``forget_weight * forget_loss + retain_weight * retain term``. A loss returns the share of one
    micro-batch in the loss of the whole optimiser step: it divides by ``batch.counts``, so that the shares of all
    micro-batches and processes add up.

    Five more methods are optional; a class that has none of them leaves them at None:

    - ``token_loss(self, logits, targets, reference) -> values``: (n, V) logits, (n,) token ids and (n, V) reference
      logits (None unless needed) to the (n,) value of each forget token, from that token alone. It replaces the NLL as
      ``batch.forget.values``. It is called on one chunk of tokens after another.
    - ``imitation_loss(self, logits, targets, said) -> values``: with ``needs.persons``, the value of each token of an
      answer to imitate, instead of its NLL. ``said``: (n, V) log-probabilities of the reference model where it gave
      that answer.
    - ``select(self, reference_nll, rows) -> selected``: (N,) reference NLL and (N,) row of each forget token to (N,)
      bool, row by row. The third argument of ``token_loss`` is then the pair (reference logits, selected).
    - ``adapt(self, state, retain_loss, epochs) -> state``: after each optimiser step, from the state, the retain loss
      of the step and the epochs completed to the next state. ``state["weight"]`` is the retain weight.
    - ``phases(self, forget, retain, batch_size, epochs, seed) -> phases``: numbers of forget and retain rows and of
      forget rows in a step, to phases of optimiser steps of `Pair`. Each phase has a fresh optimiser and learning rate
      schedule.
    """

    name: ClassVar[str] = "method"
    """Name on the command line and in results; by default the class's name in lower case."""
    title: ClassVar[str] = ""
    source: ClassVar[str] = ""
    """Authors, year and arXiv number."""
    formula: ClassVar[str] = ""
    """The loss on forget rows in a few words, for the tables."""
    needs: ClassVar[Needs] = Needs()
    retain_term: ClassVar[RetainTerm] = "nll"
    """The loss on retain rows unless the run names another."""
    retain_terms: ClassVar[tuple[RetainTerm, ...]] = ("nll", "kl", "js", "nll+kl", "none")
    """The retain terms that it can have."""
    defaults: ClassVar[Defaults] = {}
    """Options whose default for this method is not the package's, but mostly the paper's."""
    negated: ClassVar[bool] = False
    """Whether the model learns the forget rows, and ``scale`` times the change of its weights is then subtracted."""
    seed: ClassVar[int] = 0
    """Seed of the run: the trainer sets it on its own copy of the method."""

    token_loss: ClassVar[Any] = None
    imitation_loss: ClassVar[Any] = None
    select: ClassVar[Any] = None
    adapt: ClassVar[Any] = None
    phases: ClassVar[Any] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Name the class if it does not name itself."""
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = cls.__name__.lower()

    def __post_init__(self) -> None:
        """Check the hyperparameters.

        Raises:
            ConfigError: names every hyperparameter whose value cannot work.
            TypeError: the class has fields that are not read, since it is no dataclass or they have no type.
        """
        cls = type(self)
        unread = [] if "__dataclass_fields__" in vars(cls) else list(get_annotations(cls))
        unread += [name for name, own in self.params().items() if getattr(cls, name, own.default) is not own.default]
        if unread:
            text = "not read; write @dataclass above the class, and a type for each, as in `beta: float = 1.0`"
            raise TypeError(f"class {cls.__name__}: {', '.join(unread)}: {text}")
        check_types(self)
        for name, kind in get_type_hints(cls).items():
            if kind in (int, float):
                setattr(self, name, kind(getattr(self, name)))

    @classmethod
    def params(cls) -> dict[str, "Field[Any]"]:
        """Return the hyperparameters: dataclass fields, with what `param` says in their ``metadata``."""
        return {field.name: field for field in fields(cls)}

    def forget_loss(self, batch: Batch) -> Tensor:
        """Compute the loss on forget rows, which training lowers: by default the token mean of their values."""
        return batch.forget.values.sum() / batch.counts.tokens("forget")

    def retain_loss(self, rows: Rows, counts: TokenCounts) -> Tensor:
        """Average the values of a retain term: by default over all retain tokens of the step."""
        return rows.values.sum() / counts.tokens("retain")


def in_batches(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Cut items into lists of ``size`` in their order; the last may be shorter."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]
