"""Atomic writes, and one process at a time in an output folder.

Results are first written to `.partial` and then renamed, so a process that dies at any moment leaves the old file, the
new one, or none, but no half-written one. After a power failure this depends on the file system's order of writes.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from lume_unlearn.errors import ConfigError

LOCK = ".lock"
PARTIAL = ".partial"
PREFIX = "checkpoint-"
NEEDED_TO_LOAD = ("config.json", "adapter_config.json")
"""A folder without these files is neither a model nor an adapter, so they are moved last."""
WRITE_FAILURES = ("inline_container", "iostream error", "Parent directory", "(os error ")
"""Parts of the messages of torch.save (RuntimeError) and tokenizers (Exception) when a file cannot be written."""


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: an interrupted write leaves ``path`` unchanged.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Name a file to write, which then replaces ``path``; an error or an interruption leaves ``path`` unchanged."""
    partial = path.with_name(f"{path.name}{PARTIAL}")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def fresh_partial(output: Path) -> Path:
    """Create the empty folder ``output/.partial`` and return it."""
    partial = output / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def publish_result(partial: Path, output: Path) -> None:
    """Move the files of a model or adapter from ``partial`` to ``output``."""
    for name in NEEDED_TO_LOAD:  # else an interrupted move would leave a model of old and new files
        (output / name).unlink(missing_ok=True)
    for path in sorted(partial.iterdir(), key=lambda path: path.name in NEEDED_TO_LOAD):
        if path.name != "training_args.bin":  # a pickle; unlearning.json has the options
            os.replace(path, output / path.name)
    shutil.rmtree(partial, ignore_errors=True)


def save_whole(model: Any, tokenizer: Any, output: Path) -> None:
    """Write a model and, if it is not None, its tokenizer to a folder, each file atomically.

    Raises:
        ConfigError: the folder cannot be written.
    """
    with writing(output):
        partial = fresh_partial(output)
        model.save_pretrained(partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        publish_result(partial, output)


@contextmanager
def only_run(output: Path) -> Iterator[None]:
    """Create the output folder and lock it for this process.

    Raises:
        ConfigError: another process holds the lock, or the folder cannot be written.
    """
    lock = FileLock(output / LOCK, timeout=0)
    with writing(output):
        try:
            lock.acquire()
        except Timeout as error:
            raise ConfigError(
                f"--output {output}: another run is writing there; wait for it, or name another folder"
            ) from error
    try:
        yield
    finally:
        with suppress(OSError):
            (output / LOCK).unlink()  # before the release: filelock retries if the file that it opened is gone
        lock.release()


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Turn failed writes into a `ConfigError` that names the folder.

    Raises:
        ConfigError: a write failed; this replaces OSError and the errors of torch, safetensors and tokenizers.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        yield
    except Exception as error:
        from_library = type(error) in (RuntimeError, Exception) and any(part in str(error) for part in WRITE_FAILURES)
        if not (from_library or isinstance(error, (OSError, SafetensorError))):
            raise
        if output.is_file():
            raise ConfigError(f"--output {output}: is a file; name a folder") from error
        shutil.rmtree(output / PARTIAL, ignore_errors=True)
        raise ConfigError(
            f"--output {output}: cannot be written ({error}); make room or name another folder (`run` and `finetune` "
            "continue from their last complete checkpoint with --resume)"
        ) from error
