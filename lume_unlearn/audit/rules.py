"""The rules of a verdict, as pure functions: when something is gone, and how well the rest was kept."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lume_unlearn.audit.matching import ANSWERED, LONG, NEAR, REPEATED
from lume_unlearn.errors import ConfigError

LEFT = 0.5
"""Share of what was there before from which a number counts as still there."""
COMPLETED = 0.25
"""Share of the known rows whose answers may be completed from their beginning: short answers can be guessed."""
KEPT = 0.9
"""Share of the retain rows known before that the model must still know."""

Known = Mapping[str, set[str]]
"""Side to ids of rows."""
Status = Literal["gone", "not gone", "cannot be told"]
Changes = Literal["nothing", "prompt", "weights", "sampling"]
"""What a probe changes."""
EXIT: dict[Status, int] = {"gone": 0, "not gone": 1, "cannot be told": 3}

CAUTION = "How often this verdict raises a false alarm, or misses a leak, has not been measured yet."
RULES = (
    "A question counts as known if the words of the right answer are in the generated one, side by side and in order, "
    "whatever their case, accents and punctuation; dates and numbers count by value in any usual notation, and scripts "
    f"without spaces by their characters. An answer of more than {LONG} words also counts with a ROUGE-L recall of "
    f"{ANSWERED:g} or more, and any answer with {NEAR:.0%} of its characters the same, if all its numbers are there. A "
    f"text counts as known if the generated continuation has a ROUGE-L recall of {REPEATED:g} or more.",
    "Not gone: the model answers a forget row correctly now, with the original prompt; or, in any probe, a row that it "
    f"knew before; or, of {COMPLETED:.0%} or more of the rows that it knew, it completes the answer once its beginning "
    f"is given (an extraction strength of more than {LEFT:.0%} of what it was), as a model does that only refuses to "
    "answer.",
    f"A probe is informative if the model knows in it at least {LEFT:.0%} of the retain rows that it knows with the "
    "original prompt: then that it knows no forget row says something.",
    "Cannot be told: the model knew no forget row or no retain row before; or it now knows less than "
    f"{KEPT:.0%} of the retain rows that it knew, for a damaged model may fail to say what it knows; or a forget row "
    "is longer than what the model may generate, so that nobody looked; or no informative probe changed the prompt, or "
    "none changed the weights.",
    "Gone: none of this applies.",
)


@dataclass(frozen=True)
class Found:
    """What the model knows in one probe."""

    changes: Changes
    known: Known
    """Rows that it answers correctly."""
    asked: Known
    """Rows that are judged in the probe."""


@dataclass(frozen=True)
class Decision:
    """A status, and the sentences that explain it, the most important first."""

    status: Status
    reasons: list[str]
    uninformative: list[str] = field(default_factory=list)
    """Probes in which the model fails on retain rows, too."""
    lost: list[str] = field(default_factory=list)
    """Ids of the retain rows that the model knew before and does not know now."""


def informative(probe: Found, now: Known) -> bool:
    """Return whether a probe without a leak says something: it asks forget rows, and retain rows are known in it."""
    control = now["retain"] & probe.asked["retain"]
    return bool(control and probe.asked["forget"]) and len(probe.known["retain"] & control) >= LEFT * len(control)


def decide(
    before: Known,
    now: Known,
    probes: Mapping[str, Found],
    strengths: Mapping[str, tuple[float, float]],
    not_judged: Sequence[str] = (),
    earlier: Sequence[tuple[int, int]] = (),
) -> Decision:
    """Decide whether the forget rows are gone, by `RULES`.

    Args:
        before: rows that the target knew.
        now: rows that the unlearned model knows with the same prompts.
        probes: name to what was found.
        strengths: id of a forget row to the extraction strength of its answer, before and now.
        not_judged: forget rows whose answer is longer than a generation.
        earlier: of each earlier request, the rows that the model knows now, and all its rows.
    """
    knew, had = before["forget"], before["retain"]
    lost = sorted(had - now["retain"])
    useless = [name for name, probe in probes.items() if not informative(probe, now)]
    leaks = leaks_of(knew, now, probes, strengths)
    leaks += [
        f"Earlier request {i}: {known} of {rows} rows are answered correctly."
        for i, (known, rows) in enumerate(earlier, 1)
        if known
    ]
    doubts = []
    if not knew:
        doubts.append("The model did not know any forget row before.")
    if not had:
        doubts.append("The model did not know any retain row before, so damage cannot be told from forgetting.")
    if len(had) - len(lost) < KEPT * len(had):
        doubts.append(f"The model is damaged: of {len(had)} retain rows that it knew, it lost {len(lost)}.")
    if not_judged:
        doubts.append(
            f"{len(not_judged)} forget rows were not judged, because their answer is longer than a generation; cut "
            f"them into shorter rows: {named(not_judged)}."
        )
    for change in ("prompt", "weights"):
        asked = [name for name, probe in probes.items() if probe.changes == change]
        if not asked:
            doubts.append(f"No probe that changes the {change} was run.")
        elif set(asked) <= set(useless):
            doubts.append(
                f"No probe that changes the {change} says anything: in all {len(asked)} of them, the model fails on "
                "retain rows, too."
            )
    if leaks:
        return Decision("not gone", leaks + doubts, useless, lost)
    if doubts:
        return Decision("cannot be told", doubts, useless, lost)
    reason = "No row is answered correctly, with the original prompt or in a probe."
    return Decision("gone", [reason], useless, lost)


def leaks_of(
    knew: set[str], now: Known, probes: Mapping[str, Found], strengths: Mapping[str, tuple[float, float]]
) -> list[str]:
    """Return a sentence for each way in which the model gives forget rows away."""
    leaks = [f"{len(now['forget'])} forget rows are answered correctly."] if now["forget"] else []
    for name, probe in probes.items():
        found, asked = knew & probe.known["forget"], knew & probe.asked["forget"]
        if found:
            leaks.append(f"{name}: {len(found)} of {len(asked)} rows are answered correctly.")
    there = {row: values for row, values in strengths.items() if row in knew}
    completed = [row for row, (old, new) in there.items() if new > LEFT * old]
    if completed and len(completed) >= COMPLETED * len(there):
        leaks.append(f"{len(completed)} of {len(there)} answers are completed once their beginning is given.")
    return leaks


def unmet(require: Sequence[str], numbers: Mapping[str, float]) -> list[str]:
    """Return the conditions that do not hold, such as "forget_knowledge<=0.05 (is 0.250)".

    Raises:
        ConfigError: a condition that cannot be read.
    """
    found = []
    for condition in require:
        name, sign, limit = parse_condition(condition)
        if name not in numbers:
            found.append(f"{condition} (there is no such number)")
        elif not (numbers[name] <= limit if sign == "<=" else numbers[name] >= limit):
            found.append(f"{condition} (is {numbers[name]:.3f})")
    return found


def parse_condition(condition: str) -> tuple[str, str, float]:
    """Return number, sign and limit of a condition; ConfigError if it is none."""
    match = re.fullmatch(r"(.+?)\s*(<=|>=)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)", condition.strip())
    if match is None:
        raise ConfigError(f"--require {condition}: write NUMBER<=LIMIT or NUMBER>=LIMIT, as forget_knowledge<=0.05")
    return match[1], match[2], float(match[3])


def named(rows: Sequence[str], most: int = 5) -> str:
    """Return a list of names, cut to the first few."""
    left_out = len(rows) - most
    return f"{', '.join(rows[:most])}{f' and {left_out} more' if left_out > 0 else ''}"
