"""`lume-unlearn report`."""

from pathlib import Path
from typing import Any

from lume_tasks.errors import counted
from lume_unlearn.cli.parsing import UNSET


def add_options(parser: Any) -> None:
    """Add the options of `report`."""
    parser.add_argument("results", nargs="+", help="results_*.json, or folders that hold them.")
    parser.add_argument("--output", default="report.html", help="Page to write; its pictures are also saved beside it.")
    parser.add_argument("--title", default="Unlearning report", help="Heading of the page.")
    parser.add_argument("--show_pii", type=bool, default=False, help="Do not redact personal data.")
    own = "Results of the retrained model; the page then begins with the distance of each model to it."
    parser.add_argument("--retrained", default=UNSET, help=own)


def execute(options: dict[str, Any]) -> None:
    """Write the page."""
    from lume_unlearn.report.page import write_report

    options["output"] = Path(options["output"]).expanduser()
    page, *pictures = write_report(**options)
    print(f"Written to {page} ({counted(len(pictures), 'picture')} also in {page.stem}_files).")
