"""Judge a model without generating text, and score a final result."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from statistics import fmean
from typing import Any

from lume_tasks.data.rows import Row
from lume_tasks.data.source import Data
from lume_tasks.metrics import swap
from lume_tasks.metrics.text import repetition
from lume_tasks.tasks.known import Matcher
from lume_tasks.tasks.results import numbers as harness_numbers
from lume_tasks.tasks.results import row_scores
from lume_unlearn.audit.probes import run_probes
from lume_unlearn.compare.documents import Parts, halves
from lume_unlearn.scoring.score import (
    ATTACKS,
    MEMORIZATION,
    SWAP,
    Scores,
    memorization_tasks,
    score,
    tasks_for,
    without_messages,
)
from lume_unlearn.scoring.swap import names_somebody
from lume_unlearn.training.relearning import relearning

NUMBERS = tuple(f"{side}_{kind}" for side in ("forget", "retain") for kind in MEMORIZATION)
BUDGET = 0.02
"""Most that the token probability of the retain rows may fall below the target's."""
RATE = 1e-4
"""Learning rate of the relearning in a trial."""
OBJECTIVE = (
    "half the mean of two numbers of the forget rows: their extraction strength and, where they name somebody, how far "
    f"the ranks of the swap test are from uniform. A setting whose retain rows lose more than {BUDGET} of their token "
    "probability is worse than any that does not"
)
"""Description of `objective` for the page."""
MINIMISED = ("forget_extraction_strength", "swap_distance")

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
    steps: int = 20
    """Steps of the relearning in a trial; 0 for none."""

    def judged(self, model: Any, data: Data, chat: bool) -> dict[str, float]:
        """Score a model with `tasks_of` the data, and return its `numbers`; ``chat``: see `score`."""
        return numbers(self._tested(model, data, chat, tasks_of(data), data.forget))

    def relearned(self, model: Any, data: Data, chat: bool) -> dict[str, float]:
        """Train a copy on half of the forget documents, and judge the other half; then the other way round.

        What is only hidden comes back then, see `relearning`. Returns `MINIMISED` of all forget rows, with the prefix
        ``relearned_``; nothing if there is one document, or without steps.
        """
        found: dict[str, dict[str, float]] = {"forget_extraction_strength": {}, "forget_rank": {}}
        for taught, asked in halves(data.forget) if self.steps else ():
            options: dict[str, Any] = {"steps": self.steps, "learning_rate": RATE, "chat": chat}
            *_, (_, copy) = relearning(model, self.tokenizer, taught, **options)
            ids = {row.id for row in asked}
            swap = ["lume_swap"] * names_somebody(replace(data, forget=asked))
            scores = self._tested(copy, data, chat, [*memorization_tasks(data), *swap], asked)
            for name, rows in found.items():
                rows |= {row: value for row, value in scores.rows.get(name, {}).items() if row in ids}
        return {f"relearned_{name}": value for name, value in _minimised(found).items()}

    def followed(self, model: Any, data: Data, chat: bool, mmlu: int) -> dict[str, float]:
        """Score a model in training as `judged` does, but with ``mmlu`` questions a subject and without swap test."""
        tasks = [task for task in tasks_of(data) if task != "lume_swap"]
        tasks += ["lume_mmlu"] * (data.mmlu is not None)
        return numbers(self._score(model, data, chat, tasks, {"lume_mmlu_limit": mmlu}))

    def result(self, model: Any, parts: Parts, chat: bool, probes: Mapping[str, Any]) -> Result:
        """Score a model on the final documents with the tasks that there is data for, judge it, and probe it.

        ``probes``: options of `run_probes`; empty for no probes. Copies are trained on rows of the tuning documents,
        and judged on the final documents.
        """
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
        result: Result = {"scores": flat, "rows": asdict(row_scores(scores.results)), "judged": numbers(scores)}
        if probes:
            options: dict[str, Any] = {"train": parts.tuning, "tasks": tasks_of(data), "chat": chat, **probes}
            found = run_probes(model, self.tokenizer, data, batch_size=self.batch_size, **options)
            result["audits"] = {name: numbers(probed) for name, probed in found.items()}
        return result

    def _tested(self, model: Any, data: Data, chat: bool, tasks: list[str], rows: Sequence[Row]) -> Scores:
        """Score a model, with the swap test on these rows; the results say which rows are not tested."""
        with without_messages("lume_tasks", "lume_swap: "):
            return self._score(model, data, chat, tasks, {"lume_swap_rows": [row.id for row in rows]})

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

    They are the means over rows of `NUMBERS`; ``swap_distance``, how far the ranks of the forget rows are from uniform;
    `SWAP`; the AUCs of the attack; and the accuracy of MMLU if it was scored.
    """
    found = {name: fmean(scores.rows[name].values()) for name in NUMBERS if scores.rows.get(name)}
    found |= _minimised(scores.rows)
    mmlu = scores.metric("lume_mmlu", "acc")
    means = {name: scores.means[name] for name in (*ATTACKS, *SWAP) if name in scores.means}
    return found | means | ({} if mmlu is None else {"mmlu": mmlu})


def _minimised(rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return those of `MINIMISED` for which there are scores of rows."""
    strengths, ranks = (list(rows.get(name, {}).values()) for name in ("forget_extraction_strength", "forget_rank"))
    found = {"forget_extraction_strength": fmean(strengths)} if strengths else {}
    return found | ({"swap_distance": swap.distance(ranks)} if ranks else {})


def objective(found: Mapping[str, float], target: Mapping[str, float]) -> float:
    """Compute the objective that tuning minimises, between 0 and 1, from the numbers of a model and of the target.

    It needs no retrained model, and is near 0 for one. Let r be the token probability of the retain rows:

    - If r is more than `BUDGET` below the target's: (1 + the gap) / 2, so any model within the budget is better.
    - Else half the mean of those of `MINIMISED` that were measured, before and, in a trial, after relearning
      (`Judge.relearned`). Without relearning, a model that only hides the rows can be the best (results/tried.md).

    Worked example: swap distance .3, extraction strength .1, r .97, of the target .98: (.3 + .1) / 2 / 2 = .1. If the
    distance is .5 and the strength .3 after relearning: (.3 + .1 + .5 + .3) / 4 / 2 = .15. With r .9:
    (1 + .08) / 2 = .54.
    """
    lost = target["retain_probability"] - found["retain_probability"]
    if lost > BUDGET:
        return (1 + lost) / 2
    return fmean(value for name, value in found.items() if name.removeprefix("relearned_") in MINIMISED) / 2
