"""Where the options say that rows are."""

from pathlib import Path

from lume_tasks.data import locate
from lume_tasks.data.files import find_file
from lume_tasks.errors import DataError
from lume_unlearn.config import ConfigError


def named_directory(data: str | None) -> Path:
    """The data directory of ``--data``, or the one that is found without it.

    Raises:
        ConfigError: it is no directory.
        DataError: there is none to be found.
    """
    if data is not None and not Path(data).expanduser().is_dir():
        raise ConfigError(f"--data {data}: is not a directory")
    return locate.data_dir(data)


def named_file(named: str, side: str) -> Path:
    """The file of ``--forget`` or ``--retain``: a file as it is, in a folder the side's file.

    Raises:
        DataError: there is none.
    """
    path = Path(named).expanduser()
    if not path.exists():
        raise DataError(f"--{side} {path}: there is no such file or folder")
    return find_file(path, side, str(path / side)) if path.is_dir() else path
