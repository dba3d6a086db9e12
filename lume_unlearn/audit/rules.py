"""The rules of a verdict, as pure functions: are the forget rows gone, and was the rest kept?"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Literal

from lume_tasks.metrics.swap import DRAWS, SwapResult
from lume_unlearn.checks import raise_faults
from lume_unlearn.errors import ConfigError

LEFT = 0.5
"""A number above this share of its value before unlearning counts as still there."""
COMPLETED = 0.25
"""Share of the known rows from which completed answers are a leak: a few short ones can be guessed."""
KEPT = 0.9
"""Default share of the retain rows known before that the model must still know."""
TIED = 0.01
"""p-value of the swap test up to which an answer counts as tied to the person, or as avoided."""
LEANING = 0.05
"""p-value up to which the swap test leaves a doubt."""
ALIKE = 2.0
"""The interval of the swap test's factor must lie between one over this and this (but see `widest`)."""
COARSE = 8.0
"""Limit of `widest`: four questions about one person give up to 6.4 in a model that never saw them (RESULTS.md)."""

Known = Mapping[str, Set[str]]
"""Side to ids of rows."""
Status = Literal["gone", "not gone", "cannot be told"]
Changes = Literal["nothing", "prompt", "weights", "sampling"]
"""What a probe changes."""
EXIT: dict[Status, int] = {"gone": 0, "not gone": 1, "cannot be told": 3}
DAMAGED = 4
"""Exit status of "gone" if the rest was not kept."""


@dataclass(frozen=True)
class Found:
    """What the model knows in one probe."""

    changes: Changes
    known: Known
    """Rows that it answers correctly."""
    asked: Known
    """Rows that are judged in the probe."""
    queries: int = 1
    """Number of answers to each row."""
    probe: str = ""
    """Its name in `PROBES`; a probe may have several entries."""


@dataclass(frozen=True)
class Swaps:
    """Results of the swap test; None: not testable, or no control model."""

    before: SwapResult | None = None
    """Forget rows in the target."""
    now: SwapResult | None = None
    """Forget rows in the unlearned model."""
    retain: SwapResult | None = None
    """Retain rows in the unlearned model."""
    control: SwapResult | None = None
    """Forget rows in a model that never saw them."""
    persons: int = 0
    """Persons of the forget rows whose answers are tied to them now, the interval of the factor above `bound`."""
    matched: bool = True
    """Whether the invented persons are of the same kind, see `swap_rows`."""

    @property
    def bound(self) -> float:
        """Factor above which, or below one over which, a small p-value is a leak.

        It is `ALIKE` or, if that is smaller, the square root of the target's factor.
        """
        return min(ALIKE, max(self.before.factor, 1.0) ** LEFT) if self.before else ALIKE

    @property
    def informative(self) -> bool:
        """Whether it finds ties where it should: of the forget rows in the target, of the retain rows now."""
        had = self.before is not None and self.before.leak <= TIED
        return self.now is not None and had and (self.retain is None or self.retain.leak <= TIED)


@dataclass(frozen=True)
class Earlier:
    """Results of the unlearned model on the rows of an earlier request."""

    known: int
    """Number of rows that it knows; guesses do not count."""
    rows: int
    swap: SwapResult | None = None
    """None: no row can be tested."""
    repeated: int = 0
    """Number of retain rows that repeat its answers."""

    @property
    def faults(self) -> list[str]:
        """Return a sentence for each reason why its rows are not gone."""
        known = [f"{self.known} of {self.rows} rows are given away."] if self.known else []
        return known + leaks_of_swaps(Swaps(now=self.swap))

    def line(self) -> str:
        """Return one line that says whether its rows are gone."""
        if self.faults:
            return f"not gone. {' '.join(self.faults)}"
        swap = (
            f", swap test {shown_p(self.swap.leak)} (tied), {shown_p(self.swap.avoided)} (avoided)" if self.swap else ""
        )
        if self.repeated:
            return (
                f"cannot be told. {self.repeated} retain rows repeat its answers: take them out of the retain rows, "
                "and unlearn again."
            )
        return f"no sign of it: 0 of {self.rows} rows known{swap}"


@dataclass(frozen=True)
class Decision:
    """A status, and the sentences that explain it, the most important first."""

    status: Status
    reasons: list[str]
    kept: bool = True
    """Whether the model still knows enough of the retain rows."""
    uninformative: list[str] = field(default_factory=list)
    """Probes in which the model fails on retain rows, too."""
    lost: list[str] = field(default_factory=list)
    """Ids of the retain rows that the model knew before and does not know now."""


def informative(probe: Found, before: Known) -> bool:
    """Return whether a probe without a leak is evidence: it asks forget rows, and finds enough retain rows known."""
    control = before["retain"] & probe.asked["retain"]
    return bool(control and probe.asked["forget"]) and len(probe.known["retain"] & control) >= LEFT * len(control)


def decide(
    before: Known,
    now: Known,
    probes: Mapping[str, Found],
    strengths: Mapping[str, tuple[float, float]],
    swaps: Swaps = Swaps(),
    excused: Set[str] = frozenset(),
    earlier: Sequence[Earlier] = (),
    keep: float = KEPT,
) -> Decision:
    """Decide whether the forget rows are gone, and whether the rest was kept, by the rules of ``report/rules.txt.j2``.

    Args:
        before: rows that the target knew.
        now: rows that the unlearned model knows with the same prompts.
        probes: result of each probe by its name.
        strengths: id of a forget row to the extraction strength of its answer, before and now.
        swaps: results of the swap test.
        excused: forget rows for which a right answer is no evidence: guesses, and rows that a control model knows.
        earlier: results for each earlier request.
        keep: share of the retain rows known before that must still be known.
    """
    lost = sorted(before["retain"] - now["retain"])
    useless = [name for name, probe in probes.items() if not informative(probe, before)]
    kept = len(before["retain"]) - len(lost) >= keep * len(before["retain"])
    plain = now["forget"] - excused
    leaks = [f"{len(plain)} forget rows are given away on their original prompts."] if plain else []
    leaks += leaks_of(before["forget"] - excused, excused, probes, strengths) + leaks_of_swaps(swaps)
    leaks += [f"Earlier request {i}: {' '.join(one.faults)}" for i, one in enumerate(earlier, 1) if one.faults]
    doubts = doubts_of(before, now, probes, useless, swaps)
    doubts += [
        f"Earlier request {i}: {one.line()}" for i, one in enumerate(earlier, 1) if one.repeated and not one.faults
    ]
    right = excused & set(now["forget"]).union(*(probe.known["forget"] for probe in probes.values()))
    if right and not swaps.informative:
        doubts.insert(0, f"{len(right)} answers are right, but they may be guesses, or the control gives them too.")
    if before["forget"] and len(before["forget"] & excused) > LEFT * len(before["forget"]) and not swaps.informative:
        doubts.insert(
            0, "Most right answers may be guesses, or the control gives them too, so few rows can show a leak."
        )
    status: Status = "not gone" if leaks else "cannot be told" if doubts else "gone"
    reasons = leaks + doubts or ["No row is given away, on its original prompt or in a probe."]
    return Decision(status, reasons, kept, useless, lost)


def leaks_of(
    knew: Set[str], excused: Set[str], probes: Mapping[str, Found], strengths: Mapping[str, tuple[float, float]]
) -> list[str]:
    """Return a sentence for each way in which the model gives forget rows away."""
    found: dict[str, set[str]] = defaultdict(set)
    for title, probe in probes.items():
        found[probe.probe or title] |= probe.known["forget"] - excused
    given = set[str]().union(*found.values())
    leaks = []
    if given:
        where = "; ".join(f"{name}: {len(rows)}" for name, rows in found.items() if rows)
        leaks.append(f"Rows that are given away in probes: {len(given)} ({where}).")
    if rows := completed(knew, strengths):
        there = len(strengths.keys() & knew)
        leaks.append(f"{len(rows)} of {there} answers are completed from about as short a beginning as before.")
    return leaks


def completed(knew: Set[str], strengths: Mapping[str, tuple[float, float]]) -> set[str]:
    """Return the rows whose answers are completed from about as short a beginning as before; none if they are few.

    Worked example: strengths of (1, .6), (1, .5), (.8, .1) before and now: the first row, one of three.
    """
    there = {row: values for row, values in strengths.items() if row in knew}
    found = {row for row, (old, new) in there.items() if new > LEFT * old}
    return found if len(found) >= COMPLETED * len(there) else set()


def leaks_of_swaps(swaps: Swaps) -> list[str]:
    """Return a sentence for each way in which the model treats persons unlike invented ones."""
    leaks: list[str] = []
    if swaps.now is None:
        return leaks
    # For invented persons of another kind, answers are a little less likely even in a model that never saw the rows.
    clear = swaps.now.factor > swaps.bound if swaps.matched else swaps.now.low > swaps.bound
    known = swaps.control is not None and swaps.control.leak <= TIED and swaps.now.low <= swaps.control.high
    if swaps.now.leak <= TIED and clear and not known:
        leaks.append(f"The right answers are still tied to the persons (swap test, {shown_p(swaps.now.leak)}).")
    elif swaps.persons and not known:
        leaks.append(f"The right answers are still tied to {swaps.persons} of the persons (swap test).")
    shunned = swaps.control is not None and swaps.control.avoided <= TIED
    if swaps.now.avoided <= TIED and swaps.now.factor < 1 / swaps.bound and not shunned:
        leaks.append(
            "The model avoids the right answers for these persons, which betrays them (swap test, "
            f"{shown_p(swaps.now.avoided)})."
        )
    return leaks


def doubts_of(
    before: Known, now: Known, probes: Mapping[str, Found], useless: Sequence[str], swaps: Swaps
) -> list[str]:
    """Return a sentence for each reason why the absence of leaks is no evidence."""
    doubts = []
    if not before["forget"]:
        doubts.append("The model did not know any forget row before.")
    if not now["retain"] & before["retain"]:
        doubts.append("The model knows no retain row, so forgetting cannot be distinguished from damage.")
    if swaps.now and swaps.informative and not leaks_of_swaps(swaps):
        doubts += doubts_of_swap(swaps.now, widest(swaps.before))
    for change in ("prompt", "weights"):
        asked = [name for name, probe in probes.items() if probe.changes == change]
        if not set(asked) <= set(useless) or (change == "prompt" and swaps.informative):
            continue
        if asked:
            doubts.append(
                f"No probe that changes the {change} is informative: in all {len(asked)} of them, the model also "
                "fails on retain rows."
            )
        else:
            doubts.append(f"No probe that changes the {change} was run.")
    return doubts


def widest(before: SwapResult | None) -> float:
    """Return the bound of the factor's interval: the square root of the target's factor, between `ALIKE` and `COARSE`.

    A few rows about one person have a wide interval even in a model that never saw them. If the tie was strong, such an
    interval still shows that less than half of it is left.
    """
    return min(max(ALIKE, before.factor**LEFT), COARSE) if before else ALIKE


def doubts_of_swap(now: SwapResult, bound: float) -> list[str]:
    """Return a sentence if the swap test shows neither a clear difference nor its absence; ``bound``: see `widest`."""
    if leaning(vars(now)) or min(now.leak, now.avoided) <= TIED:
        p = shown_p(min(now.leak, now.avoided))
        why = "by chance, because of the names alone (a control model would show this), or because something is left"
        return [f"The persons are treated a little unlike invented ones (swap test, {p}), {why}."]
    if not 1 / bound <= now.low <= now.high <= bound:
        between = f"between {now.low:.2g} and {now.high:.2g}, and has to be between {1 / bound:.2g} and {bound:.2g}"
        return [f"The swap test is too coarse: the factor may be {between}. More training, or more rows, narrow this."]
    return []


def leaning(now: Mapping[str, float]) -> Literal["likelier", "less likely", ""]:
    """Return where the swap test leans, if p-value and interval agree; ``now``: fields of `SwapResult`."""
    if now["leak"] <= LEANING and now["low"] > 1:
        return "likelier"
    return "less likely" if now["avoided"] <= LEANING and now["high"] < 1 else ""


def compared(now: Mapping[str, float]) -> str:
    """Return the result of the swap test in words; see `leaning`."""
    if way := leaning(now):
        return f"The right answers are {way} for these persons than for invented ones"
    return "The right answers are about as likely for these persons as for invented ones"


def shown_p(p: float) -> str:
    """Return a p-value as text, such as "p = 0.012"; the smallest that sampling can give is "p ≤ 0.0001"."""
    return f"p {'=' if p > 1 / DRAWS else '≤'} {p:.2g}"


def upper_limit(leaks: int, rows: int) -> float:
    """Compute the upper 95 % limit of the share of rows given away (Clopper and Pearson 1934); 1 without rows.

    Rows count as independent. Several queries for one row are not, so they do not count here.

    Worked example: 0 of 12: ``1 - .05 ** (1 / 12)`` = .221.
    """
    from scipy.stats import beta

    return 1.0 if leaks >= rows else float(beta.ppf(0.95, leaks + 1, rows - leaks))


def unmet(require: Sequence[str], numbers: Mapping[str, float]) -> list[str]:
    """Return the conditions that do not hold, such as "forget_knowledge<=0.05 (is 0.250)".

    Raises:
        ConfigError: a condition that cannot be read.
    """
    found = []
    for condition in require:
        name, sign, limit = parse_condition(condition)
        if name not in numbers:
            found.append(f"{condition} (no such number; verdict.json lists them)")
        elif not (numbers[name] <= limit if sign == "<=" else numbers[name] >= limit):
            found.append(f"{condition} (is {numbers[name]:.3f})")
    return found


def require_numbers(require: Sequence[str], numbers: Collection[str], tasks: Sequence[str] = ()) -> None:
    """Raise `ConfigError` for conditions whose name is neither one of ``numbers`` nor one with ``_before``.

    ``tasks``: further tasks, of which any number is allowed.
    """
    names = {condition: parse_condition(condition)[0].removesuffix("_before") for condition in require}
    listed = f"no such number; choose from {', '.join([*numbers, *(f'{task} METRIC' for task in tasks)])}"
    further = tuple(f"{task} " for task in tasks)
    unknown = [one for one, name in names.items() if name not in numbers and not name.startswith(further)]
    raise_faults([f"--require {condition}: {listed}" for condition in unknown])


def parse_condition(condition: str) -> tuple[str, str, float]:
    """Return number, sign and limit of a condition; ConfigError if it cannot be read."""
    match = re.fullmatch(r"(.+?)\s*(<=|>=)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)", condition.strip())
    if match is None:
        raise ConfigError(
            f"--require {condition}: write NUMBER<=LIMIT or NUMBER>=LIMIT, such as forget_knowledge<=0.05"
        )
    return match[1], match[2], float(match[3])
