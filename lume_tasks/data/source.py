"""Everything that the tasks score, in memory: made in Python, or read from a data directory."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from lume_tasks.data import locate
from lume_tasks.data.rows import SIDES, Row


@dataclass(frozen=True)
class Data:
    """Rows, documents of the membership attack, and where MMLU is.

    If metadata ``lume_data`` holds one, the tasks use it instead of a data directory.

    Attributes:
        forget: rows to unlearn.
        retain: rows to keep; may be empty.
        members: texts that the model was trained on. Without ``members`` or ``nonmembers`` there is no attack.
        nonmembers: texts that it was not trained on.
        mmlu: a folder in the layout of ``cais/mmlu``, or that name to read it from the hub; None: no MMLU.
        split: name of the rows' split, for the results and for messages.
    """

    forget: list[Row]
    retain: list[Row]
    members: list[str] = field(default_factory=list)
    nonmembers: list[str] = field(default_factory=list)
    mmlu: str | None = None
    split: str = "all"

    @property
    def rows(self) -> dict[str, list[Row]]:
        """The rows of both sides, ``forget`` and ``retain``."""
        return dict(zip(SIDES, (self.forget, self.retain), strict=True))

    def changed(self, change: Callable[[list[Row]], list[Row]]) -> "Data":
        """Return a copy in which ``change`` is applied to the rows of each side."""
        return replace(self, forget=change(self.forget), retain=change(self.retain))


def load_data(directory: Path, split: str = "all") -> Data:
    """Read a data directory; MMLU is used only if there is a local copy (``LUME_MMLU_PATH``, or in the directory).

    Raises:
        DataError: the split is absent, or rows or documents have faults; lists all faults of a file.
    """
    rows = locate.load_rows(directory, split)
    members, nonmembers = locate.load_mia(directory) if (directory / "mia_data").is_dir() else ([], [])
    source = locate.mmlu_source(None, directory)
    mmlu = None if source == locate.MMLU_HUB_ID else source
    return Data(**rows, members=members, nonmembers=nonmembers, mmlu=mmlu, split=split)
