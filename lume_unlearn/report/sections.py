"""The report's sections: each turns models into markup, adds its pictures to a list, or says how to get its data."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from lume_tasks.errors import visible
from lume_unlearn.report import plots
from lume_unlearn.report.attack_data import Scored, attack_scores, losses, roc_points
from lume_unlearn.report.glossary import (
    ATTACKED,
    ATTACKS,
    AUCS,
    CAUGHT,
    FIELDS,
    LEADERBOARD,
    MEMBERS,
    MEMORISATION,
    REFERENCE,
    SIDES,
    TASKS,
    TWELVE,
    Score,
)
from lume_unlearn.report.html import Html, figures, join, section, table, tag
from lume_unlearn.report.leaks import Leak, Piece, worst_leaks
from lume_unlearn.report.results import Model, Run, find_runs

LEAKS = 5  # rows shown of each kind and model
LONGEST_NAME = 44  # characters of a model's name in a picture
LOWEST_LOSS = 1e-6  # the axis cannot be cut into bins below that
HIGHEST_LOSS = 12.0  # nats; a model that knows nothing, not even its language, has ln(vocabulary), some 9 to 12
KINDS = {"regurgitation": "text repeated", "knowledge": "facts known"}
MATCHES = {"exact": "answered exactly", "partial": "given away in part", "in_text": "in a continued text"}
OVER_TRAINING = {
    "Forgotten and kept": LEADERBOARD[5:],
    "Attack, general knowledge, overall": (LEADERBOARD[4], LEADERBOARD[3], LEADERBOARD[1], LEADERBOARD[0]),
}


@dataclass(frozen=True)
class Picture:
    """One picture: the name of its file, what it shows, and the PNG."""

    file: str
    words: str
    data: bytes


def leaderboard(models: Sequence[Model]) -> Html:
    """The scores that models are ranked by, and the twelve behind them."""
    missing: dict[str, list[str]] = {}
    for model in models:
        if (one := model.evaluation("lume_score")) and one.missing:
            missing.setdefault(one.missing, []).append(model.name)
    absent = [
        tag(
            "p",
            f"No final score of {', '.join(names)}, since these were not scored in full or have no value: {tasks}.",
            class_="absent",
        )
        for tasks, names in missing.items()
    ]
    overall = _scores(models, LEADERBOARD) or _to_get("the overall scores", "--tasks lume")
    twelve = [_scores(models, [s for s in TWELVE if s.task == task], title) for task, title in TASKS.items()]
    return section("Scores", overall, *absent, _fold("The twelve scores behind the task aggregate", *twelve))


def trade_off(models: Sequence[Model], pictures: list[Picture]) -> Html:
    """Forget against retain, a picture a task; the checkpoints of a run are joined by a line."""
    runs = find_runs(models)
    in_runs = {model for run in runs for place, model in run.points if place > 0}
    tracks = [(model.name, [model]) for model in models if model not in in_runs]
    tracks += [(run.name, [model for _, model in run.points]) for run in runs]
    labels = _labels([name for name, _ in tracks])
    numbers = {label: models.index(track[-1]) for label, (_, track) in zip(labels, tracks, strict=True)}
    shown = []
    for task, title in TASKS.items():
        points = {label: _points(track, task) for label, (_, track) in zip(labels, tracks, strict=True)}
        if series := {label: kinds for label, kinds in points.items() if kinds}:
            words = f"{title}: scores on forget rows against scores on retain rows"
            shown.append(_picture(pictures, f"tradeoff_{task}", words, plots.trade_off(series, numbers, title)))
    text = (
        "Each mark is a model: how much it still knows of what it should forget, and of what it should keep. Small "
        "marks on a line are checkpoints of one run."
    )
    absent = _to_get("the trade-off", "--tasks lume_task1,lume_task2,lume_task3")
    return section("Forgotten against kept", *([tag("p", text), _figures(shown)] if shown else [absent]))


def _points(track: Sequence[Model], task: str) -> dict[str, list[plots.Point]]:
    """Kind of score -> a point for each model that has both sides."""
    points: dict[str, list[plots.Point]] = {}
    for model in track:
        for kind, words in KINDS.items():
            x, y = (model.score(task, f"{side}_{kind}") for side in SIDES)
            if x is not None and y is not None:
                ends = (model.interval(task, f"{side}_{kind}") for side in SIDES)
                points.setdefault(words, []).append(plots.Point(x, y, *ends))
    return points


def training(models: Sequence[Model], pictures: list[Picture]) -> Html:
    """Scores over the checkpoints of each run."""
    shown = [
        _picture(
            pictures,
            f"training{number}_{part}",
            f"{run.name}: {title.lower()} over training",
            plots.over_training(lines, run.unit, f"{_labels([run.name])[0]}: {title.lower()}"),
        )
        for number, run in enumerate(find_runs(models), start=1)
        for part, (title, scores) in enumerate(OVER_TRAINING.items(), start=1)
        if (lines := _lines(run, scores))
    ]
    absent = tag(
        "p",
        "Left out, as no two results are of one run. Let ",
        tag("code", "lume-unlearn run --evaluate_every epoch"),
        " score while it trains, or score its checkpoints, and give all of the results to this report.",
        class_="absent",
    )
    return section("Over training", _figures(shown) if shown else absent)


def _lines(run: Run, scores: Sequence[Score]) -> dict[str, list[tuple[float, float]]]:
    lines = {
        score.name: [(x, y) for x, model in run.points if (y := model.score(score.task, score.metric)) is not None]
        for score in scores
    }
    return {name: points for name, points in lines.items() if points}


def attacks(models: Sequence[Model], pictures: list[Picture]) -> Html:
    """Can an attacker tell which texts were in the training data? Tables, losses, ROC curves."""
    labels = _labels([model.name for model in models])
    samples = {label: model.samples("lume_mia") for label, model in zip(labels, models, strict=True)}
    logged = {label: attack_scores(documents) for label, documents in samples.items() if documents}
    title = "Can an attacker tell what was in the training data?"
    caught = [_scores(models, scores, f"caught where {p} % are wrongly accused") for p, scores in CAUGHT.items()]
    tables = [
        tag("p", ATTACKED),
        _scores(models, (*AUCS, MEMBERS)),
        _fold("Caught at few false accusations", *caught),
        _fold("Against the reference model", _scores(models, REFERENCE)),
    ]
    if not logged:
        return section(title, *tables, _to_get("losses and ROC curves", "--tasks lume_mia --log_samples"))
    histograms = _figures(_histograms(logged, pictures))
    curves = _figures(_curves(logged, _numbers(labels), pictures))
    heads = (
        tag("h3", "How surprising the texts are to each model"),
        tag("h3", "What an attack catches, at what price"),
    )
    return section(title, *tables, heads[0], histograms, heads[1], curves)


def _histograms(logged: Mapping[str, dict[str, Scored]], pictures: list[Picture]) -> list[Picture]:
    found = {label: losses(scores["loss"]) for label, scores in logged.items() if "loss" in scores}
    highest = max((loss for sides in found.values() for side in sides for loss in side), default=0.0)
    upper = min(highest, HIGHEST_LOSS) if highest > LOWEST_LOSS else 1.0
    return [
        _picture(
            pictures,
            f"loss{number}_{_file(label)}",
            f"{label}: losses of member documents and of documents never seen",
            plots.loss_histogram(*sides, upper, label),
        )
        for number, (label, sides) in enumerate(found.items(), start=1)
    ]


def _curves(logged: Mapping[str, dict[str, Scored]], numbers: plots.Numbers, pictures: list[Picture]) -> list[Picture]:
    shown = []
    for attack, title in ATTACKS.items():
        curves = {label: roc_points(scores[attack]) for label, scores in logged.items() if attack in scores}
        if curves:
            words = f"ROC curves of the {title} attack"
            shown.append(_picture(pictures, f"roc_{attack}", words, plots.roc(curves, numbers, f"Attack: {title}")))
    return shown


def memorisation(models: Sequence[Model]) -> Html:
    """What the model knows when it is shown the right beginning."""
    sides = {side: [s for s in MEMORISATION if s.metric.startswith(side)] for side in SIDES}
    forget = _scores(models, sides["forget"]) or _to_get("memorisation", "--tasks lume_memorization", model="lume-hf")
    return section("Memorised", forget, _fold("The same of the retain rows", _scores(models, sides["retain"])))


def personal_data(models: Sequence[Model], pictures: list[Picture]) -> Html:
    """Leakage by field: a picture and a table for each side."""
    labels = _labels([model.name for model in models])
    numbers = _numbers(labels)
    parts, shown = [], []
    for side, title in (("forget", "People to be forgotten"), ("retain", "People to be kept")):
        rates = {label: _rates(model, side) for label, model in zip(labels, models, strict=True)}
        if rates := {label: by_field for label, by_field in rates.items() if by_field}:
            words = f"{title}: questions answered exactly, by field"
            shown.append(_picture(pictures, f"pii_{side}", words, plots.field_rates(rates, numbers, title)))
        tables = [
            _scores(models, [Score("lume_pii", f"{side}_{f}_{kind}", name, "") for f, name in FIELDS.items()], words)
            for kind, words in MATCHES.items()
        ]
        parts.append(_fold(f"{title}: all numbers", *tables))
    content = [_figures(shown), *parts] if shown else [_to_get("leakage by field", "--tasks lume_pii")]
    return section("Personal data by field", *content)


def _rates(model: Model, side: str) -> dict[str, tuple[float, plots.Interval | None]]:
    names = {field: f"{side}_{field}_exact" for field in FIELDS}
    return {
        FIELDS[field]: (rate, model.interval("lume_pii", name))
        for field, name in names.items()
        if (rate := model.score("lume_pii", name)) is not None
    }


def leaks(models: Sequence[Model], show_pii: bool) -> Html:
    """The forget rows that each model knows best, beside the truth."""
    logged = {model: {task: samples for task in TASKS if (samples := model.samples(task))} for model in models}
    logged = {model: tasks for model, tasks in logged.items() if tasks}
    if not logged:
        return section("Worst leaks", _to_get("what the models said", "--tasks lume --log_samples"))
    masked = (
        "Names, numbers, addresses and rare words, which may tell who is meant, are redacted (•••); --show_pii shows "
        "them. A row's number is its place in the harness's sample file."
    )
    warning = tag("p", tag("strong", "This page shows personal data unmasked."), class_="warning")
    parts = [
        _fold(model.name, *(list(map(_leak, worst_leaks(tasks, LEAKS, show_pii))) or [tag("p", "None.")]))
        for model, tasks in logged.items()
    ]
    text = "The rows to be forgotten that each model still knows best. Words that stand in the truth too are marked. "
    return section("Worst leaks", tag("p", text, None if show_pii else masked), warning if show_pii else None, *parts)


def _leak(leak: Leak) -> Html:
    what = {"sc": "share of the text repeated", "qa": "answered exactly"}[leak.kind]
    head = f"{TASKS[leak.task].partition(':')[0]}, row {leak.number}; {what}: {leak.score:.2f}"
    sides = (("Truth", leak.truth), ("The model", leak.answer))
    return tag(
        "div",
        tag("div", tag("strong", head), tag("div", leak.prompt, class_="text", dir="auto"), class_="prompt"),
        tag("div", *(tag("div", tag("strong", name), _text(pieces)) for name, pieces in sides), class_="sides"),
        class_="leak",
    )


def _text(pieces: Sequence[Piece]) -> Html:
    return tag("div", *(tag("mark", text) if both else text for text, both in pieces), class_="text", dir="auto")


def cell(model: Model, task: str, metric: str) -> Html:
    """A score, with its interval below where there is one; a dash where there is no value."""
    value, interval = model.score(task, metric), model.interval(task, metric)
    if value is None:
        return Html("-")
    return join(f"{value:.3f}", tag("small", f"{interval[0]:.3f}\u2013{interval[1]:.3f}") if interval else None)


def _scores(models: Sequence[Model], columns: Sequence[Score], corner: str = "model") -> Html | None:
    """A table of those columns that any model has a value for; None if there is none."""
    kept = [
        column for column in columns if any(model.score(column.task, column.metric) is not None for model in models)
    ]
    if not kept:
        return None
    heads = [join(column.name, tag("small", f"good: {column.good}") if column.good else None) for column in kept]
    return table(
        [corner, *heads], [[m.name, *(cell(m, column.task, column.metric) for column in kept)] for m in models]
    )


def _to_get(what: str, options: str, model: str = "hf") -> Html:
    """The line that stands where there is no data."""
    command = f"lm_eval --model {model} --model_args pretrained=MODEL {options} --output_path RESULTS"
    text = f"Left out, as none of the results has the data: {what}. Run "
    return tag("p", text, tag("code", command), " and give RESULTS to this report.", class_="absent")


def _fold(title: str, *content: Html | None) -> Html | None:
    return tag("details", tag("summary", title), tag("div", *content, class_="parts")) if any(content) else None


def _picture(pictures: list[Picture], name: str, words: str, figure: Figure) -> Picture:
    pictures.append(Picture(f"{name}.png", words, plots.png(figure)))
    return pictures[-1]


def _figures(shown: Sequence[Picture]) -> Html:
    return figures([(picture.words, picture.data) for picture in shown])


def _labels(names: Sequence[str]) -> list[str]:
    """Names for a legend: printable, of long ones the end, all different."""
    printable = [visible(name).replace("\n", " ") for name in names]
    short = [name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}" for name in printable]
    return [f"{name} ({i})" if short.count(name) > 1 else name for i, name in enumerate(short, start=1)]


def _numbers(labels: Sequence[str]) -> dict[str, int]:
    return {label: number for number, label in enumerate(labels)}


def _file(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name)[-LONGEST_NAME:].strip("-.")
