"""`lume-unlearn path`."""

from pathlib import Path
from typing import Any


def add_options(parser: Any) -> None:
    """Add no options: the command has none."""


def execute(options: dict[str, Any]) -> None:
    """Print the folder of the package."""
    print(Path(__file__).parents[1])
