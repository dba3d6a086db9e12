"""The `quickstart` command and its rows: a tiny data directory in the layout of LUME."""

from pathlib import Path

ROWS = Path(__file__).parent / "rows"
