"""Errors that the command line reports without a traceback, and the check of an output folder."""

from logging import getLogger
from pathlib import Path

log = getLogger("lume_unlearn")  # of all modules of the package


class ConfigError(ValueError):
    """An option that cannot work; the message names it and says what to do."""


class Diverged(ConfigError):
    """Training had a non-finite loss or gradient, or collapsed under ``on_collapse="stop"``, due to its options."""


class Interrupted(Exception):
    """A signal stopped the run, which saved a checkpoint; ``code`` is the exit status, 128 + the signal's number."""

    def __init__(self, message: str, number: int) -> None:
        """Set ``code`` from ``number``, the signal's number."""
        super().__init__(message)
        self.code = 128 + number


def require_unused(output: Path, advice: str = "name another folder") -> None:
    """Refuse an output folder that holds anything but a lock file.

    Raises:
        ConfigError: the path exists and is not an empty folder.
    """
    if output.exists() and (not output.is_dir() or any(path.name != ".lock" for path in output.iterdir())):
        raise ConfigError(f"--output {output}: it exists and is not empty; {advice}")
