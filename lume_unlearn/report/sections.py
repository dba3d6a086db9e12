"""Tables, figures and texts of the report, which page.html.j2 lays out."""

import base64
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Drawing
from sklearn.metrics import roc_curve

from lume_tasks.errors import visible
from lume_unlearn.report import plots
from lume_unlearn.report.glossary import (
    AUCS,
    CAUGHT,
    KINDS,
    LEADERBOARD,
    MEMBERS,
    MEMORISATION,
    PERSONAL_DATA,
    REFERENCE,
    TASKS,
    TWELVE,
    Score,
)
from lume_unlearn.report.redact import worst_leaks
from lume_unlearn.report.results import Model, Sample, comparability, find_runs

LEAKS = 5  # rows shown of each kind and model
LONGEST_NAME = 44  # characters of a model's name in a figure
HIGHEST_LOSS = 12.0  # nats, the end of the axis; about ln(vocabulary), the loss of a uniform prediction
OVER_TRAINING = {"forgotten and kept": LEADERBOARD[5:], "overall, general knowledge, attack": LEADERBOARD[:5]}

Cell = tuple[str, str]  # a score and its interval, or a heading and a note


@dataclass(frozen=True)
class Table:
    """Column headings, and for each row its name and its cells."""

    head: list[Cell]
    rows: list[tuple[str, list[Cell]]]


@dataclass(frozen=True)
class Figure:
    """The name of a figure's file, what it shows, and the PNG."""

    file: str
    alt: str
    data: bytes

    @property
    def source(self) -> str:
        """The figure as an address that contains it."""
        return f"data:image/png;base64,{base64.b64encode(self.data).decode()}"


def page_data(models: Sequence[Model], show_pii: bool) -> dict[str, Any]:
    """Return what the template shows."""
    return {
        "models": models,
        "show_pii": show_pii,
        "problems": comparability(models),
        "unfinished": without_final_score(models),
        "overall": score_table(models, LEADERBOARD),
        "twelve": {title: score_table(models, [s for s in TWELVE if s.task == task]) for task, title in TASKS.items()},
        "trade_off": trade_off(models),
        "training": over_training(models),
        "aucs": score_table(models, (*AUCS, MEMBERS)),
        "caught": {percent: score_table(models, scores) for percent, scores in CAUGHT.items()},
        "reference": score_table(models, REFERENCE),
        "not_unlearned": not_unlearned(models),
        "attacks": attacks(models),
        "memorisation": {side: score_table(models, scores) for side, scores in MEMORISATION.items()},
        "personal_data": {
            side: {words: score_table(models, scores) for words, scores in tables.items()}
            for side, tables in PERSONAL_DATA.items()
        },
        "leaks": leaks(models, show_pii),
        "everything": everything(models),
    }


def score_table(models: Sequence[Model], columns: Sequence[Score]) -> Table | None:
    """Return a table of those columns for which any model has a value; None if there are none."""
    kept = [c for c in columns if any(model.score(c.task, c.metric) is not None for model in models)]
    head = [("model", ""), *((column.name, f"good: {column.good}") for column in kept)]
    rows = [(model.name, [cell(model, column.task, column.metric) for column in kept]) for model in models]
    return Table(head, rows) if kept else None


def everything(models: Sequence[Model]) -> Table:
    """Return every metric of every task, one row each."""
    keys = {(task, name) for m in models for one in m.evaluations for task in one.scores for name in one.scores[task]}
    ends = {(task, f"{metric}_{end}") for task, metric in keys for end in ("low", "high")}
    rows = [(f"{task} {metric}", [cell(m, task, metric) for m in models]) for task, metric in sorted(keys - ends)]
    return Table([("task and metric", ""), *((model.name, "") for model in models)], rows)


def cell(model: Model, task: str, metric: str) -> Cell:
    """Return a score and its interval; a dash if it has no value."""
    value, interval = model.score(task, metric), model.interval(task, metric)
    ends = f"{interval[0]:.3f}\u2013{interval[1]:.3f}" if interval else ""
    return ("-", "") if value is None else (f"{value:.3f}", ends)


def without_final_score(models: Sequence[Model]) -> dict[str, list[str]]:
    """Return the models without a final score by what is missing for it."""
    missing: dict[str, list[str]] = {}
    for model in models:
        one = model.evaluation("lume_score")
        if one and one.missing:
            missing.setdefault(one.missing, []).append(model.name)
    return missing


def not_unlearned(models: Sequence[Model]) -> dict[str, list[str]]:
    """Return the models for which not all member documents are forget rows, by the share of those that are."""
    shares: dict[str, list[str]] = {}
    for model in models:
        share = model.score("lume_mia", "members_unlearned")
        if share is not None and share < 1:
            shares.setdefault(f"{share:.0%}", []).append(model.name)
    return shares


def trade_off(models: Sequence[Model]) -> list[Figure]:
    """Return forget against retain scores, one figure a task; the checkpoints of a run are joined by a line."""
    runs = find_runs(models)
    trained = {model for run in runs for place, model in run.points if place > 0}  # 0: the reference model
    named = [(model.name, [model]) for model in models if model not in trained]
    named += [(run.name, [model for _, model in run.points]) for run in runs]
    figures = []
    for task, title in TASKS.items():
        tracks = [
            plots.Track(_label(name), models.index(members[-1]), points)
            for name, members in named
            if (points := _points(members, task))
        ]
        if tracks:
            alt = f"{title}: scores on forget rows against scores on retain rows"
            drawing = plots.trade_off(tracks, list(KINDS.values()), title)
            figures.append(_figure(f"tradeoff_{task}", alt, drawing))
    return figures


def _points(members: Sequence[Model], task: str) -> dict[str, list[plots.Point]]:
    """Return for each kind of score a point for each model that has both sides."""
    points: dict[str, list[plots.Point]] = {}
    for kind, words in KINDS.items():
        for model in members:
            forget, retain = f"forget_{kind}", f"retain_{kind}"
            x, y = model.score(task, forget), model.score(task, retain)
            if x is not None and y is not None:
                point = plots.Point(x, y, model.interval(task, forget), model.interval(task, retain))
                points.setdefault(words, []).append(point)
    return points


def over_training(models: Sequence[Model]) -> list[Figure]:
    """Return the scores over the checkpoints of each run."""
    figures = []
    for number, run in enumerate(find_runs(models), start=1):
        for part, (title, scores) in enumerate(OVER_TRAINING.items(), start=1):
            lines = {}
            for score in scores:
                values = [(place, model.score(score.task, score.metric)) for place, model in run.points]
                lines[score.name] = [(place, value) for place, value in values if value is not None]
            lines = {name: points for name, points in lines.items() if points}
            if lines:
                drawing = plots.over_training(lines, run.unit, f"{_label(run.name)}: {title}")
                figures.append(_figure(f"training{number}_{part}", f"{run.name}: {title} over training", drawing))
    return figures


def attacks(models: Sequence[Model]) -> list[Figure]:
    """Return the losses of each model's attack documents, and the ROC curves of the loss attack."""
    found = {model: losses(model.samples("lume_mia") or []) for model in models}
    logged = {model: pair for model, pair in found.items() if pair}
    upper = min(HIGHEST_LOSS, max((loss for pair in logged.values() for side in pair for loss in side), default=0))
    figures, curves = [], []
    for model, (members, nonmembers) in logged.items():
        number = models.index(model)
        alt = f"{model.name}: losses of member documents and of documents never seen"
        drawing = plots.loss_histogram(members, nonmembers, upper, _label(model.name))
        figures.append(_figure(f"loss{number + 1}_{model.name}", alt, drawing))
        curves.append(plots.Curve(_label(model.name), number, *roc_points(members, nonmembers)))
    if curves:
        figures.append(_figure("roc_loss", "ROC curves of the loss attack", plots.roc(curves, "Loss attack: ROC")))
    return figures


def losses(samples: Sequence[Sample]) -> tuple[list[float], list[float]] | None:
    """Return mean token NLLs in nats of members and of non-members; None without both, or with a NaN."""
    scores = [sample["loss_auc"] for sample in samples if sample.get("loss_auc")]
    members = [-score for member, score in scores if member]
    nonmembers = [-score for member, score in scores if not member]
    complete = members and nonmembers and not any(math.isnan(score) for _, score in scores)
    return (members, nonmembers) if complete else None


def roc_points(members: Sequence[float], nonmembers: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return false-positive and true-positive rates at every threshold of the loss, both rising from 0 to 1."""
    labels = [True] * len(members) + [False] * len(nonmembers)
    scores = -np.nan_to_num([*members, *nonmembers])  # a finite number for an infinite loss
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    return false.tolist(), true.tolist()


def leaks(models: Sequence[Model], show_pii: bool) -> dict[str, list[Any]]:
    """Return for each model with logged samples the forget rows that it knows best."""
    found = {}
    for model in models:
        logged = {task: samples for task in TASKS if (samples := model.samples(task))}
        if logged:
            found[model.name] = worst_leaks(logged, LEAKS, show_pii)
    return found


def _figure(name: str, alt: str, drawing: Drawing) -> Figure:
    file = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:60]
    return Figure(f"{file}.png", alt, plots.png(drawing))


def _label(name: str) -> str:
    """Return a name for a figure: printable, and only the end of a long one."""
    shown = visible(name).replace("\n", " ")
    return shown if len(shown) <= LONGEST_NAME else f"…{shown[1 - LONGEST_NAME :]}"
