"""Files that are there as a whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial"


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A place beside a file to write to; what was written there becomes the file when all went well.

    Raises:
        OSError: it cannot be written; the file is as it was.
    """
    partial = path.with_name(f"{path.name}{PARTIAL}")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a file as a whole or not at all.

    Raises:
        OSError: it cannot be written; the file is as it was.
    """
    with aside(path) as partial:
        partial.write_text(text, encoding="utf-8")
