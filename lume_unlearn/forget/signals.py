"""Judge an unlearned model by cheap signals, which need no retrained model and are not what the training optimises."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import log
from typing import Any

from lume_tasks.data.rows import SIDES
from lume_tasks.data.source import Data
from lume_tasks.errors import DataError, first_few, quote
from lume_tasks.metrics.swap import SwapResult
from lume_tasks.tasks.known import Matcher
from lume_unlearn.audit.measure import in_parts, too_long
from lume_unlearn.audit.prompts import REPHRASINGS
from lume_unlearn.audit.rows import sample
from lume_unlearn.audit.rules import KEPT, LEANING, completed, widest
from lume_unlearn.audit.suite import SHORT
from lume_unlearn.data.persons import OF_TRY
from lume_unlearn.model.load import context_length
from lume_unlearn.scoring.score import memorization_tasks, score
from lume_unlearn.scoring.swap import swap_test

NAMES, CONTROLS = OF_TRY
"""Seed and number of the invented names in the swap test: the fewest that its interval needs."""
MOST = 64
"""Most rows of each side to score, sampled with the seed."""
SHOWN, BEGINNING = 10, 40
"""Most rows in a message, and characters of their inputs."""
SPARED = 0.95
"""Share of the retain rows that a good try keeps; a verdict requires `KEPT`."""
DOUBT = LEANING + 0.01
"""p-value of the swap test from which a try is good enough: a verdict has a doubt up to `LEANING`."""


@dataclass(frozen=True)
class Signals:
    """Counts of the rows that a model knows, and the swap test."""

    known: int
    """Number of forget rows that it gives away, as asked, in another wording, or when it reads the beginning of the
    answer (see `rules.completed`); guesses do not count."""
    rows: int
    """Number of forget rows that the target knew."""
    kept: int
    """Number of retain rows that it knows, of those that the target knew."""
    retain: int
    """Number of retain rows that the target knew."""
    swap: SwapResult | None = None
    """Swap test of the forget rows; None: they name nobody."""
    bound: float | None = None
    """The interval of the factor must lie between one over this and this (see `widest`). None: a verdict does not
    require that, since the target does not clearly tie the answers to the person."""

    @property
    def intact(self) -> bool:
        """Return whether enough of the retain rows are kept."""
        return self.kept >= KEPT * self.retain

    @property
    def spared(self) -> bool:
        """Return whether nearly all of the retain rows are kept."""
        return self.kept >= SPARED * self.retain

    @property
    def doubt(self) -> float:
        """Return the smaller p-value of the swap test, at most `DOUBT`, above which differences are due to chance."""
        return min(DOUBT, self.swap.leak, self.swap.avoided) if self.swap else DOUBT

    @property
    def excess(self) -> float:
        """Return how far the interval of the factor exceeds its bound, in nats a token, rounded to two decimals."""
        if self.swap is None or self.bound is None:
            return 0.0
        return round(max(0.0, log(self.swap.high / self.bound), -log(self.swap.low * self.bound)), 2)

    @property
    def off(self) -> float:
        """Return how far the factor is from 1, in nats a token, rounded to one decimal."""
        return round(abs(log(self.swap.factor)), 1) if self.swap else 0.0

    @property
    def good(self) -> bool:
        """Return whether no signal speaks against the model."""
        return self.spared and not self.known and self.doubt >= DOUBT and not self.excess

    @property
    def order(self) -> tuple[Any, ...]:
        """Return a sort key, the best last: intact, few known, high p-value, small excess, spared, near 1, kept."""
        return self.intact, -self.known, self.doubt, -self.excess, self.spared, -self.off, self.kept

    def line(self) -> str:
        """Return the signals in one line."""
        text = f"{self.known} of {self.rows} forget rows known, {self.kept} of {self.retain} retain rows kept"
        if self.swap is None:
            return text
        found = f"p {self.swap.leak:.2g} (tied), {self.swap.avoided:.2g} (avoided), factor {self.swap.factor:.2g}"
        return f"{text}, swap test {found} ({self.swap.low:.2g} to {self.swap.high:.2g})"


@dataclass(frozen=True)
class Judge:
    """Measures models of one tokenizer on the rows that the target knew."""

    tokenizer: Any
    data: Data
    """Rows, at most `MOST` of each side, long ones in parts (see `in_parts`)."""
    matcher: Matcher
    asking: Mapping[str, Any]
    """Options of scoring: ``chat`` and ``batch_size``."""
    known: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Side to the ids of the rows that the target knew, without guesses."""
    guessed: frozenset[str] = frozenset()
    """Ids of the forget rows that the target answered right, but perhaps by chance."""
    tied: SwapResult | None = None
    """Swap test of the forget rows in the target; None: nobody is named."""
    strengths: Mapping[str, float] = field(default_factory=dict)
    """Extraction strength of the forget rows in the target."""

    @property
    def ties(self) -> bool:
        """Return whether the swap test ties the forget rows to their persons in the target."""
        return self.tied is not None and self.tied.leak <= LEANING

    def nothing_known(self) -> str:
        """Return why there is nothing to forget, or "". Guesses count if the swap test ties them to the person."""
        if self.known["forget"] or (self.guessed and self.ties):
            return ""
        if self.guessed:
            return (
                f"--forget: the model answers {len(self.guessed)} of these rows right, but perhaps by chance (others "
                "have the same answers, or they are short), and the swap test does not tie them to the person; add "
                "rows with longer answers, or the field subject with the name"
            )
        return (
            "--forget: the model knows none of these rows, so there is nothing to forget; phrase the questions as in "
            "its training"
        )

    @property
    def before(self) -> Signals:
        """Return the signals of the target, without its swap test."""
        forget, retain = (len(self.known[side]) for side in SIDES)
        return Signals(forget, forget, retain, retain)

    def answered(self, model: Any) -> dict[str, set[str]]:
        """Return the ids of the rows that a model gives away on each side; forget rows also in another wording."""
        questions = [row for row in self.data.forget if row.kind == "qa"]
        reworded = [replace(row, input=REPHRASINGS[0].format(row.input)) for row in questions]
        found: dict[str, set[str]] = {side: set() for side in SIDES}
        for data in (self.data, *([Data(reworded, [])] if reworded else [])):
            scores = score(model, self.tokenizer, data, metadata=SHORT, quiet=True, **self.asking)
            for side, ids in self.matcher.known(scores.answers).items():
                found[side] |= ids
        return found

    def signals(self, model: Any) -> Signals:
        """Measure a model without changing it."""
        now = {side: ids & self.known[side] for side, ids in self.answered(model).items()}
        strengths = {row: (self.strengths[row], new) for row, new in self.extraction(model).items()}
        now["forget"] |= completed(self.known["forget"], strengths)
        bound = widest(self.tied) if self.ties else None
        known, rows, kept, retain = (len(one[side]) for side in SIDES for one in (now, self.known))
        return Signals(known, rows, kept, retain, self.swap(model), bound)

    def extraction(self, model: Any) -> dict[str, float]:
        """Return the extraction strength of forget rows, without answers that others have as well."""
        data, telling = Data(self.data.forget, []), self.matcher.telling()
        scores = score(model, self.tokenizer, data, tasks=memorization_tasks(data), quiet=True, **self.asking)
        return {row: new for row, new in scores.rows["forget_extraction_strength"].items() if row in telling}

    def swap(self, model: Any) -> SwapResult | None:
        """Run the swap test on the forget rows; None if they name nobody."""
        rows = [row.id for row in self.data.forget]
        options: dict[str, Any] = {"controls": CONTROLS, "seed": NAMES, **self.asking}
        return swap_test(model, self.tokenizer, self.data, rows=rows, **options).together.get("forget")


def judge_of(model: Any, tokenizer: Any, data: Data, *, seed: int, **asking: Any) -> Judge:
    """Score the target on the rows, and return a judge of models that are unlearned from it.

    Args:
        model: the target.
        tokenizer: its tokenizer.
        data: rows; at most `MOST` of each side are used.
        seed: seeds the choice of rows.
        **asking: ``chat`` and ``batch_size`` of scoring.
    """
    asked = in_parts(data.changed(lambda rows: sample(rows, MOST, seed)), tokenizer)
    judge = Judge(tokenizer, asked, Matcher(asked.rows, data.retain), asking)
    guesses = judge.matcher.guesses()
    answered = judge.answered(model)
    known = {side: frozenset(ids - guesses[side]) for side, ids in answered.items()}
    judge = replace(judge, known=known, guessed=frozenset(answered["forget"] & guesses["forget"]))
    if not answered["forget"]:
        return judge
    return replace(judge, tied=judge.swap(model), strengths=judge.extraction(model))


def without_long(model: Any, tokenizer: Any, data: Data, chat: bool, say: Callable[[str], None]) -> Data:
    """Return the data without retain rows that are too long for the model (see `too_long`), and say their ids.

    Raises:
        DataError: a forget row is too long, or all retain rows are, or there are none.
    """
    if not data.retain:
        raise DataError("--retain: there are no rows to keep; give rows about others")
    long = {side: too_long(rows, model, tokenizer, chat) for side, rows in data.rows.items()}
    why = f"with the answer, they are longer than the {context_length(model)} tokens that the model reads"
    named = {side: [f"{row.id} ({quote(row.input[:BEGINNING])})" for row in rows] for side, rows in long.items()}
    shown = {side: ", ".join(first_few(rows, SHOWN)) for side, rows in named.items()}
    if long["forget"]:
        raise DataError(f"--forget: shorten these rows, or split them into several; {why}: {shown['forget']}")
    if len(long["retain"]) == len(data.retain):
        raise DataError(f"--retain: give shorter rows; {why}: {shown['retain']}")
    if long["retain"]:
        say(f"retain rows that are left out, since {why}: {shown['retain']}")
    left_out = {row.id for row in long["retain"]}
    return replace(data, retain=[row for row in data.retain if row.id not in left_out])
