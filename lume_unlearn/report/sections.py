"""Tables, figures and texts of the report, which page.html.j2 lays out."""

import base64
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure as Drawing

from lume_tasks.errors import visible
from lume_unlearn.report import glossary, plots
from lume_unlearn.report.glossary import KINDS, LEADERBOARD, TASKS, Score
from lume_unlearn.report.redact import worst_leaks
from lume_unlearn.report.results import Model, comparability, find_runs, names_by_value

LEAKS = 5  # rows shown of each kind and model
LONGEST_NAME = 44  # characters of a model's name in a figure
HIGHEST_LOSS = 12.0  # nats, the end of the axis; about ln(vocabulary), the loss of a uniform prediction
OVER_TRAINING = {"forgotten and kept": LEADERBOARD[5:], "overall, general knowledge, attack": LEADERBOARD[:5]}

Cell = tuple[str, str]  # a score and its interval, or a heading and a note


class Table(NamedTuple):
    """Column headings, and for each row its name and its cells."""

    head: list[Cell]
    rows: list[tuple[str, list[Cell]]]


class Figure(NamedTuple):
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
        "twelve": tables(models, glossary.TWELVE),
        "trade_off": trade_off(models),
        "training": over_training(models),
        "aucs": score_table(models, (*glossary.AUCS, glossary.MEMBERS)),
        "caught": tables(models, glossary.CAUGHT),
        "reference": score_table(models, glossary.REFERENCE),
        "not_unlearned": not_unlearned(models),
        "attacks": attacks(models),
        "memorisation": tables(models, glossary.MEMORISATION),
        "personal_data": {side: tables(models, groups) for side, groups in glossary.PERSONAL_DATA.items()},
        "leaks": leaks(models, show_pii),
        "everything": everything(models),
    }


def score_table(models: Sequence[Model], columns: Sequence[Score]) -> Table | None:
    """Return a table of those columns for which any model has a value; None if there are none."""
    kept = [c for c in columns if any(model.score(c.task, c.metric) is not None for model in models)]
    head = [("model", ""), *((column.name, f"good: {column.good}") for column in kept)]
    rows = [(model.name, [cell(model, column.task, column.metric) for column in kept]) for model in models]
    return Table(head, rows) if kept else None


def tables(models: Sequence[Model], groups: Mapping[Any, Sequence[Score]]) -> dict[Any, Table | None]:
    """Return a table of each group of columns."""
    return {name: score_table(models, columns) for name, columns in groups.items()}


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
    scored = {model.name: model.evaluation("lume_score") for model in models}
    found = {name: one.content["results"]["lume_score"].get("missing,none") for name, one in scored.items() if one}
    return names_by_value({name: missing or None for name, missing in found.items()})


def not_unlearned(models: Sequence[Model]) -> dict[str, list[str]]:
    """Return the models for which not all member documents are forget rows, by the share of those that are."""
    shares = {model.name: model.score("lume_mia", "members_unlearned") for model in models}
    return names_by_value({name: f"{share:.0%}" for name, share in shares.items() if share is not None and share < 1})


def trade_off(models: Sequence[Model]) -> list[Figure]:
    """Return forget against retain scores, one figure a task; the checkpoints of a run are joined by a line."""
    runs = find_runs(models)
    trained = {model for run in runs for place, model in run.points if place > 0}  # 0: the reference model
    named = [(model.name, [model]) for model in models if model not in trained]
    named += [(run.name, [model for _, model in run.points]) for run in runs]
    figures = []
    for task, title in TASKS.items():
        tracks = []
        for name, members in named:
            kinds = {words: _points(members, task, kind) for kind, words in KINDS.items()}
            if any(kinds.values()):
                tracks.append(plots.Track(_label(name), models.index(members[-1]), kinds))
        if tracks:
            alt = f"{title}: scores on forget rows against scores on retain rows"
            figures.append(_figure(f"tradeoff_{task}", alt, plots.trade_off(tracks, title)))
    return figures


def _points(members: Sequence[Model], task: str, kind: str) -> list[plots.Point]:
    points = []
    for model in members:
        forget, retain = f"forget_{kind}", f"retain_{kind}"
        x, y = model.score(task, forget), model.score(task, retain)
        if x is not None and y is not None:
            x_ends, y_ends = model.interval(task, forget), model.interval(task, retain)
            points.append(plots.Point(x, y, x_ends or (x, x), y_ends or (y, y)))
    return points


def over_training(models: Sequence[Model]) -> list[Figure]:
    """Return the scores over the checkpoints of each run."""
    figures = []
    for number, run in enumerate(find_runs(models), start=1):
        for part, (title, scores) in enumerate(OVER_TRAINING.items(), start=1):
            lines = {}
            for score in scores:
                values = [(place, model.score(score.task, score.metric)) for place, model in run.points]
                points = [(place, value) for place, value in values if value is not None]
                if points:
                    lines[score.name] = points
            if lines:
                drawing = plots.over_training(lines, f"{_label(run.name)}: {title}")
                figures.append(_figure(f"training{number}_{part}", f"{run.name}: {title} over training", drawing))
    return figures


def attacks(models: Sequence[Model]) -> list[Figure]:
    """Return the losses of each model's attack documents, and the ROC curves of the loss attack."""
    found = [losses(number, model) for number, model in enumerate(models)]
    logged = [one for one in found if one]
    if not logged:
        return []
    upper = min(HIGHEST_LOSS, max(max(*one.members, *one.nonmembers) for one in logged))
    figures = []
    for one in logged:
        alt = f"{one.name}: losses of member documents and of documents never seen"
        figures.append(_figure(f"loss{one.number + 1}_{one.name}", alt, plots.loss_histogram(one, upper)))
    return [*figures, _figure("roc_loss", "ROC curves of the loss attack", plots.roc(logged, "Loss attack: ROC"))]


def losses(number: int, model: Model) -> plots.Losses | None:
    """Return a model's losses of members and of non-members; None without both, or with a NaN."""
    scores = [sample["loss_auc"] for sample in model.samples("lume_mia") if sample.get("loss_auc")]
    members = [-score for member, score in scores if member]
    nonmembers = [-score for member, score in scores if not member]
    if not members or not nonmembers or any(math.isnan(score) for _, score in scores):
        return None
    return plots.Losses(_label(model.name), number, members, nonmembers)


def leaks(models: Sequence[Model], show_pii: bool) -> dict[str, list[Any]]:
    """Return for each model with logged samples the forget rows that it knows best."""
    samples = {model.name: {task: model.samples(task) for task in TASKS} for model in models}
    return {name: worst_leaks(logged, LEAKS, show_pii) for name, logged in samples.items() if any(logged.values())}


def _figure(name: str, alt: str, drawing: Drawing) -> Figure:
    file = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:60]
    return Figure(f"{file}.png", alt, plots.png(drawing))


def _label(name: str) -> str:
    """Return a name for a figure: printable, and only the end of a long one."""
    shown = visible(name).replace("\n", " ")
    return shown if len(shown) <= LONGEST_NAME else f"…{shown[1 - LONGEST_NAME :]}"
