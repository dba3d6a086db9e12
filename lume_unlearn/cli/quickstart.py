"""`lume-unlearn quickstart`."""

from pathlib import Path
from typing import Any


def add_options(parser: Any) -> None:
    """Add the options of `quickstart`."""
    parser.add_argument("--output", default="lume-quickstart", help="Folder for all results.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the data, the models and the runs.")


def execute(options: dict[str, Any]) -> None:
    """Run the quickstart."""
    from lume_unlearn.quickstart.run import quickstart

    quickstart(Path(options["output"]).expanduser(), options["seed"])
