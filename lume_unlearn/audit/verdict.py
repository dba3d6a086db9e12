"""`verdict`: are the forget rows gone, and was the rest kept?"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lume_tasks.data.published import documents_digest
from lume_tasks.data.rows import SIDES, Row
from lume_tasks.data.source import Data
from lume_tasks.errors import first_few
from lume_tasks.tasks.known import Matcher
from lume_unlearn.audit import rules
from lume_unlearn.audit.measure import Measured, in_parts, nearer, possible_numbers
from lume_unlearn.audit.probes import chosen_probes
from lume_unlearn.audit.rows import limited, rows_digest
from lume_unlearn.audit.steps import Found, found_by, loaders_of, steps_of
from lume_unlearn.audit.suite import PROBES, Probed
from lume_unlearn.checks import require_tokenizer
from lume_unlearn.data.rows import RowsLike, as_rows
from lume_unlearn.scoring.score import Scores, as_data, task_manager


@dataclass(frozen=True, repr=False)
class Verdict:
    """Whether the forget rows are gone, and the evidence. Texts are not redacted; `write_verdict` redacts them."""

    status: rules.Status
    """"gone", "not gone" or "cannot be told"."""
    reasons: list[str]
    """Sentences, the most important first."""
    kept: bool
    """Whether enough of the retain rows known before are known now."""
    rows: list[dict[str, Any]]
    """For each forget row: the ``row``; the answers ``before`` and ``now``; ``known_before``; ``known_now``;
    ``known_in``: names of the probes in which the model gives it away; ``excused``: whether a right answer is no
    evidence; ``rank``: the person's rank among invented ones in the swap test, None if it was not tested."""
    lost: list[str]
    """Ids of the retain rows that were known before and are not known now."""
    counts: dict[str, dict[str, int]]
    """Side to the number of ``rows``, and of those known ``before`` and ``now``."""
    probes: dict[str, dict[str, Any]]
    """Title to ``probe``, its name; ``forget`` and ``retain``: [rows known in it, rows judged in it]. For the rows that
    `counted` has: ``queries``, the number of answers to them; ``leaks``, how many it gives away; ``upper``, the upper
    95 % limit of the share that it gives away."""
    swaps: dict[str, dict[str, Any]]
    """``before``, ``now`` and, if there is one, ``control`` to `Swapped.summary`; empty if nothing can be tested."""
    uninformative: list[str]
    """Probes in which the model fails on retain rows, too."""
    not_run: list[str]
    """Names of the probes that were not run."""
    nearer: tuple[int, int] | None
    """Number of forget rows whose right answer is nearer in likelihood to the control than to the target, and number of
    rows compared; None without a control."""
    of_others: int
    """Number of forget rows that the model answers with a fact of a retain row: wrong, but no leak."""
    numbers: dict[str, float]
    """All numbers of the unlearned model and, with the suffix ``_before``, of the target."""
    unmet: list[str] = field(default_factory=list)
    """Required conditions that do not hold."""
    earlier: list[rules.Earlier] = field(default_factory=list)
    """Results of the unlearned model for each earlier request."""
    models: dict[str, dict[str, str]] = field(default_factory=dict)
    """``before``, ``now`` and ``control``: see `fingerprint`."""
    options: dict[str, Any] = field(default_factory=dict)
    data_sha256: dict[str, str] = field(default_factory=dict)
    retain: list[Row] = field(default_factory=list)
    answers: dict[str, dict[str, str]] = field(default_factory=dict)
    """Probe to row id to the generated text."""

    @property
    def counted(self) -> list[dict[str, Any]]:
        """The `rows` that were known before, without those for which a right answer is no evidence."""
        return [row for row in self.rows if row["known_before"] and not row["excused"]]

    @property
    def given(self) -> int:
        """Number of `counted` rows that the model gives away, as asked or in a probe."""
        return sum(bool(row["known_in"]) for row in self.counted)

    @property
    def queries(self) -> int:
        """Number of answers to `counted` rows in informative probes."""
        return sum(probe["queries"] for title, probe in self.probes.items() if title not in self.uninformative)

    @property
    def _no_evidence(self) -> str:
        return "may be a guess" + (", or the control gives it too" if "control" in self.models else "")

    @property
    def headline(self) -> str:
        """The result in a few sentences, with an upper limit for leaks that were missed."""
        retain, counted = self.counts["retain"], self.counted
        text = f"{self.given} of {len(counted)} rows that were known before are given away"
        if left_out := self.counts["forget"]["before"] - len(counted):
            text += f" ({left_out} more do not count: a right answer {self._no_evidence})"
        text += f", in {self.queries} informative queries"
        if not self.given and self.queries:
            text += f" (95 % upper limit of the share of such rows: {rules.upper_limit(0, len(counted)):.0%})"
        now, before = (self.swaps.get(name, {}).get("forget") for name in ("now", "before"))
        if now:
            text += f". {rules.compared(now)} (factor a token {now['factor']:.2g}, "
            text += f"{now['low']:.2g} to {now['high']:.2g}; ideal: 1"
            text += f"; before: {before['factor']:.2g})" if before else ")"
        return f"{text}. Retain rows kept: {retain['before'] - len(self.lost)} of {retain['before']} that count."

    def __repr__(self) -> str:
        """Return `lines`, without texts of rows."""
        return "\n".join(self.lines())

    @property
    def exit_status(self) -> int:
        """0: gone and the rest kept; 1: not gone; 3: cannot be told, or a condition does not hold; 4: rest damaged."""
        return rules.EXIT[self.status] or (0 if self.kept else rules.DAMAGED) or 3 * bool(self.unmet)

    def lines(self) -> list[str]:
        """Return the verdict as lines of text, without texts of rows."""
        lines = [self.headline, f"Verdict: {self.status}", *self.reasons]
        if not self.kept:
            lines.append("The rest is damaged: too few of the retain rows that were known before are known now.")
        if self.lost:
            lines.append(f"Retain rows that were lost: {', '.join(first_few(self.lost, 5))}.")
        excused = [row["row"].id for row in self.rows if row["excused"] and (row["known_now"] or row["known_in"])]
        if excused:
            lines.append(
                f"Right, but no evidence, since the answer {self._no_evidence}: {', '.join(first_few(excused, 5))}."
            )
        if self.nearer:
            near, rows = self.nearer
            words = "the likelihood of the right answer is nearer to the control's than to the target's"
            lines.append(f"In {near} of {rows} rows, {words}.")
        if self.of_others:
            told = f"In {self.of_others} of {len(self.rows)} rows, the model answers with a fact of a retain row"
            lines.append(f"{told}: this is wrong, but does not leak these rows.")
        before = self.swaps.get("before", {}).get("forget")
        if before and before["factor"] < rules.ALIKE:
            alike = f"only {before['factor']:.2g} times as likely for the persons as for invented ones"
            lines.append(f"In the target, answers are {alike}: the swap test shows little; rely on the probes.")
        lines += [f"Required condition that does not hold: {condition}" for condition in self.unmet]
        lines += [f"Earlier request {i}: {one.line()}" for i, one in enumerate(self.earlier, 1)]
        if self.uninformative:
            fails = "In these probes the model also fails on retain rows, so only a leak in them counts"
            groups = Counter(self.probes[title]["probe"] for title in self.uninformative)
            lines.append(f"{fails}: {', '.join(f'{name} ({number})' for name, number in groups.items())}.")
        if self.not_run:
            lines.append(f"Probes that were not run: {', '.join(self.not_run)}.")
        return lines


def verdict(
    model: Any,
    tokenizer: Any,
    *,
    forget: RowsLike,
    retain: RowsLike,
    before: Any,
    control: Any = None,
    members: Sequence[str] = (),
    nonmembers: Sequence[str] = (),
    mmlu: str | None = None,
    split: str = "all",
    probes: Sequence[str] | None = None,
    tasks: Sequence[str] = (),
    require: Sequence[str] = (),
    forgotten: Sequence[RowsLike] = (),
    keep: float = rules.KEPT,
    controls: int = 99,
    limit: int = 0,
    chat: bool = True,
    batch_size: int = 64,
    seed: int = 0,
    resume: str | Path | None = None,
    after_each: Callable[[dict[str, Scores]], None] | None = None,
    **options: Any,
) -> Verdict:
    """Score a model before and after unlearning, run probes on the unlearned one, and apply the rules (`rules.decide`).

    The plan with an estimate of the minutes is printed first.

    Args:
        model: the unlearned model, of transformers or PEFT, on the device to score and train on; it is not changed.
            ``model``, ``before`` and ``control`` may also be a `Loader`, a function without arguments that returns
            model and tokenizer; then one model at a time is in memory.
        tokenizer: its tokenizer.
        forget: rows that must be gone (see `as_rows`).
        retain: rows that must be kept.
        before: the target, which knew the rows.
        control: a model that never saw the forget rows (the one before fine-tuning, or a retrained one). It goes
            through the same probes; rows that it gives away as well are no evidence.
        members: texts that the model was trained on, for the membership attack.
        nonmembers: texts that it was not trained on.
        mmlu: folder of MMLU, to score it as well.
        split: name of the rows' split, for messages.
        probes: names from `PROBES`; "plain" is always included.
        tasks: further tasks of the harness to score before and after.
        require: conditions on `Verdict.numbers`, such as "forget_knowledge<=0.05" or "retain_knowledge>=0.9".
        forgotten: rows of earlier requests, which must be gone as well; one entry a request.
        keep: share of the retain rows known before that must be known now.
        controls: invented persons that the swap test compares each person with.
        limit: most rows of each side, sampled with the seed; 0 for all.
        chat: ask questions of your own tasks through the chat template.
        batch_size: prompts of one scoring batch.
        seed: seeds the choice of rows, the sampling and the training.
        resume: a file that keeps the results of finished steps, so that the same call continues after an interruption.
            Delete it when the verdict is saved.
        after_each: called after each step with the scores of the unlearned model so far, "plain" first.
        **options: options of `Suite`: ``unrelated``, ``relearn_rows``, ``samples``, ...

    Raises:
        ConfigError: a wrong probe, task or condition. Conditions on means without rows, or on metrics of further tasks,
            are found when one model is measured.
        DataError: faulty rows.
    """
    require_tokenizer(tokenizer)
    documents = {"members": list(members), "nonmembers": list(nonmembers), "mmlu": mmlu, "split": split}
    everything = as_data({"forget": forget, "retain": retain, **documents})
    whole = limited(everything, limit, seed)
    data = in_parts(whole, tokenizer)
    wanted = wanted_probes(data, probes, require, tasks, {"seed": seed, **options})
    requests = [as_rows(rows, f"forgotten {number}") for number, rows in enumerate(forgotten, 1)]
    task_manager(tokenizer, data, tasks, chat).load(list(tasks))  # faults are found before the first score
    loaders = loaders_of({"before": before, "control": control, "now": model}, tokenizer, {"now": "model"})
    matcher = Matcher(data.rows, everything.retain)
    digests = {side: rows_digest(rows) for side, rows in whole.rows.items()}
    shared = {"controls": controls, "chat": chat, "batch_size": batch_size}
    recorded = {name: value for name, value in options.items() if isinstance(value, (int, float, str))}
    recorded = {**shared, "seed": seed, "limit": limit, "keep": keep, **recorded}
    labels = [row.task for rows in everything.rows.values() for row in rows]
    others = documents_digest([labels, everything.members, everything.nonmembers, [mmlu]])
    about = [digests, rows_digest(everything.retain), others, list(tasks), recorded, repr(options)]
    probing: dict[str, Any] = {"shared": shared, "seed": seed, "tasks": tasks, "matcher": matcher, **options}
    probing |= {"requests": requests, "retain": everything.retain, "about": about}
    stages = [one for role, load in loaders.items() for one in steps_of(role, load, data, wanted, **probing)]
    found = found_by(stages, loaders["now"], resume, after_each, require)
    return replace(made(data, matcher, found, require, keep, recorded), data_sha256=digests)


def wanted_probes(
    data: Data, probes: Sequence[str] | None, require: Sequence[str], tasks: Sequence[str], options: Mapping[str, Any]
) -> list[str]:
    """Return the probes to run besides "plain"; raise `ConfigError` for wrong probes or conditions."""
    rules.require_numbers(require, possible_numbers(data), tasks)
    return [name for name in chosen_probes(probes, data, **options) if name != "plain"]


def made(
    data: Data, matcher: Matcher, found: Found, require: Sequence[str], keep: float, options: dict[str, Any]
) -> Verdict:
    """Apply the rules to the results of the target, the unlearned model and, if there is one, the control."""
    measured = found.measured
    before, now, control = measured["before"], measured["now"], measured.get("control")
    on_now = found.probed.get("now", {}).items()
    scores = {title: one for title, one in on_now if one.asked.get("forget") and not one.control}
    knew, know = (matcher.known(one.plain.answers) for one in (before, now))
    guesses = matcher.guesses()
    knew["retain"] -= guesses["retain"]
    excused = {row for row in guesses["forget"] if not now.swapped.tied(row)}
    excused |= matcher.known(control.plain.answers)["forget"] if control else set()
    probed = {title: found_in(one, found.probed.get("control", {}).get(title)) for title, one in scores.items()}
    old, new = (one.plain.rows.get("forget_extraction_strength", {}) for one in (before, now))
    strengths = {row: (old[row], new[row]) for row in old.keys() & new.keys() & matcher.telling()}
    decision = rules.decide(knew, know, probed, strengths, swaps_of(measured), excused, found.earlier, keep)
    numbers = now.numbers | {f"{name}_before": value for name, value in before.numbers.items()}
    asked = {side: {row.id for row in data.rows[side]} for side in SIDES}
    judged = {"plain": rules.Found("nothing", know, asked, probe="plain"), **probed}
    if not rules.informative(judged["plain"], knew):
        decision.uninformative.insert(0, "plain")
    return Verdict(
        **vars(decision),
        rows=[
            judged_row(row, before, now, (knew, know), judged.values()) | {"excused": row.id in excused}
            for row in data.forget
        ],
        counts={side: {"rows": len(asked[side]), "before": len(knew[side]), "now": len(know[side])} for side in SIDES},
        probes={title: counted(probe, knew["forget"] - excused) for title, probe in judged.items()},
        swaps={role: one.swapped.summary() for role, one in measured.items()},
        nearer=nearer(measured),
        of_others=len(matcher.of_others(now.plain.answers)),
        not_run=[name for name in PROBES if name not in {"plain", *(one.probe for one in scores.values())}],
        numbers=numbers,
        unmet=rules.unmet(require, numbers),
        earlier=found.earlier,
        models={role: one.model for role, one in measured.items()},
        options=options,
        retain=data.retain,
        answers={title: dict(one.answers) for title, one in {"plain": now.plain, **scores}.items()},
    )


def judged_row(
    row: Row, before: Measured, now: Measured, known: tuple[rules.Known, rules.Known], probes: Iterable[rules.Found]
) -> dict[str, Any]:
    """Return the entry of `Verdict.rows` for a row, without ``excused``; ``known``: rows known before and now."""
    return {
        "row": row,
        "before": before.plain.answers[row.id],
        "now": now.plain.answers[row.id],
        "known_before": row.id in known[0]["forget"],
        "known_now": row.id in known[1]["forget"],
        "known_in": list(dict.fromkeys(probe.probe for probe in probes if row.id in probe.known["forget"])),
        "rank": now.swapped.ranks.get("forget", {}).get(row.id),
    }


def swaps_of(measured: Mapping[str, Measured]) -> rules.Swaps:
    """Return the swap tests of the target, the unlearned model and, if there is one, the control."""
    forget = {role: one.swapped.together.get("forget") for role, one in measured.items()}
    now = measured["now"].swapped
    retain = now.together.get("retain")
    found = rules.Swaps(forget["before"], forget["now"], retain, forget.get("control"), matched=now.matched)
    persons = now.persons.get("forget", {}).values()
    return replace(found, persons=sum(one.leak <= rules.TIED and one.low > found.bound for one in persons))


def found_in(probed: Probed, control: Probed | None) -> rules.Found:
    """Return the rows judged and known in a probe, without forget rows that a control knows in it as well."""
    known = {side: set(rows) for side, rows in probed.known.items()}
    if control:
        known["forget"] -= set(control.known["forget"])
    asked = {side: set(rows) for side, rows in probed.asked.items()}
    return rules.Found(probed.changes, known, asked, probed.queries, probed.probe)


def counted(probe: rules.Found, knew: set[str]) -> dict[str, Any]:
    """Return the entry of `Verdict.probes` for one probe; ``knew``: ids of `Verdict.counted`."""
    rows, leaks = len(probe.asked["forget"] & knew), len(probe.known["forget"] & knew)
    counts: dict[str, Any] = {"probe": probe.probe}
    counts |= {side: [len(probe.known[side]), len(probe.asked[side])] for side in SIDES}
    return counts | {"queries": probe.queries * rows, "leaks": leaks, "upper": rules.upper_limit(leaks, rows)}
