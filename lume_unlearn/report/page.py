"""`lume-unlearn report`: write results files of the harness as one self-contained page, and its figures as files."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lume_tasks.errors import DataError, visible
from lume_tasks.metrics import unlearning
from lume_tasks.metrics.unlearning import RowScores, difference_interval, distance_interval, distance_of_means
from lume_unlearn.files import write_text
from lume_unlearn.report import glossary, plots, template
from lume_unlearn.report.glossary import LEADERBOARD, MEANS, PART_NAMES, TASKS, Score
from lume_unlearn.report.redact import worst_leaks
from lume_unlearn.report.results import (
    Model,
    comparability,
    find_runs,
    names_by_value,
    read_audits,
    read_models,
)

LEAKS = 5  # rows shown of each kind and model

Cell = tuple[str, str]  # a score and its interval, or a heading and a note


class Table(NamedTuple):
    """Column headings, and for each row its name and its cells."""

    head: list[Cell]
    rows: list[tuple[str, list[Cell]]]


def write_report(
    results: Sequence[str],
    output: Path,
    title: str = "Unlearning report",
    show_pii: bool = False,
    retrained: str | None = None,
    audits: Sequence[str] = (),
) -> list[Path]:
    """Write the page, and its figures once more as files in ``<stem>_files/`` beside it.

    Args:
        results: results files of the harness, or folders that hold them.
        output: the page to write.
        title: heading of the page.
        show_pii: show texts as they are; otherwise personal data is redacted (see `redact`).
        retrained: results of the retrained model, for the distances at the top of the page.
        audits: files ``audit.json`` of the models in ``results``.

    Returns:
        All files written, the page first.

    Raises:
        DataError: results that cannot be read, or a page that cannot be written there.
    """
    if audits and not retrained:
        raise DataError("--audits: only with --retrained, which names the results to compare with")
    goal = read_retrained(retrained) if retrained else None
    data = page_data(read_models(results), show_pii, goal, audits)
    page = render(data, title)
    pictures = data["trade_off"] + data["training"] + ([data["roc"]] if data["roc"] else [])
    try:
        folder = output.with_name(f"{output.stem}_files")
        folder.mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            (folder / picture.file).write_bytes(picture.png)
        write_text(output, page)
    except (OSError, ValueError) as error:  # ValueError: the path has no file name, such as "."
        raise DataError(f"--output {output}: cannot be written ({error})") from error
    return [output, *(folder / picture.file for picture in pictures)]


def render(data: dict[str, Any], title: str) -> str:
    """Return the page as HTML. All text is escaped, and its control and invisible characters are written out."""
    page = template("page.html.j2", autoescape=True, finalize=_visible)
    return page.render(data, title=title, task_number=glossary.task_number)


def _visible(value: Any) -> Any:
    is_markup = hasattr(value, "__html__")
    return visible(value) if isinstance(value, str) and not is_markup else value


def read_retrained(path: str) -> Model:
    """Read the results of ``--retrained``; DataError if they are of several models."""
    models = read_models([path])
    if len(models) > 1:
        raise DataError(f"--retrained {path}: holds results of {len(models)} models or settings; name those of one")
    return replace(models[0], name="the retrained model")


def page_data(
    models: Sequence[Model], show_pii: bool, retrained: Model | None = None, audits: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what the template shows."""
    trade_off = [plots.trade_off(models, task) for task in TASKS]
    training = [plots.over_training(run, number) for number, run in enumerate(find_runs(models), start=1)]
    return {
        "models": models,
        "show_pii": show_pii,
        "problems": comparability([*models, *([retrained] if retrained else [])]),
        "distances": distances(models, retrained, audits) if retrained else None,
        "unfinished": without_final_score(models),
        "overall": score_table(models, LEADERBOARD),
        "twelve": tables(models, glossary.TWELVE),
        "trade_off": [picture for picture in trade_off if picture],
        "training": [picture for picture in training if picture],
        "aucs": score_table(models, (*glossary.AUCS, glossary.MEMBERS)),
        "caught": tables(models, glossary.CAUGHT),
        "reference": score_table(models, glossary.REFERENCE),
        "not_unlearned": not_unlearned(models),
        "roc": plots.roc(models),
        "memorisation": tables(models, glossary.MEMORISATION),
        "personal_data": {side: tables(models, groups) for side, groups in glossary.PERSONAL_DATA.items()},
        "leaks": leaks(models, show_pii),
        "everything": everything(models),
    }


def distances(models: Sequence[Model], retrained: Model, audits: Sequence[str]) -> dict[str, Any]:
    """Return each model's distance to the retrained model, before and after its hardest audit.

    Models are compared row by row (see `lume_tasks.metrics.unlearning.distances`), and by their means if the samples of
    one of the two are missing. The hardest audit is the one after which the model's means are furthest from the
    retrained model's.

    Returns:
        ``table``; ``of_means``: why only means were compared -> names of models; ``nearest``: the nearest model; and
        ``tied``: models whose distance cannot be told apart from its.

    Raises:
        DataError: the retrained model has no scores; or as `read_audits`.
    """
    goal, goal_means = retrained.row_scores(), numbers_of(retrained)
    if not goal_means:
        raise DataError("--retrained: the results have none of the twelve scores and no loss AUC; run --tasks lume")
    audited = read_audits(audits, models, retrained.evaluations[0].split)
    head = [("model", ""), ("distance to retrained", "good: 0"), *((name, "part") for name in PART_NAMES.values())]
    head += [("after the hardest audit", "of means, good: 0")] if audits else []
    rows, compared, of_means = [], {}, {}
    for model in models:
        found = model.row_scores()
        try:
            cells = row_distance_cells(found, goal)
            if model.path != retrained.path:
                compared[model.name] = found
        except ValueError as error:
            of_means[model.name] = str(error)
            cells = [distance_of_means_cell(numbers_of(model), goal_means), *[("-", "")] * len(PART_NAMES)]
        if audits:
            cells.append(hardest_audit(audited[model.path], goal_means) if model.path in audited else ("-", "no audit"))
        rows.append((model.name, cells))
    table = {"table": Table(head, rows), "of_means": names_by_value(of_means)}
    return table | nearest_models(compared, goal)


def row_distance_cells(found: RowScores, goal: RowScores) -> list[Cell]:
    """Return the distance with its interval over the documents, and its parts; ValueError if rows are missing."""
    if not found.rows:
        raise ValueError("no samples of rows were logged; score it with --log_samples")
    distance, *ends = distance_interval([found], goal)
    parts = unlearning.distances(found, goal)
    return [number(distance, ends_text(*ends)), *(number(parts.get(part)) for part in PART_NAMES)]


def nearest_models(compared: Mapping[str, RowScores], goal: RowScores) -> dict[str, Any]:
    """Return the model nearest to the retrained model, and those whose distance cannot be told apart from its."""
    nearest = min(compared, key=lambda name: unlearning.distances(compared[name], goal)["distance"], default="")
    others = {name: found for name, found in compared.items() if name != nearest}
    tied = [name for name, found in others.items() if difference_interval([found], [compared[nearest]], goal)[1] <= 0]
    return {"nearest": nearest, "tied": tied}


def numbers_of(model: Model) -> dict[str, float]:
    """Return the means that a distance of means compares."""
    values = {name: model.score(*name.split()) for names in MEANS.values() for name in names}
    return {name: value for name, value in values.items() if value is not None}


def distance_of_means_cell(numbers: Mapping[str, float], goal: Mapping[str, float]) -> Cell:
    """Return the distance; a dash if a number that the retrained model has is missing."""
    missing = goal.keys() - numbers.keys()
    return ("-", f"no {min(missing)}") if missing else (f"{distance_of_means(numbers, goal, MEANS):.3f}", "of means")


def hardest_audit(audits: Mapping[str, Mapping[str, float]], goal: Mapping[str, float]) -> Cell:
    """Return the largest distance of means after an audit; its note has the one of the audited rows before it."""
    measured = {name: numbers for name, numbers in audits.items() if goal.keys() <= numbers.keys()}
    far = {name: distance_of_means(numbers, goal, MEANS) for name, numbers in measured.items()}
    plain = far.pop("plain", None)
    if not far:
        return "-", "no audit measured all numbers"
    name = max(far, key=far.__getitem__)
    return f"{far[name]:.3f}", name if plain is None else f"{name}; before: {plain:.3f}"


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
    interval = model.interval(task, metric)
    return number(model.score(task, metric), ends_text(*interval) if interval else "")


def number(value: float | None, note: str = "") -> Cell:
    """Return a number as a cell; None as a dash."""
    return ("-", "") if value is None else (f"{value:.3f}", note)


def ends_text(low: float, high: float) -> str:
    """Return an interval as text."""
    return f"{low:.3f}\u2013{high:.3f}"


def without_final_score(models: Sequence[Model]) -> dict[str, list[str]]:
    """Return the models without a final score by what is missing for it."""
    scored = {model.name: model.evaluation("lume_score") for model in models}
    found = {name: one.content["results"]["lume_score"].get("missing,none") for name, one in scored.items() if one}
    return names_by_value({name: missing or None for name, missing in found.items()})


def not_unlearned(models: Sequence[Model]) -> dict[str, list[str]]:
    """Return the models for which not all member documents are forget rows, by the share of those that are."""
    shares = {model.name: model.score("lume_mia", "members_unlearned") for model in models}
    return names_by_value({name: f"{share:.0%}" for name, share in shares.items() if share is not None and share < 1})


def leaks(models: Sequence[Model], show_pii: bool) -> dict[str, list[Any]]:
    """Return for each model with logged samples the forget rows that it knows best."""
    samples = {model.name: {task: model.samples(task) for task in TASKS} for model in models}
    return {name: worst_leaks(logged, LEAKS, show_pii) for name, logged in samples.items() if any(logged.values())}
