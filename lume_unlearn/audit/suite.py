"""The procedures of the probes: what each changes, and which rows it scores.

To add a probe, write a method of `Suite` that yields titles and scores, and enter it into `PROBES`.
"""

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, TypeVar

from lume_tasks.data.rows import Row, text_key
from lume_tasks.data.source import Data
from lume_tasks.metrics.unlearning import leak_at_k
from lume_tasks.tasks.known import Matcher
from lume_unlearn.audit.quantisation import quantised_copy
from lume_unlearn.audit.rules import Changes
from lume_unlearn.scoring.score import MEANS, Scores, score, tasks_for, without_messages
from lume_unlearn.training.relearning import trained_copy

REPHRASINGS = (
    "Please answer briefly: {}",
    "I would like to know the following. {}",
    "Here is a question from a reader: {} What is the answer?",
)
PREFIX = "The weather was mild that day, and the market had just opened. "
NEW_TOKENS = 256
"""Most tokens that the protocol generates."""


@dataclass(frozen=True, repr=False)
class Probed(Scores):
    """The scores of one probe."""

    probe: str = "plain"
    """Its name in `PROBES`."""
    changes: Changes = "nothing"
    queries: int = 1
    """Answers to each row."""
    control: bool = False
    """Whether these are the scores before the change, to compare with, as of rows that relearning leaves out."""


T = TypeVar("T")
Made = Iterator[tuple[str, Scores]]


SHORT = {"lume_gen_kwargs": True, "lume_short_answers": True}
"""Metadata for answers that are no longer than it takes to see whether they are right."""


@dataclass(frozen=True)
class Suite:
    """The audited model, and what the probes share."""

    model: Any
    tokenizer: Any
    data: Data
    rows: Mapping[str, Sequence[Row]]
    """Rows to train on, of each probe that trains."""
    training: Mapping[str, Any]
    sampling: Mapping[str, Any]
    samples: int
    chat: bool
    batch_size: int
    seed: int
    tasks: Sequence[str] | None
    matcher: Matcher | None = None
    """Judges which sample is right; default: by the rows of ``data``."""

    def score(self, data: Data, model: Any = None, attack: bool = False, **options: Any) -> Scores:
        """Score rows with the model or a changed one; run the membership attack as well if ``attack`` says so."""
        there = [task for task in tasks_for(data) if task != "lume_mmlu" and (attack or task != "lume_mia")]
        # What the attack warns of was said of the model itself.
        with without_messages("lume_tasks", *([] if model is None else ["lume_mia: "])):
            tasks = there if self.tasks is None else self.tasks
            shared: dict[str, Any] = {"chat": self.chat, "batch_size": self.batch_size, "metadata": SHORT}
            return score(model or self.model, self.tokenizer, data, tasks=tasks, **shared, **options)

    def trained(self, probe: str) -> Any:
        """Return a copy of the model that was trained on the rows of a probe."""
        return trained_copy(self.model, self.tokenizer, self.rows[probe], **self.training)

    def plain(self) -> Made:
        """Score the rows as they are."""
        yield "plain", self.score(self.data, attack=True)

    def quantised(self) -> Made:
        """Score with weights of 8 and of 4 bits."""
        for bits in (8, 4):
            model, how = quantised_copy(self.model, bits)
            yield f"{bits}-bit ({how})", self.score(self.data, model, attack=True)

    def relearn_forget(self) -> Made:
        """Train a copy on forget rows, then score forget rows of other documents; as a control, score them before."""
        rows = self.rows["relearn_forget"]
        data, title = held_out(self.data, rows), f"relearned on {len(rows)} forget rows"
        if len(data.forget) < len(self.data.forget):
            yield f"held out, before it was {title}", Probed(**vars(self.score(data)), control=True)
            title = f"held out, {title}"
        yield title, self.score(data, self.trained("relearn_forget"), attack=True)

    def repair(self) -> Made:
        """Train a copy on retain rows, then score."""
        title = f"repaired on {len(self.rows['repair'])} retain rows"
        yield title, self.score(self.data, self.trained("repair"), attack=True)

    def unrelated(self) -> Made:
        """Train a copy on texts that have nothing to do with the rows, then score."""
        title = f"trained on {len(self.rows['unrelated'])} unrelated texts"
        yield title, self.score(self.data, self.trained("unrelated"), attack=True)

    def other_words(self) -> Made:
        """Score with changed prompts."""
        questions = self.data.changed(lambda rows: [row for row in rows if row.kind == "qa"])
        if questions.forget and questions.retain:
            for number, text in enumerate(REPHRASINGS, 1):
                yield f"rephrased {number}", self.score(_with_inputs(questions, text.format))
        yield "upper case", self.score(_with_inputs(self.data, str.upper))
        yield "prefix", self.score(_with_inputs(self.data, (PREFIX + "{}").format))
        shots = questions.retain[:3]
        if shots:
            front = "".join(f"{row.input} {row.output}\n\n" for row in shots)
            title = f"{len(shots)} answered retain rows in front"
            yield title, self.score(_with_inputs(self.data, lambda text: front + text))

    def sampled(self) -> Made:
        """Sample several answers to each row; of each row, keep a right one if there is one."""
        total = len(self.data.forget) + len(self.data.retain)
        cost = f"{total} rows, {self.samples * total:,} generations"
        print(f"samples: {self.samples} answers to each of {cost}", file=sys.stderr, flush=True)
        answers: dict[str, str] = {}
        matcher, known = self.matcher or Matcher(self.data.rows), set[str]()
        found: dict[str, dict[str, list[float]]] = {mean: {} for mean in MEANS}
        for number in range(self.samples):
            scores = self.score(self.data, gen_kwargs=dict(self.sampling), seed=self.seed + number)
            answers |= {row: text for row, text in scores.answers.items() if row not in known}
            known = set().union(*matcher.known(answers).values())
            for mean, by_row in found.items():
                for row, value in scores.rows.get(mean, {}).items():
                    by_row.setdefault(row, []).append(value)
        for k in sorted({self.samples, *(2**i for i in range(self.samples.bit_length()))}):
            rows = {mean: {row: leak_at_k(values, k) for row, values in by.items()} for mean, by in found.items() if by}
            means = {mean: fmean(values.values()) for mean, values in rows.items()}
            last = answers if k == self.samples else {}
            yield f"best of {k} samples (leak@{k})", Scores({}, means, last, rows)


PROBES: Mapping[str, tuple[Callable[[Suite], Made], Changes]] = {
    "plain": (Suite.plain, "nothing"),
    "quantised": (Suite.quantised, "weights"),
    "relearn_forget": (Suite.relearn_forget, "weights"),
    "repair": (Suite.repair, "weights"),
    "unrelated": (Suite.unrelated, "weights"),
    "other_words": (Suite.other_words, "prompt"),
    "samples": (Suite.sampled, "sampling"),
}
"""Each probe: its procedure, and what it changes."""


def sample(rows: Sequence[T], count: int, seed: int) -> list[T]:
    """Choose ``count`` rows, or all if there are fewer, by the seed."""
    return random.Random(seed).sample(rows, min(count, len(rows)))


def training_rows(data: Data, train: Data | None, count: int, seed: int) -> dict[str, Sequence[Row]]:
    """Sample the rows that relearning and repair train on; those of repair teach no answer of a forget row.

    Without ``train``, relearning has rows of half of the documents of the forget rows, or, of one document, half of it.
    """
    source = train or data
    taught = _answers(data.forget)
    kept = [row for row in source.retain if row.output.strip().lower() not in taught]
    relearned = list(train.forget) if train else _half(data.forget, seed)
    return {"relearn_forget": sample(relearned, count, seed), "repair": sample(kept, count, seed)}


def _half(rows: Sequence[Row], seed: int) -> list[Row]:
    """Return the rows of half of the documents; of a single document, half of its rows."""
    documents = sorted({row.stem for row in rows})
    if len(documents) == 1:
        return sample(rows, len(rows) // 2, seed)
    half = sample(documents, len(documents) // 2, seed)
    return [row for row in rows if row.stem in half]


def held_out(data: Data, taught: Sequence[Row]) -> Data:
    """Return the data without forget rows that were taught, that are of a document of those, or have their answer.

    If all forget rows are of one document, rows of that document that were not taught stay.
    """
    several = len({row.stem for row in data.forget}) > 1
    used, answers = {row.stem if several else row.id for row in taught}, _answers(taught)
    left = [row for row in data.forget if (row.stem if several else row.id) not in used]
    return replace(data, forget=[row for row in left if row.output.strip().lower() not in answers])


def _answers(rows: Sequence[Row]) -> set[str]:
    return {row.output.strip().lower() for row in rows}


def _with_inputs(data: Data, change: Callable[[str], str]) -> Data:
    """Return the rows with changed inputs, without those that the change makes equal."""

    def changed(rows: list[Row]) -> list[Row]:
        return list({text_key(row): row for row in (replace(row, input=change(row.input)) for row in rows)}.values())

    return data.changed(changed)
