"""`lume-unlearn methods`."""

from typing import Any


def add_options(parser: Any) -> None:
    """Add the options of `methods`."""
    parser.add_argument("--markdown", type=bool, default=False, help="Print the Markdown table of the README.")


def execute(options: dict[str, Any]) -> None:
    """Print the methods."""
    from lume_unlearn.methods.table import listing, markdown
    from lume_unlearn.recipes import FOLDER

    lines = markdown() if options["markdown"] else listing([path.stem for path in FOLDER.glob("*.yaml")])
    print(*lines, sep="\n")
