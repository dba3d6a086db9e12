"""Judge a model without generating text: how far its rows are from the retrained model's, or from the ideal."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from lume_tasks.data.source import Data
from lume_tasks.metrics.aggregate import mia_score
from lume_tasks.metrics.unlearning import RowScores
from lume_tasks.tasks.results import row_scores
from lume_unlearn.scoring.score import ATTACKS, Scores, memorization_tasks, score

KINDS = ("exact_memorization", "extraction_strength", "probability")
NUMBERS = tuple(f"{side}_{kind}" for side in ("forget", "retain") for kind in KINDS)


def tasks_of(data: Data) -> list[str]:
    """Return the tasks that judge a model: `lume_memorization` and, with members and non-members, `lume_mia`."""
    return [*memorization_tasks(data), *["lume_mia"] * bool(data.members and data.nonmembers)]


def judged(model: Any, tokenizer: Any, data: Data, *, chat: bool, batch_size: int, mmlu: int | None = None) -> Scores:
    """Score a model with `tasks_of` the data: one forward pass over each row and document.

    Args:
        model: causal language model, on the device to score on.
        tokenizer: its tokenizer.
        data: rows and documents.
        chat: ask questions of your own tasks through the chat template.
        batch_size: prompts of one batch.
        mmlu: also score so many questions of each subject of MMLU.
    """
    tasks = [*tasks_of(data), *["lume_mmlu"] * bool(mmlu and data.mmlu)]
    metadata = {"lume_mmlu_limit": mmlu} if mmlu else {}
    options: dict[str, Any] = {"chat": chat, "batch_size": batch_size, "metadata": metadata, "log_samples": True}
    return score(model, tokenizer, data, tasks=tasks, **options)


def numbers(scores: Scores) -> dict[str, float]:
    """Return the means over the rows of `NUMBERS`, the AUCs of the attack, and the accuracy of MMLU if it is there."""
    found = {name: fmean(scores.rows[name].values()) for name in NUMBERS if scores.rows.get(name)}
    others = {name: scores.metric("lume_mia", name) for name in ATTACKS} | {"mmlu": scores.metric("lume_mmlu", "acc")}
    return found | {name: value for name, value in others.items() if value is not None}


def rows_of(scores: Scores) -> RowScores:
    """Return the scores of each row and document, for the distance to the retrained model."""
    return row_scores(scores.results, KINDS)


def shortfall(found: Mapping[str, float]) -> float:
    """Compute 1 minus the mean of forgetting (1 - forget numbers), retention (retain numbers) and `mia_score`.

    The objective where no retrained model is named. Worked example: forget .2, retain .9, AUC .7 (MIA score .6):
    1 - (.8 + .9 + .6) / 3 = .2333.
    """
    forget, retain = ([found[name] for name in NUMBERS if name.startswith(side)] for side in ("forget", "retain"))
    goods = [1 - fmean(forget), fmean(retain)]
    if "loss_auc" in found:
        goods.append(mia_score(found["loss_auc"]))
    return 1 - fmean(goods)


def words(retrained: bool, attack: bool) -> str:
    """Say in one sentence what tuning minimises, for the page."""
    found = "exact memorisation, extraction strength and token probability of the answers"
    if retrained:
        losses = ", and the Kolmogorov-Smirnov distances of the losses of members and non-members" if attack else ""
        return f"the distance from the retrained model, row by row: the mean absolute differences of {found}{losses}"
    groups = "forgetting, retention" + (" and MIA score" if attack else "")
    return f"1 minus the mean of {groups}, where forgetting and retention are means over {found}"
