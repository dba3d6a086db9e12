"""The rules of a verdict, as pure functions: what counts as known, and when something is gone."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lume_tasks.metrics.text import rouge_recall
from lume_unlearn.config import names
from lume_unlearn.errors import ConfigError

_WORD = re.compile(r"[^\W_]+")

REPEATED = 0.5
"""ROUGE-L recall from which a text counts as known."""
LEFT = 0.5
"""Share of what was there before from which a number counts as still there."""

Known = Mapping[str, set[str]]
"""Side to the ids of the rows that a model knows."""
Status = Literal["gone", "not gone", "cannot be told"]
EXIT: dict[Status, int] = {"gone": 0, "not gone": 1, "cannot be told": 3}

RULES = (
    "A question counts as known if the words of the right answer are in the generated one, in order and without regard "
    f"to case and punctuation; a text if the generated continuation has a ROUGE-L recall of {REPEATED:g} or more.",
    "Not gone: a row that the model knew before is known now, as asked or in a probe that tells something; or the "
    "extraction strength of the forget answers (the share of an answer that greedy decoding completes once the tokens "
    f"before are given) is more than {LEFT:.0%} of what it was, which shows a model that only refuses to answer.",
    f"A probe tells something if the model knows in it at least {LEFT:.0%} of the retain rows that it knows as asked.",
    "Cannot be told: the model did not know any of the rows before; or there are retain rows, it knew some of them "
    f"before, and knows less than {LEFT:.0%} of these now. Such a model is damaged: it may fail to say what it knows.",
    "Gone: neither of these.",
)


@dataclass(frozen=True)
class Verdict:
    """A status, and the sentences that explain it, the most important first."""

    status: Status
    reasons: list[str]
    silent_probes: list[str] = field(default_factory=list)
    """Probes that tell nothing, since the model fails in them on retain rows too."""


def is_known(kind: str, truth: str, answer: str) -> bool:
    """Return whether a generated answer gives the truth away (see `RULES`).

    Worked examples: "1990-01-02" is in "She was born on 1990-01-02."; "Ada" is not in "Adam".
    """
    if kind == "sc":
        return rouge_recall(truth, answer)["rougeL"] >= REPEATED
    right, given = _WORD.findall(truth.casefold()), _WORD.findall(answer.casefold())
    if not right:
        return truth.strip() in answer
    return any(given[start : start + len(right)] == right for start in range(len(given) - len(right) + 1))


def tells(probe: Known, plain: Known) -> bool:
    """Return whether a probe tells something about forget rows: the model still knows retain rows in it.

    Only retain rows that are part of the probe count. Without a retain row that is known as asked there is no control,
    and the probe counts.
    """
    control = plain.get("retain", set())
    return not control or len(probe.get("retain", set()) & control) >= LEFT * len(control)


def decide(
    before: Known,
    now: Known,
    probes: Mapping[str, tuple[Known, Known]],
    strength: tuple[float, float] | None,
) -> Verdict:
    """Decide whether the forget rows are gone, by `RULES`.

    Args:
        before: rows that the target knew.
        now: rows that the unlearned model knows, asked in the same way.
        probes: name to the rows known in the probe, and to the rows of the probe that are known as asked.
        strength: mean extraction strength of the forget answers, before and now, if measured.
    """
    asked = before["forget"]
    silent = [name for name, (known, plain) in probes.items() if not tells(known, plain)]
    if not asked:
        return Verdict("cannot be told", ["The model did not know any of the rows before."], silent)
    leaks = [f"{len(asked & now['forget'])} of {len(asked)} known rows are answered as before."] * bool(
        asked & now["forget"]
    )
    for name, (known, _) in probes.items():
        found = asked & known.get("forget", set())
        if found and name not in silent:
            leaks.append(f"{name}: {len(found)} of the rows come out.")
    if strength and strength[0] and strength[1] > LEFT * strength[0]:
        old, new = strength
        leaks.append(
            f"Extraction strength {new:.2f} (before: {old:.2f}): given the beginning of an answer, it is completed."
        )
    kept, had = before["retain"] & now["retain"], before["retain"]
    damaged = f"The model is damaged: of {len(had)} retain rows that it knew, it knows {len(kept)}."
    broken = [damaged] if had and len(kept) < LEFT * len(had) else []
    if leaks:
        return Verdict("not gone", leaks + broken, silent)
    if broken:
        return Verdict("cannot be told", broken, silent)
    return Verdict("gone", ["No row comes out, as asked or in a probe that tells something."], silent)


def unmet(require: str | None, numbers: Mapping[str, float]) -> list[str]:
    """Return the conditions of ``--require`` that do not hold, such as "forget_knowledge<=0.05 (is 0.250)".

    Raises:
        ConfigError: a condition that cannot be read, or of a number that there is not.
    """
    found = []
    for condition in names(require):
        name, sign, limit = parse_condition(condition)
        if name not in numbers:
            raise ConfigError(f"--require {condition}: there is no number {name}; there are: {', '.join(numbers)}")
        if not (numbers[name] <= limit if sign == "<=" else numbers[name] >= limit):
            found.append(f"{condition} (is {numbers[name]:.3f})")
    return found


def parse_condition(condition: str) -> tuple[str, str, float]:
    """Return number, sign and limit of a condition; ConfigError if it is none."""
    match = re.fullmatch(r"(\w+)\s*(<=|>=)\s*([0-9.]+)", condition)
    if match is None:
        raise ConfigError(f"--require {condition}: write NUMBER<=LIMIT or NUMBER>=LIMIT, as forget_knowledge<=0.05")
    return match[1], match[2], float(match[3])


def names_of(rows: Sequence[str], most: int = 5) -> str:
    """Return a list of names in brackets, cut to the first few."""
    left_out = len(rows) - most
    return f"({', '.join(rows[:most])}{f' and {left_out} more' if left_out > 0 else ''})"
