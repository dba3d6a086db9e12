"""Judge a model without generating text, and score a final result."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from statistics import fmean
from typing import Any

from lume_tasks.data.source import Data
from lume_tasks.metrics.aggregate import mia_score
from lume_tasks.tasks.results import numbers as harness_numbers
from lume_tasks.tasks.results import row_scores
from lume_unlearn.audit.probes import run_probes
from lume_unlearn.compare.documents import Parts
from lume_unlearn.scoring.score import ATTACKS, MEMORIZATION, Scores, memorization_tasks, score, tasks_for
from lume_unlearn.scoring.swap import names_somebody

NUMBERS = tuple(f"{side}_{kind}" for side in ("forget", "retain") for kind in MEMORIZATION)

Result = dict[str, Any]
"""How a model or the result of a final run did on the final documents.

``scores`` ("TASK METRIC" to value), ``rows`` (`RowScores` as a dictionary), ``judged`` (see `numbers`); of models and
of seed 0 ``audits`` (probe to numbers); of final runs ``seconds`` and ``curve``."""


@dataclass(frozen=True)
class Judge:
    """Scores models of one tokenizer."""

    tokenizer: Any
    batch_size: int
    """Prompts of one scoring batch."""

    def judged(self, model: Any, data: Data, chat: bool, mmlu: int = 0) -> Scores:
        """Score a model with `tasks_of` the data: one forward pass over each row and document.

        ``chat``: see `score`; ``mmlu``: questions of each subject of MMLU to score as well.
        """
        tasks = [*tasks_of(data), *["lume_mmlu"] * bool(mmlu and data.mmlu)]
        return self._score(model, data, chat, tasks, {"lume_mmlu_limit": mmlu} if mmlu else None)

    def result(self, model: Any, parts: Parts, chat: bool, probes: Mapping[str, Any]) -> Result:
        """Score a model on the final documents with the tasks that there is data for, judge it, and probe it.

        ``probes``: options of `run_probes`, or nothing for no probes. Copies are trained on rows of the tuning
        documents, and judged on the final documents.
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
        result: Result = {"scores": flat, "rows": asdict(row_scores(scores.results)), "judged": numbers(scores)}
        if probes:
            options: dict[str, Any] = {"train": parts.tuning, "tasks": tasks_of(data), "chat": chat, **probes}
            found = run_probes(model, self.tokenizer, data, batch_size=self.batch_size, **options)
            result["audits"] = {name: numbers(probed) for name, probed in found.items()}
        return result

    def _score(
        self, model: Any, data: Data, chat: bool, tasks: list[str], metadata: dict[str, int] | None = None
    ) -> Scores:
        options: dict[str, Any] = {"batch_size": self.batch_size, "log_samples": True, "metadata": metadata}
        return score(model, self.tokenizer, data, tasks=tasks, chat=chat, **options)


def tasks_of(data: Data) -> list[str]:
    """Return the tasks that judge a model: `lume_memorization` and, with members and non-members, `lume_mia`."""
    return [*memorization_tasks(data), *["lume_mia"] * bool(data.members and data.nonmembers)]


def numbers(scores: Scores) -> dict[str, float]:
    """Return the means over the rows of `NUMBERS`, the AUCs of the attack, and the accuracy of MMLU if it is there."""
    found = {name: fmean(scores.rows[name].values()) for name in NUMBERS if scores.rows.get(name)}
    mmlu = scores.metric("lume_mmlu", "acc")
    attacks = {name: scores.means[name] for name in ATTACKS if name in scores.means}
    return found | attacks | ({} if mmlu is None else {"mmlu": mmlu})


def shortfall(found: Mapping[str, float]) -> float:
    """Compute 1 minus the mean of forgetting (1 - forget numbers), retention (retain numbers) and `mia_score`.

    The objective where no retrained model is named. Worked example: forget .2, retain .9, AUC .7 (MIA score .6):
    1 - (.8 + .9 + .6) / 3 = .2333.
    """
    forget, retain = ([found[name] for name in NUMBERS if name.startswith(side)] for side in ("forget", "retain"))
    attack = [mia_score(found["loss_auc"])] if "loss_auc" in found else []
    return 1 - fmean([1 - fmean(forget), fmean(retain), *attack])


def words(retrained: bool, attack: bool) -> str:
    """Say in one sentence what tuning minimises, for the page."""
    found = "exact memorisation, extraction strength and token probability of the answers"
    if retrained:
        losses = ", and the Kolmogorov-Smirnov distances of the losses of members and non-members" if attack else ""
        return f"the distance from the retrained model, row by row: the mean absolute differences of {found}{losses}"
    groups = "forgetting, retention" + (" and MIA score" if attack else "")
    return f"1 minus the mean of {groups}, where forgetting and retention are means over {found}"
