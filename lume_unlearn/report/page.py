"""`lume-unlearn report`: results files of the harness in, one self-contained page and its pictures out."""

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from lume_tasks.errors import DataError
from lume_unlearn.files import aside, write_text
from lume_unlearn.report import sections
from lume_unlearn.report.glossary import MEANINGS
from lume_unlearn.report.html import Html, page, section, table, tag
from lume_unlearn.report.results import Evaluation, Model, comparability, read_models


def write_report(results: Sequence[str], output: Path, title: str, show_pii: bool) -> list[Path]:
    """Read results, write the page, and its pictures once more as files in ``<stem>_files/`` beside it.

    Args:
        results: results files of the harness, or folders that hold them.
        output: the page to write.
        title: heading of the page.
        show_pii: show texts as they are; masked otherwise (see `masking`).

    Returns:
        All files written, the page first.

    Raises:
        DataError: results that cannot be read, or a page that cannot be written there.
    """
    text, pictures = build_report(read_models(results), title, show_pii)
    try:
        folder = output.with_name(f"{output.stem}_files")
        folder.mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            with aside(folder / picture.file) as partial:
                partial.write_bytes(picture.data)
        write_text(output, text)
    except (OSError, ValueError) as error:  # the latter where the path has no name, such as /
        raise DataError(f"--output {output}: cannot be written ({error})") from error
    return [output, *(folder / picture.file for picture in pictures)]


def build_report(models: Sequence[Model], title: str, show_pii: bool) -> tuple[str, list[sections.Picture]]:
    """The page as text, and the pictures on it."""
    pictures: list[sections.Picture] = []
    parts = [
        _head(models),
        sections.leaderboard(models),
        sections.trade_off(models, pictures),
        sections.training(models, pictures),
        sections.attacks(models, pictures),
        sections.memorisation(models),
        sections.personal_data(models, pictures),
        sections.leaks(models, show_pii),
        tag("div", section("What the numbers mean", _meanings()), id="meanings"),
        section("Everything that was measured", _everything(models)),
        section("Where the numbers come from", _sources(models)),
    ]
    return page(title, *parts), pictures


def _head(models: Sequence[Model]) -> Html:
    intro = tag(
        "p",
        f"{len(models)} model{'s' * (len(models) > 1)}, scored on LUME by lm-evaluation-harness. Unlearning is good "
        "where forget scores are low, retain scores high, and an attacker cannot tell what was in the training data. ",
        tag("a", "What each number means", href="#meanings"),
        ".",
    )
    problems = comparability(models)
    lines = tag("ul", *(tag("li", problem) for problem in problems))
    warning = tag("div", tag("strong", "Not all of these scores can be compared."), lines, class_="warning")
    return tag("header", intro, warning if problems else None)


def _meanings() -> Html:
    entries = (tag("div", tag("dt", name), tag("dd", text)) for name, text in MEANINGS.items())
    return tag("dl", *entries, class_="columns")


def _everything(models: Sequence[Model]) -> Html:
    """Every metric of every task, a line each: what no other section shows stands here at least."""
    keys = {
        (task, metric)
        for model in models
        for one in model.evaluations
        for task in one.scores
        for metric in one.scores[task]
    }
    ends = {(task, f"{metric}_{end}") for task, metric in keys for end in ("low", "high")}
    rows = [
        [f"{task} {metric}", *(sections.cell(model, task, metric) for model in models)]
        for task, metric in sorted(keys - ends)
    ]
    return tag(
        "details", tag("summary", f"{len(rows)} numbers"), table(["task and metric", *(m.name for m in models)], rows)
    )


def _sources(models: Sequence[Model]) -> Html:
    return tag("dl", *(_source(model.name, one) for model in models for one in model.evaluations))


def _source(name: str, one: Evaluation) -> Html:
    made = f"{datetime.fromtimestamp(one.date, timezone.utc):%Y-%m-%d %H:%M} UTC" if one.date else "at an unknown date"
    tasks = (
        f"{task} {one.version(task)}" for task in one.scores if task != "lume" and not task.startswith("lume_mmlu_")
    )
    harness = f"lm-eval {one.content.get('lm_eval_version', '')} ({one.content.get('model_source', 'unknown backend')})"
    lines = (tag("code", str(one.path)), f"{made}, {harness}; {one.settings}", f"Tasks: {', '.join(tasks)}")
    return tag("div", tag("dt", name), *(tag("dd", line) for line in lines))
