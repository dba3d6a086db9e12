"""Read the rows and texts that the options of a command name."""

import os
from dataclasses import dataclass
from pathlib import Path

from lume_tasks.data import locate
from lume_tasks.data.files import SUFFIXES, find_file, read_rows
from lume_tasks.data.rows import Row
from lume_tasks.data.source import Data, load_data
from lume_tasks.errors import DataError, warn_once
from lume_unlearn.checks import names
from lume_unlearn.data.documents import new_texts, read_texts
from lume_unlearn.errors import ConfigError, log

OWN_DATA = "for your own rows, give --data DIR (`lume-tasks prepare` makes one)"
"""How to use other rows than the published LUME."""


@dataclass(frozen=True)
class Source:
    """Where the rows of a command are: in a data directory, or in files.

    Attributes:
        data: data directory; None for LUME_DATA_DIR, else the published LUME.
        split: rows of the directory: all, train, validation or test.
        forget: file or folder with forget rows, instead of a directory.
        retain: file or folder with retain rows.
    """

    data: str | None = None
    split: str = "all"
    forget: str | None = None
    retain: str | None = None

    def __post_init__(self) -> None:
        """Raise `ConfigError` for options that contradict each other."""
        if self.forget is not None and (self.data is not None or self.split != "all"):
            raise ConfigError("--forget: use either --forget or --data and --split")
        if self.retain is not None and self.forget is None:
            raise ConfigError("--retain: needs --forget; give both, or a directory with both in --data")

    @property
    def directory(self) -> Path | None:
        """The data directory; None if files were named."""
        return None if self.forget is not None else named_directory(self.data)

    def loaded(self) -> Data:
        """Read everything that can be scored; no retain rows if only a forget file was named.

        Raises:
            ConfigError: ``data`` is not a directory.
            DataError: the message lists everything wrong with rows or documents.
        """
        if self.directory is not None:
            return load_data(self.directory, self.split)
        files = {"forget": named_file(str(self.forget), "forget")}
        if self.retain is not None:
            files["retain"] = named_file(self.retain, "retain")
        sides = locate.read_sides(files, "--forget and --retain")
        return Data(sides["forget"], sides["retain"])


def named_directory(data: str | None, option: str = "--data") -> Path:
    """Return the data directory that an option names; if it names none, LUME_DATA_DIR, else the published files."""
    if data is not None and not Path(data).expanduser().is_dir():
        raise ConfigError(f"{option} {data}: is not a directory")
    if data is not None or os.environ.get(locate.DATA_VARIABLE):
        return locate.data_dir(data)
    if os.environ.get("RANK", "0") == "0":  # of several processes, the first
        warn_once(log, f"no --data: using the published LUME rows; {OWN_DATA}")
    try:
        return locate.data_dir()
    except DataError as error:
        message = f"{option}: none given; {OWN_DATA}. The default, the published LUME rows, cannot be read:"
        raise DataError(f"{message}\n{error}") from error


def named_file(named: str, side: str) -> Path:
    """Return the file of ``--forget`` or ``--retain``, which may name a folder that holds it."""
    path = Path(named).expanduser()
    if not path.exists():
        raise DataError(f"--{side} {path}: there is no such file or folder")
    if path.is_dir():
        return find_file(path, side, str(path / side))
    if path.suffix not in SUFFIXES:
        raise DataError(f"--{side} {path}: must be .jsonl or .parquet; `lume-tasks prepare` converts other files")
    return path


def earlier_rows(forgotten: str | None) -> list[Row]:
    """Read the forget rows of the data directories of earlier requests, whose names are separated by commas."""
    folders = [named_directory(name, "--forgotten") for name in names(forgotten)]
    return [row for folder in folders for row in read_rows(locate.side_file(folder, "forget"))]


def finetune_rows(data: str | None, split: str, rows: str, texts: str | None) -> list[Row]:
    """Read what `finetune` trains on, each text once.

    Args:
        data: data directory, or None for the default one.
        split: rows to use.
        rows: "all": forget and retain rows, then the member documents that are not the text of one of these rows;
            "retain": retain rows alone.
        texts: file of further texts, or None.

    Raises:
        ConfigError: ``data`` is not a directory, or there is no file ``texts``.
        DataError: the message lists everything wrong with rows, documents or texts.
    """
    loaded = load_data(named_directory(data), split)
    found = list(loaded.retain)
    if rows == "all":
        found = [*loaded.forget, *found]
        found += new_texts(loaded.members, "member", found)
    if texts is not None:
        found += read_texts("texts", texts, found)
    return found
