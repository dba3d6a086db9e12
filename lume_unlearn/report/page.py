"""`lume-unlearn report`: write results files of the harness as one self-contained page, and its figures as files."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lume_tasks.data.rows import ROW_TASKS
from lume_tasks.errors import DataError, visible
from lume_tasks.metrics import unlearning
from lume_tasks.metrics.unlearning import RowScores, difference_interval, distance_interval
from lume_unlearn.files import write_text
from lume_unlearn.report import glossary, plots, template
from lume_unlearn.report.glossary import TASKS, Score
from lume_unlearn.report.redact import worst_leaks
from lume_unlearn.report.results import Model, comparability, names_by_value, read_models

LEAKS = 5  # rows shown of each kind and model


def write_report(
    results: Sequence[str],
    output: Path,
    title: str = "Unlearning report",
    show_pii: bool = False,
    retrained: str | None = None,
) -> list[Path]:
    """Write the page, and its figures once more as files in ``<stem>_files/`` beside it.

    Args:
        results: results files of the harness, or folders that hold them.
        output: the page to write.
        title: heading of the page.
        show_pii: show texts unchanged; otherwise personal data is redacted (see `redact`).
        retrained: results of the retrained model, for the distances at the top of the page.

    Returns:
        All files written, the page first.

    Raises:
        DataError: results that cannot be read, or a page that cannot be written there.
    """
    data = page_data(read_models(results), show_pii, read_retrained(retrained) if retrained else None)
    page = render(data, title)
    pictures = data["trade_off"] + ([data["roc"]] if data["roc"] else [])
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
    return page.render(data, title=title, glossary=glossary)


def _visible(value: Any) -> Any:
    is_markup = hasattr(value, "__html__")
    return visible(value) if isinstance(value, str) and not is_markup else value


def read_retrained(path: str) -> Model:
    """Read the results of ``--retrained``; DataError if they are of several models."""
    models = read_models([path])
    if len(models) > 1:
        raise DataError(f"--retrained {path}: holds results of {len(models)} models or settings; name those of one")
    return replace(models[0], name="the retrained model")


def page_data(models: Sequence[Model], show_pii: bool, retrained: Model | None = None) -> dict[str, Any]:
    """Return the data of the page's template, which takes the scores from the models."""
    return {
        "models": models,
        "show_pii": show_pii,
        "problems": comparability([*models, *([retrained] if retrained else [])]),
        "distances": distances(models, retrained) if retrained else None,
        "unfinished": without_final_score(models),
        "measured": partial(measured, models),
        "trade_off": [picture for task in TASKS if (picture := plots.trade_off(models, task))],
        "not_unlearned": not_unlearned(models),
        "roc": plots.roc(models),
        "leaks": leaks(models, show_pii),
        "everything": everything(models),
    }


def distances(models: Sequence[Model], retrained: Model) -> dict[str, Any]:
    """Return each model's distance to the retrained model.

    Models are compared row by row (see `lume_tasks.metrics.unlearning.distances`).

    Returns:
        ``rows``: name of the model -> its ``distance`` (None if rows are missing), ``interval`` and
        ``parts``; ``missing``: why there is no distance -> names of models; ``nearest``: the nearest model; and
        ``tied``: models whose distance cannot be told apart from that of the nearest.

    Raises:
        DataError: no samples of the retrained model's rows were logged.
    """
    goal = retrained.row_scores()
    if not goal.rows:
        raise DataError("--retrained: no samples of rows were logged; score it with --tasks lume --log_samples")
    rows, compared, missing = {}, {}, {}
    for model in models:
        found = model.row_scores()
        try:
            rows[model.name] = distance_of_rows(found, goal)
            if model.path != retrained.path:
                compared[model.name] = found
        except ValueError as error:
            missing[model.name] = str(error)
            rows[model.name] = {"distance": None}
    nearest = min(compared, key=lambda name: rows[name]["distance"], default="")
    others = {name: found for name, found in compared.items() if name != nearest}
    tied = [name for name, found in others.items() if difference_interval([found], [compared[nearest]], goal)[1] <= 0]
    return {"rows": rows, "missing": names_by_value(missing), "nearest": nearest, "tied": tied}


def distance_of_rows(found: RowScores, goal: RowScores) -> dict[str, Any]:
    """Return the distance with its interval over the documents, and its parts; ValueError if rows are missing."""
    if not found.rows:
        raise ValueError("no samples of rows were logged; score it with --log_samples")
    distance, *interval = distance_interval([found], goal)
    return {"distance": distance, "interval": interval, "parts": unlearning.distances(found, goal)}


def measured(models: Sequence[Model], columns: Sequence[Score]) -> list[Score]:
    """Return those columns of a table for which any model has a value."""
    return [c for c in columns if any(model.score(c.task, c.metric) is not None for model in models)]


def everything(models: Sequence[Model]) -> list[tuple[str, str]]:
    """Return every task and metric, without the ends of intervals."""
    keys = {(task, name) for m in models for one in m.evaluations for task in one.scores for name in one.scores[task]}
    return sorted(keys - {(task, f"{metric}_{end}") for task, metric in keys for end in ("low", "high")})


def without_final_score(models: Sequence[Model]) -> dict[str, list[str]]:
    """Return the names of the models without a final score, grouped by what is missing for it."""
    scored = {model.name: model.evaluation("lume_score") for model in models}
    found = {name: one.content["results"]["lume_score"].get("missing,none") for name, one in scored.items() if one}
    return names_by_value({name: missing or None for name, missing in found.items()})


def not_unlearned(models: Sequence[Model]) -> dict[str, list[str]]:
    """Return the models for which not all member documents are forget rows, grouped by the share that are."""
    shares = {model.name: model.score("lume_mia", "members_unlearned") for model in models}
    return names_by_value({name: f"{share:.0%}" for name, share in shares.items() if share is not None and share < 1})


def leaks(models: Sequence[Model], show_pii: bool) -> dict[str, list[Any]]:
    """Return for each model with logged samples the forget rows that it knows best."""
    samples = {model.name: {task: model.samples(task) for task in ROW_TASKS} for model in models}
    return {name: worst_leaks(logged, LEAKS, show_pii) for name, logged in samples.items() if any(logged.values())}
