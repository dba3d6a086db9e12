"""`verdict`: is what was asked to be forgotten gone, and was the rest kept?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from statistics import fmean
from typing import Any

from lume_tasks.data.published import documents_digest
from lume_tasks.data.rows import SIDES, Row
from lume_tasks.data.source import Data
from lume_unlearn.audit import rules
from lume_unlearn.audit.probes import chosen_probes, limited, run_probes
from lume_unlearn.audit.suite import NEW_TOKENS, PROBES, Probed, generation, known_rows
from lume_unlearn.data.rows import RowsLike, as_rows
from lume_unlearn.model.fingerprint import fingerprint
from lume_unlearn.scoring.score import (
    MEANS,
    MEMORIZATION,
    Scores,
    as_data,
    check_tasks,
    memorization_tasks,
    score,
    tasks_for,
)


@dataclass(frozen=True)
class Measured:
    """One of the two models: its answers to the rows as given, and its numbers."""

    plain: Scores
    numbers: dict[str, float]
    """Means of `lume_score` with their intervals, `MEMORIZATION` of both sides, ``TASK METRIC`` of all other tasks."""
    model: dict[str, str]
    """See `fingerprint`."""


@dataclass(frozen=True, repr=False)
class Verdict:
    """Whether forget rows are gone, and all that it rests on. Texts are as they are: `write_verdict` redacts them."""

    status: rules.Status
    """"gone", "not gone" or "cannot be told"."""
    reasons: list[str]
    """Sentences, the most important first."""
    rows: list[dict[str, Any]]
    """Of each forget row ``row``, the answers ``before`` and ``now``, ``known_before``, ``known_now``, and
    ``known_in``: the probes in which the model answers it correctly."""
    lost: list[str]
    """Ids of the retain rows that were known before and are not known now."""
    not_judged: dict[str, list[str]]
    """Side to the ids of the rows whose answer is longer than what the model may generate."""
    counts: dict[str, dict[str, int]]
    """Side to the number of ``rows`` that are judged, and of those known ``before`` and ``now``."""
    probes: dict[str, dict[str, list[int]]]
    """Probe to side to [rows known in it, rows judged in it]."""
    uninformative: list[str]
    """Probes in which the model fails on retain rows, too."""
    not_run: list[str]
    """Names of the probes that were not run."""
    numbers: dict[str, float]
    """All numbers of the unlearned model and, with ``_before`` at the end, of the target."""
    unmet: list[str] = field(default_factory=list)
    """Required conditions that do not hold."""
    earlier: list[tuple[int, int]] = field(default_factory=list)
    """Of each earlier request, the rows known now, and all its rows."""
    models: dict[str, dict[str, str]] = field(default_factory=dict)
    """``before`` and ``now``: see `fingerprint`."""
    options: dict[str, Any] = field(default_factory=dict)
    data_sha256: dict[str, str] = field(default_factory=dict)
    retain: list[Row] = field(default_factory=list)

    @property
    def headline(self) -> str:
        """How many rows were known before, and are known now, or kept."""
        forget, retain = (self.counts[side] for side in SIDES)
        return (
            f"Forget rows known before: {forget['before']} of {forget['rows']}. Known now: {forget['now']}. "
            f"Retain rows known before: {retain['before']} of {retain['rows']}. "
            f"Kept: {retain['before'] - len(self.lost)}."
        )

    def __repr__(self) -> str:
        """Return `lines`, without texts of rows."""
        return "\n".join(self.lines())

    @property
    def exit_status(self) -> int:
        """0: gone, and all conditions hold; 1: not gone; 3: cannot be told, or gone and a condition does not hold."""
        return rules.EXIT[self.status] or 3 * bool(self.unmet)

    def lines(self) -> list[str]:
        """Return the verdict as lines of text, without texts of rows."""
        lines = [self.headline, f"Verdict: {self.status}", *self.reasons]
        if self.lost:
            lines.append(f"Retain rows that were lost: {rules.named(self.lost)}.")
        for side, rows in self.not_judged.items():
            if rows:
                lines.append(f"{side.capitalize()} rows longer than a generation, not judged: {rules.named(rows)}.")
        lines += [f"Required, but does not hold: {condition}" for condition in self.unmet]
        lines += [
            f"Earlier request {i}: {known} of {rows} rows known." for i, (known, rows) in enumerate(self.earlier, 1)
        ]
        if self.uninformative:
            fails = "Not informative, as the model fails on retain rows, too"
            lines.append(f"{fails}: {', '.join(self.uninformative)}.")
        if self.not_run:
            lines.append(f"Probes that were not run: {', '.join(self.not_run)}.")
        return [*lines, rules.CAUTION]


def verdict(
    model: Any,
    tokenizer: Any,
    *,
    forget: RowsLike,
    retain: RowsLike,
    before: Any,
    members: Sequence[str] = (),
    nonmembers: Sequence[str] = (),
    mmlu: str | None = None,
    split: str = "all",
    probes: Sequence[str] | None = None,
    tasks: Sequence[str] = (),
    require: Sequence[str] = (),
    forgotten: Sequence[RowsLike] = (),
    limit: int = 0,
    chat: bool = True,
    batch_size: int = 64,
    seed: int = 0,
    after_each: Callable[[dict[str, Scores]], None] | None = None,
    **options: Any,
) -> Verdict:
    """Score a model before and after unlearning, run probes on the unlearned one, and apply the rules (`rules.RULES`).

    Args:
        model: the unlearned model, of transformers or PEFT, on the device to score and train on; it stays as it was.
        tokenizer: its tokenizer.
        forget: rows that have to be gone (see `as_rows`).
        retain: rows that have to be kept.
        before: the target, which knew the rows; or what `measure` returned for it on the same rows and tasks, so that
            both models need not be in memory at once.
        members: texts that the model was trained on, for the membership attack.
        nonmembers: texts that it was not trained on.
        mmlu: folder of MMLU, to score it as well.
        split: name of the split that the rows are, for messages.
        probes: see `run_probes`; "plain" is always part of it. "gone" needs one that changes the prompt and one that
            changes the weights.
        tasks: further tasks of the harness to score before and after.
        require: conditions on `Verdict.numbers`, as "forget_knowledge<=0.05" or "retain_knowledge>=0.9".
        forgotten: rows of earlier requests, which must be gone as well; one entry a request.
        limit: rows of each side to use, chosen by the seed; 0 for all.
        chat: ask questions of your own tasks through the chat template.
        batch_size: prompts of one scoring batch.
        seed: of the chosen rows, the sampling and the training.
        after_each: called with the scores of the unlearned model so far, "plain" first, after each probe.
        **options: of `run_probes`: ``unrelated``, ``relearn_rows``, ``samples``, ...

    Raises:
        ConfigError: a probe, task or condition that is wrong.
        DataError: faulty rows.
    """
    documents = {"members": list(members), "nonmembers": list(nonmembers), "mmlu": mmlu, "split": split}
    data = limited(as_data({"forget": forget, "retain": retain, **documents}), limit, seed)
    wanted = wanted_probes(data, probes, require, {"seed": seed, **options})
    requests = [as_rows(rows, f"forgotten {number}") for number, rows in enumerate(forgotten, 1)]
    check_tasks(tokenizer, data, tasks, chat)
    shared: dict[str, Any] = {"chat": chat, "batch_size": batch_size}
    if not isinstance(before, Measured):
        before = measure(before, tokenizer, data, tasks=tasks, **shared)
    now = measure(model, tokenizer, data, tasks=tasks, **shared)
    note = None if after_each is None else lambda found: after_each({"plain": now.plain, **found})
    found = run_probes(model, tokenizer, data, wanted, seed=seed, after_each=note, **shared, **options)
    earlier = [known_of(model, tokenizer, rows, **shared) for rows in requests]
    scores = {title: probed for title, probed in found.items() if probed.answers and not probed.control}
    recorded = {name: value for name, value in options.items() if isinstance(value, (int, float, str))}
    return made(data, tokenizer, before, now, scores, earlier, require, {**shared, "seed": seed, **recorded})


def wanted_probes(
    data: Data, probes: Sequence[str] | None, require: Sequence[str], options: Mapping[str, Any]
) -> list[str]:
    """Return the probes to run beside "plain"; raise `ConfigError` for probes or conditions that are wrong."""
    for condition in require:
        rules.parse_condition(condition)
    known = {name: options[name] for name in ("train", "unrelated", "relearn_rows", "seed") if name in options}
    return [name for name in chosen_probes(probes, data, **known) if name != "plain"]


def measure(
    model: Any, tokenizer: Any, data: Data, *, tasks: Sequence[str] = (), chat: bool = True, batch_size: int = 64
) -> Measured:
    """Score a model on the rows as given, with memorisation, and the attack and MMLU if there is data for them."""
    shared: dict[str, Any] = {"chat": chat, "batch_size": batch_size}
    own = [*tasks_for(data), *memorization_tasks(data)]
    plain = score(model, tokenizer, data, tasks=own, gen_kwargs=generation(tokenizer, data), **shared)
    ends = ("", "_low", "_high")
    values = {f"{mean}{end}": plain.metric("lume_score", f"{mean}{end}") for mean in MEANS for end in ends}
    levels = (f"{side}_{level}" for side in SIDES for level in MEMORIZATION)
    values |= {level: fmean(plain.rows[level].values()) for level in levels if plain.rows.get(level)}
    results = dict(plain.results["results"])
    if tasks:  # with their own generation
        results |= score(model, tokenizer, data, tasks=tasks, **shared).results["results"]
    for task in ("lume_mia", "lume_mmlu", *tasks):
        for key, value in results.get(task, {}).items():
            if isinstance(value, float) and isfinite(value):
                values[f"{task} {key.removesuffix(',none')}"] = value
    numbers = {name: value for name, value in values.items() if value is not None}
    return Measured(plain, numbers, fingerprint(model))


def known_of(model: Any, tokenizer: Any, rows: list[Row], **options: Any) -> tuple[int, int]:
    """Count the rows of an earlier request that the model knows; return this number and that of all its rows."""
    data = Data(rows, [])
    scores = score(model, tokenizer, data, gen_kwargs=generation(tokenizer, data), **options)
    return len(known_rows(data, scores.answers)["forget"]), len(rows)


def made(
    data: Data,
    tokenizer: Any,
    before: Measured,
    now: Measured,
    scores: Mapping[str, Probed],
    earlier: list[tuple[int, int]],
    require: Sequence[str],
    options: dict[str, Any],
) -> Verdict:
    """Apply the rules to what was measured."""
    fits = data.changed(lambda rows: [row for row in rows if len(tokenizer.encode(row.output)) <= NEW_TOKENS])
    judged = {side: {row.id for row in rows} for side, rows in fits.rows.items()}
    not_judged = {side: [row.id for row in rows if row.id not in judged[side]] for side, rows in data.rows.items()}
    knew, know = (known_rows(fits, measured.plain.answers) for measured in (before, now))
    found = {title.removeprefix("held out, "): found_in(fits, probed) for title, probed in scores.items()}
    old, new = (measured.plain.rows.get("forget_extraction_strength", {}) for measured in (before, now))
    strengths = {row: (old[row], new[row]) for row in old.keys() & new.keys()}
    decision = rules.decide(knew, know, found, strengths, not_judged["forget"], earlier)
    numbers = now.numbers | {f"{name}_before": value for name, value in before.numbers.items()}
    counts = {side: {"rows": len(judged[side]), "before": len(knew[side]), "now": len(know[side])} for side in SIDES}
    return Verdict(
        **vars(decision),
        rows=[
            {
                "row": row,
                "before": before.plain.answers[row.id],
                "now": now.plain.answers[row.id],
                "known_before": row.id in knew["forget"],
                "known_now": row.id in know["forget"],
                "known_in": [title for title, probe in found.items() if row.id in probe.known["forget"]],
            }
            for row in data.forget
        ],
        not_judged=not_judged,
        counts=counts,
        probes={
            title: {side: [len(probe.known[side]), len(probe.asked[side])] for side in SIDES}
            for title, probe in found.items()
        },
        not_run=[name for name in PROBES if name not in {"plain", *(probed.probe for probed in scores.values())}],
        numbers=numbers,
        unmet=rules.unmet(require, numbers),
        earlier=earlier,
        models={"before": before.model, "now": now.model},
        options=options,
        data_sha256={
            side: documents_digest([row.id, row.input, row.output] for row in rows) for side, rows in data.rows.items()
        },
        retain=data.retain,
    )


def found_in(data: Data, probed: Probed) -> rules.Found:
    """Return which rows the model knows in a probe, of those that are judged in it."""
    asked = {side: {row.id for row in rows} & probed.answers.keys() for side, rows in data.rows.items()}
    return rules.Found(probed.changes, known_rows(data, probed.answers), asked)
