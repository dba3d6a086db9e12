"""What the command line reports without a traceback, and the check of an output folder."""

from pathlib import Path


class ConfigError(ValueError):
    """An option that cannot work; the message names it and says what to do."""


class Diverged(ConfigError):
    """Training whose loss or gradient is not finite, or that collapsed where that ends it: a result of its setting."""


class Interrupted(Exception):
    """A signal stopped the run, which has saved a checkpoint; ``code`` is the exit status that shells give it."""

    def __init__(self, message: str, number: int) -> None:
        """``number``: of the signal."""
        super().__init__(message)
        self.code = 128 + number


def require_unused(output: Path, advice: str = "name another folder") -> None:
    """Refuse an output folder that holds anything but a lock file.

    Raises:
        ConfigError: the path exists and is not an empty folder.
    """
    if output.exists() and (not output.is_dir() or any(path.name != ".lock" for path in output.iterdir())):
        raise ConfigError(f"--output {output}: it exists and is not empty; {advice}")
