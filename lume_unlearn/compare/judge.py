"""Judge a model without generating text, and score a final result."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite, sqrt
from statistics import fmean
from typing import Any

from lume_tasks.data.source import Data
from lume_tasks.metrics import swap
from lume_tasks.metrics.text import repetition
from lume_tasks.tasks.known import Matcher
from lume_tasks.tasks.results import numbers as harness_numbers
from lume_tasks.tasks.results import row_scores
from lume_unlearn.audit.measure import LEVELS
from lume_unlearn.audit.probes import run_probes
from lume_unlearn.compare.documents import Parts
from lume_unlearn.scoring.score import (
    ATTACKS,
    SWAP,
    Scores,
    memorization_tasks,
    score,
    tasks_for,
    without_messages,
)
from lume_unlearn.scoring.swap import names_somebody

BUDGET = 0.02
"""Most that the token probability of the retain rows may fall below the target's."""
WITHIN_BUDGET = 0.5
"""Highest objective of a model that keeps the retain rows."""
SPREAD = 0.26
"""Standard deviation of sqrt(n) times the distance of n uniform ranks from uniform (Kolmogorov's distribution)."""
OBJECTIVE = (
    "half the mean of two numbers of the forget rows: their extraction strength and, where they name somebody, how far "
    f"the ranks of the swap test are from uniform. A setting whose retain rows lose more than {BUDGET} of their token "
    "probability is worse than any that does not"
)
"""Description of `objective` for the page."""

Result = dict[str, Any]
"""Scores of a model, or of the result of a final run, on the final documents.

``scores`` ("TASK METRIC" to value), ``rows`` (`RowScores` as a dictionary), ``judged`` (see `numbers`); of models and
of seed 0 ``audits`` (probe to numbers); of final runs ``seconds`` and ``curve``."""


@dataclass(frozen=True)
class Judge:
    """Scores models of one tokenizer."""

    tokenizer: Any
    batch_size: int
    """Prompts of one scoring batch."""

    def judged(self, model: Any, data: Data, chat: bool) -> dict[str, float]:
        """Score a model with `tasks_of` the data, and return its `numbers`; ``chat``: see `score`."""
        only = {"lume_swap_rows": [row.id for row in data.forget]}
        with without_messages("lume_tasks", "lume_swap: "):  # the results say which rows are not tested
            return numbers(self._score(model, data, chat, tasks_of(data), only))

    def followed(self, model: Any, data: Data, chat: bool, mmlu: int) -> dict[str, float]:
        """Score a model in training as `judged` does, but with ``mmlu`` questions a subject and without swap test."""
        tasks = [task for task in tasks_of(data) if task != "lume_swap"]
        tasks += ["lume_mmlu"] * (data.mmlu is not None)
        return numbers(self._score(model, data, chat, tasks, {"lume_mmlu_limit": mmlu}))

    def result(self, model: Any, parts: Parts, chat: bool) -> Result:
        """Score a model on the final documents with the tasks that there is data for, and judge it."""
        data = parts.final
        swap = ["lume_swap"] * names_somebody(data)
        scores = self._score(model, data, chat, [*memorization_tasks(data), *swap, *tasks_for(data)])
        flat = {
            f"{task} {name}": float(value)
            for task, metrics in harness_numbers(scores.results).items()
            for name, value in metrics.items()
            if isfinite(value)
        }
        flat |= {f"answers {name}": value for name, value in quality(scores.answers, data).items()}
        return {"scores": flat, "rows": asdict(row_scores(scores.results)), "judged": numbers(scores)}

    def audits(self, model: Any, parts: Parts, chat: bool, probes: Mapping[str, Any]) -> Result:
        """Probe a model; return the part of its result that this adds, empty without ``probes``.

        ``probes``: options of `run_probes`. Copies are trained on rows of the tuning documents, and judged on the final
        documents.
        """
        if not probes:
            return {}
        options: dict[str, Any] = {"train": parts.tuning, "tasks": tasks_of(parts.final), "chat": chat, **probes}
        found = run_probes(model, self.tokenizer, parts.final, batch_size=self.batch_size, **options)
        return {"audits": {name: numbers(probed) for name, probed in found.items()}}

    def _score(
        self, model: Any, data: Data, chat: bool, tasks: list[str], metadata: dict[str, Any] | None = None
    ) -> Scores:
        options: dict[str, Any] = {"batch_size": self.batch_size, "log_samples": True, "metadata": metadata}
        return score(model, self.tokenizer, data, tasks=tasks, chat=chat, **options)


def quality(answers: Mapping[str, str], data: Data) -> dict[str, float]:
    """Compute how sane a model's ``answers`` (by row id) to the rows of ``data`` are.

    ``repetition`` is the mean over all answers of the share that repeats itself; ``other_facts`` is the share of forget
    rows that are answered with a fact of a retain row.
    """
    others = Matcher(data.rows).of_others(answers)
    return {"repetition": fmean(map(repetition, answers.values())), "other_facts": len(others) / len(data.forget)}


def tasks_of(data: Data) -> list[str]:
    """Return the tasks that judge a model: `lume_memorization`, and `lume_swap` and `lume_mia` if there is data."""
    attack = bool(data.members and data.nonmembers)
    return [*memorization_tasks(data), *["lume_swap"] * names_somebody(data), *["lume_mia"] * attack]


def numbers(scores: Scores) -> dict[str, float]:
    """Return the numbers from the scores of `tasks_of`.

    They are the means over rows of `NUMBERS`; ``swap_distance``, how far the ranks of the forget rows are from uniform,
    and ``swap_rows``, how many these are; `SWAP`; the AUCs of the attack; and the accuracy of MMLU if it was scored.
    """
    found = {name: fmean(scores.rows[name].values()) for name in LEVELS if scores.rows.get(name)}
    if ranks := scores.rows.get("forget_rank"):
        found["swap_distance"] = swap.distance(list(ranks.values()))
        found["swap_rows"] = float(len(ranks))
    mmlu = scores.metric("lume_mmlu", "acc")
    means = {name: scores.means[name] for name in (*ATTACKS, *SWAP) if name in scores.means}
    return found | means | ({} if mmlu is None else {"mmlu": mmlu})


def objective(found: Mapping[str, float], target: Mapping[str, float]) -> float:
    """Compute the objective that tuning minimises, between 0 and 1, from the numbers of a model and of the target.

    It needs no retrained model, and is near 0 for one. Let r be the token probability of the retain rows:

    - If r is more than `BUDGET` below the target's: (1 + the gap) / 2, so any model within the budget is better.
    - Else half the mean of the extraction strength of the forget rows and, if they name somebody, of the distance of
      the swap test.

    Worked example: swap distance .3, extraction strength .1, r .97, of the target .98: (.3 + .1) / 2 / 2 = .1. With
    r .9: (1 + .08) / 2 = .54.
    """
    lost = target["retain_probability"] - found["retain_probability"]
    if lost > BUDGET:
        return (1 + lost) / 2
    parts = [found[name] for name in ("forget_extraction_strength", "swap_distance") if name in found]
    return fmean(parts) / 2


def chance(found: Mapping[str, float]) -> float:
    """Compute how far apart the objectives of two models may be by chance, from the numbers of one of them.

    It is one standard deviation of their difference, if no model ever saw the persons: `SPREAD` / sqrt(n) for the swap
    distance of n rows, of which the objective has a quarter, times sqrt(2) for two models. Rows of one person are
    taken as independent, so this is rather too small. It is 0 if no row names somebody: how much the extraction
    strength varies is not known.

    Worked example: 12 rows: sqrt(2) * .26 / sqrt(12) / 4 = .027.
    """
    rows = found.get("swap_rows")
    return sqrt(2 / rows) * SPREAD / 4 if rows else 0.0
