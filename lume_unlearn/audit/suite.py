"""The procedures of the probes: what each changes, and which rows it scores.

To add a probe, write a method of `Suite` that yields stages, and enter it into `PROBES`; one that changes the prompt
alone belongs to `prompts.py`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from statistics import fmean
from typing import Any, Literal

from lume_tasks.data.rows import SIDES, Row
from lume_tasks.data.source import Data
from lume_tasks.metrics.unlearning import leak_at_k
from lume_tasks.tasks.known import Matcher
from lume_unlearn.audit import prompts
from lume_unlearn.audit.prompts import PROMPTS, Asked
from lume_unlearn.audit.quantisation import quantised_copy
from lume_unlearn.audit.rows import POSITIVES, fewer, fitting, held_out, sample, training_rows
from lume_unlearn.audit.rules import ALIKE, TIED, Changes
from lume_unlearn.audit.stages import Loader, Stage, Work
from lume_unlearn.data.documents import text_rows
from lume_unlearn.scoring.score import MEANS, Scores, score, tasks_for, without_messages
from lume_unlearn.scoring.swap import swap_test
from lume_unlearn.training.relearning import BATCH_SIZE, points, relearning

SHORT = {"lume_gen_kwargs": True, "lume_short_answers": True}
"""Metadata that limits answers to the length that judging them needs."""

Results = dict[str, dict[str, Any]]
"""Title to the fields of `Probed`, as plain data."""


@dataclass(frozen=True, repr=False)
class Probed(Scores):
    """The scores of one probe, without the harness's results."""

    known: dict[str, list[str]] = field(default_factory=dict)
    """Side to the ids of the rows that the answers give away; empty without answers."""
    asked: dict[str, list[str]] = field(default_factory=dict)
    """Side to the ids of the rows for which answers were judged."""
    probe: str = "plain"
    """Its name in `PROBES`."""
    changes: Changes = "nothing"
    queries: int = 1
    """Number of answers to each row."""
    control: bool = False
    """Whether these are scores before the change, for comparison, such as of held-out rows before relearning."""


@dataclass(frozen=True)
class Suite:
    """The audited model, and how it is probed.

    Probes that change the prompt ask all forget rows and as many retain rows, but at least `FEWEST`. All copies are
    trained on the same number of rows (or texts, if there are enough) for the same number of steps: all weights, AdamW,
    8 rows a step (see `relearning`).
    """

    load: Loader
    data: Data
    train: Data | None = None
    """Rows of other documents to train the copies on. Default: a sample of ``data``; then forget rows of the
    sampled documents are not scored (see `held_out`)."""
    unrelated: Sequence[str | Row] = ()
    """Texts for the probe ``unrelated``."""
    relearn_rows: int = 32
    """Rows that a copy is trained on, at most half of the forget rows if they come from ``data``."""
    relearn_steps: int = 20
    """Optimiser steps of 8 rows to train a copy; it is also scored after 5, 10, 20, ... steps."""
    relearn_rate: float = 1e-4
    """Learning rate."""
    loss_on: Literal["text", "answer"] = "text"
    """Labelled tokens: the whole text, or the answer and EOS."""
    samples: int = 8
    """Answers to sample for each row."""
    temperature: float = 1.0
    top_p: float = 1.0
    """Share of the probability to sample from; 1 for all of it."""
    controls: int = 99
    """Invented persons for each person in ``multiple_choice``."""
    chat: bool = True
    """See `score`."""
    batch_size: int = 64
    seed: int = 0
    """Seed of the choice of rows, their order and the sampling."""
    tasks: Sequence[str] | None = None
    """Tasks to score instead of those that generate answers to the rows; `lume_swap` tests the forget rows alone."""
    matcher: Matcher | None = None
    """Judges which rows an answer gives away; None: a matcher of the rows of ``data``."""

    @cached_property
    def judge(self) -> Matcher:
        """`matcher`, or the default."""
        return self.matcher or Matcher(self.data.rows)

    @cached_property
    def rows(self) -> dict[str, Sequence[Row]]:
        """Rows to train on, for each probe that trains a copy."""
        texts = sample(text_rows(self.unrelated), self.relearn_rows, self.seed)
        return training_rows(self.data, self.train, self.relearn_rows, self.seed) | {"unrelated": texts}

    def stages(self, chosen: Sequence[str]) -> Iterator[Stage]:
        """Yield the steps of the probes, in the given order."""
        for name in chosen:
            yield from PROBES[name][0](self)

    def prompts(self, probe: str) -> Iterator[Stage]:
        """Score the changed prompts of a probe of `PROMPTS`."""
        for asked in prompts.prompts_of(probe, self.data):
            yield self._stage(probe, asked.title, partial(self.ask, asked), Work(self._few(asked.data)))

    def score(self, data: Data, model: Any = None, attack: bool = False, own: bool = False, **options: Any) -> Probed:
        """Score rows with the model or a changed copy; with ``attack`` also run the membership attack.

        ``own``: the right answers are the outputs of ``data``, not those of the audited rows.
        """
        loaded, tokenizer = self.load()
        there = [task for task in tasks_for(data) if task != "lume_mmlu" and (attack or task != "lume_mia")]
        # The warnings of the attack were already logged for the unchanged model.
        with without_messages("lume_tasks", *([] if model is None else ["lume_mia: "])):
            tasks = there if self.tasks is None else self.tasks
            shared: dict[str, Any] = {"chat": self.chat, "batch_size": self.batch_size, "tasks": tasks, "quiet": True}
            shared["metadata"] = SHORT | {"lume_swap_rows": [row.id for row in data.forget]}
            scores = score(loaded if model is None else model, tokenizer, data, **shared, **options)
        return self.judged(scores, scores.answers, Matcher(data.rows) if own else self.judge)

    def judged(self, scores: Scores, answers: Mapping[str, str], matcher: Matcher) -> Probed:
        """Add the rows that the answers give away, and their shares as the means ``forget_known``, ``retain_known``."""
        asked = {side: [row.id for row in rows if row.id in answers] for side, rows in self.data.rows.items()}
        known = {side: sorted(found) for side, found in matcher.known(answers).items()}
        shares = {f"{side}_known": len(known[side]) / len(asked[side]) for side in SIDES if asked[side]}
        return Probed({}, scores.means | shares, dict(answers), scores.rows, known, asked)

    def ask(self, asked: Asked) -> Results:
        """Score changed prompts that can be asked, with `fewer` retain rows; nothing if a side has no rows."""
        data = fitting(fewer(asked.data, self.seed), *self.load(), self.chat)
        if not (data.forget and data.retain):
            return {}
        scores = self.score(data, own=asked.own)
        if asked.of:
            answers = {row: text for prompt, text in scores.answers.items() for row in asked.of.get(prompt, [prompt])}
            scores = self.judged(scores, answers, self.judge)
        return {asked.title: asdict(scores)}

    def plain(self) -> Iterator[Stage]:
        """Score the unchanged rows."""
        yield self._scored("plain", "plain", lambda: self.score(self.data, attack=True))

    def quantised(self) -> Iterator[Stage]:
        """Score with weights of 8 and of 4 bits."""

        def quantised(bits: Any) -> Results:
            model, how = quantised_copy(self.load()[0], bits)
            return {f"{bits}-bit ({how})": asdict(self.score(self.data, model, attack=True))}

        for bits in (8, 4):
            yield self._stage("quantised", f"{bits}-bit", partial(quantised, bits), self._work())

    def relearn_forget(self) -> Iterator[Stage]:
        """Train a copy on forget rows, then score forget rows of other documents; also score these before training."""
        rows = self.rows["relearn_forget"]
        data, title = held_out(self.data, rows), f"relearned on {len(rows)} forget rows"
        if len(data.forget) < len(self.data.forget):
            before = f"held out, before it was {title}"
            yield self._scored("relearn_forget", before, lambda: replace(self.score(data), control=True))
            title = f"held out, {title}"
        yield self._trained("relearn_forget", title, data)

    def repair(self) -> Iterator[Stage]:
        """Train a copy on retain rows, then score."""
        yield self._trained("repair", f"repaired on {len(self.rows['repair'])} retain rows", self.data)

    def unrelated_texts(self) -> Iterator[Stage]:
        """Train a copy on texts that have nothing to do with the rows, then score."""
        yield self._trained("unrelated", f"trained on {len(self.rows['unrelated'])} unrelated texts", self.data)

    def own_words(self) -> Iterator[Stage]:
        """Let a chat model rephrase each question, and ask it the rephrased questions that still ask the same."""
        asked = prompts.rewriting(self.data)

        def in_own_words() -> Results:
            if not getattr(self.load()[1], "chat_template", None):
                return {}
            found = self.ask(asked)
            answers = found[asked.title]["answers"] if found else {}
            own = prompts.in_own_words(self.data, answers)
            return found | (self.ask(own) if own.data.forget and own.data.retain else {})

        if self.chat and asked.data.forget and asked.data.retain:
            yield self._stage("own_words", asked.title, in_own_words, Work(self._few(asked.data), 2))

    def multiple_choice(self) -> Iterator[Stage]:
        """Run the swap test on the right letter: is the right one of four options likelier for its person?

        If so, the person's rows count as given away. A right letter found by elimination or plausibility is no leak.
        """
        data, made = prompts.multiple_choice(self.data, self.seed)
        offered = data.changed(lambda rows: [row for row in rows if row.id in made])
        offered = replace(offered, retain=sample(offered.retain, POSITIVES, self.seed))
        rows = [*offered.forget, *offered.retain]

        def tested() -> Results:
            options: dict[str, Any] = {"controls": self.controls, "chat": self.chat, "batch_size": self.batch_size}
            found = swap_test(*self.load(), data, rows=[row.id for row in rows], **options)
            tests = [test for persons in found.persons.values() for test in persons.items()]
            tied = {person for person, one in tests if one.leak <= TIED and one.low > ALIKE}
            asked = {side: list(found.ranks.get(side, {})) for side in SIDES}
            of = {row.id: row.subject for row in rows}
            known = {side: [row for row in ids if of[row] in tied] for side, ids in asked.items()}
            return {"multiple choice": asdict(Probed(known=known, asked=asked))}

        if offered.forget and offered.retain:
            read = [replace(row, input=row.question) for row in rows]
            work = Work(read=read, readings=self.controls + 1)
            yield self._stage("multiple_choice", "multiple choice", tested, work)

    def sampled(self) -> Iterator[Stage]:
        """Sample several answers to each row, and keep a right one if there is one."""
        yield self._stage("samples", f"{self.samples} samples", self._samples, self._work(times=self.samples))

    def _samples(self) -> Results:
        found: dict[str, dict[str, list[float]]] = {}  # metric to row id to its value in each sample
        answers: dict[str, str] = {}
        given: set[str] = set()
        for number in range(self.samples):
            sampling = {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0, "do_sample": True}
            scores = self.score(self.data, gen_kwargs=sampling, seed=self.seed + number)
            answers |= {row: text for row, text in scores.answers.items() if row not in given}
            known = {side: set(rows) for side, rows in scores.known.items()}
            given |= set().union(*known.values())
            values = {mean: scores.rows[mean] for mean in MEANS if mean in scores.rows}
            for side, rows in scores.asked.items():
                values[f"{side}_known"] = {row: float(row in known[side]) for row in rows}
            for name, one in values.items():
                for row, value in one.items():
                    found.setdefault(name, {}).setdefault(row, []).append(value)
        best: Results = {}
        for k in sorted({self.samples, *(2**i for i in range(self.samples.bit_length()))}):
            by_row = {name: {row: leak_at_k(values, k) for row, values in of.items()} for name, of in found.items()}
            means = {name: fmean(values.values()) for name, values in by_row.items() if values}
            expected = Scores({}, means, {}, by_row)
            last = self.judged(expected, answers, self.judge) if k == self.samples else Probed(**vars(expected))
            best[f"best of {k} samples (leak@{k})"] = asdict(replace(last, means=means, queries=self.samples))
        return best

    def _trained(self, probe: str, title: str, data: Data) -> Stage:
        """Return a stage that scores a copy while it is trained on the rows of a probe."""
        rows, steps = self.rows[probe], self.relearn_steps

        def trained() -> Results:
            options: dict[str, Any] = {"loss_on": self.loss_on, "chat": self.chat, "seed": self.seed}
            options |= {"steps": steps, "learning_rate": self.relearn_rate}
            found: Results = {}
            for step, model in relearning(*self.load(), rows, **options):
                last = step == steps
                found[title if last else f"{title}, step {step}"] = asdict(self.score(data, model, attack=last))
            return found

        epochs = steps / max(-(-len(rows) // BATCH_SIZE), 1)
        return self._stage(probe, title, trained, self._work(data, len(points(steps)), rows, epochs))

    def _scored(self, probe: str, title: str, scored: Callable[[], Probed]) -> Stage:
        return self._stage(probe, title, lambda: {title: asdict(scored())}, self._work())

    def _stage(self, probe: str, title: str, run: Callable[[], Results], work: Work) -> Stage:
        labels = {"probe": probe, "changes": PROBES[probe][1]}
        return Stage(probe, title, lambda: {name: one | labels for name, one in run().items()}, work)

    def _work(self, data: Data | None = None, times: int = 1, trained: Sequence[Row] = (), epochs: float = 0) -> Work:
        rows = (data or self.data).rows
        return Work([*rows["forget"], *rows["retain"]], times, trained=trained, epochs=epochs)

    def _few(self, data: Data) -> list[Row]:
        return [*data.forget, *fewer(data, self.seed).retain]


PROBES: Mapping[str, tuple[Callable[[Suite], Iterator[Stage]], Changes]] = {
    "plain": (Suite.plain, "nothing"),
    **{name: (partial(Suite.prompts, probe=name), "prompt") for name in PROMPTS},
    "own_words": (Suite.own_words, "prompt"),
    "multiple_choice": (Suite.multiple_choice, "prompt"),
    "quantised": (Suite.quantised, "weights"),
    "repair": (Suite.repair, "weights"),
    "relearn_forget": (Suite.relearn_forget, "weights"),
    "unrelated": (Suite.unrelated_texts, "weights"),
    "samples": (Suite.sampled, "sampling"),
}
"""Each probe: its procedure, and what it changes."""
