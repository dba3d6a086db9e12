"""`lume-unlearn report`: write results files of the harness as one self-contained page, and its figures as files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lume_tasks.errors import DataError, visible
from lume_unlearn.files import write_text
from lume_unlearn.report import template
from lume_unlearn.report.glossary import task_number
from lume_unlearn.report.results import read_models
from lume_unlearn.report.sections import page_data


def write_report(results: Sequence[str], output: Path, title: str, show_pii: bool) -> list[Path]:
    """Write the page, and its figures once more as files in ``<stem>_files/`` beside it.

    Args:
        results: results files of the harness, or folders that hold them.
        output: the page to write.
        title: heading of the page.
        show_pii: show texts as they are; otherwise personal data is redacted (see `redact`).

    Returns:
        All files written, the page first.

    Raises:
        DataError: results that cannot be read, or a page that cannot be written there.
    """
    data = page_data(read_models(results), show_pii)
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
    return page.render(data, title=title, task_number=task_number)


def _visible(value: Any) -> Any:
    is_markup = hasattr(value, "__html__")
    return visible(value) if isinstance(value, str) and not is_markup else value
