"""Checkpoints and results that are there as a whole or not at all, and one run at a time in a folder.

Everything is written into ``.partial`` beside its place and then renamed. A checkpoint counts only with its completion
mark, a list of its files and their sizes that is written last. This holds against processes that die at any moment;
against a machine that loses power it holds as far as the file system keeps the order of its writes.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from transformers import TrainerState

from lume_unlearn.config import ConfigError
from lume_unlearn.files import PARTIAL

LOCK = ".lock"
MARK = "complete.json"
PREFIX = "checkpoint-"
# What makes a folder a model or an adapter goes last: without it nothing loads the rest.
LAST = ("config.json", "adapter_config.json")
# Words of the plain errors that torch.save (RuntimeError) and tokenizers (Exception) make of a full disk or of a folder
# that is gone.
WRITING = ("inline_container", "iostream error", "Parent directory", "(os error ")


class InCheckpoint:
    """A callback with something of its own to keep in every checkpoint."""

    def write_into(self, checkpoint: Path, state: TrainerState) -> None:
        """Write it, on every process, before the checkpoint is marked complete."""
        raise NotImplementedError


def fresh_partial(output: Path) -> Path:
    """An empty place to write to, beside what will be replaced."""
    partial = output / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def publish_checkpoint(partial: Path, output: Path, keep: int) -> None:
    """Mark a written checkpoint complete, move it to its place, then remove old ones.

    Args:
        partial: folder that holds the one folder ``checkpoint-<step>``.
        output: folder of the run.
        keep: see `prune`.
    """
    (written,) = partial.glob(f"{PREFIX}*")
    (written / "training_args.bin").unlink(missing_ok=True)  # a pickle; ours are in unlearning.json
    sizes = {
        str(path.relative_to(written)): path.stat().st_size for path in sorted(written.rglob("*")) if path.is_file()
    }
    (written / MARK).write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")
    final = output / written.name
    shutil.rmtree(final, ignore_errors=True)  # of an earlier run that was not complete, or of this same step
    os.replace(written, final)
    shutil.rmtree(partial, ignore_errors=True)
    prune(output, keep)


def prune(output: Path, keep: int) -> None:
    """Remove incomplete checkpoints and all but the newest ``keep`` complete ones (0: keep all)."""
    whole = whole_checkpoints(output)
    for old in _numbered(output):
        if old not in whole[: keep or None]:
            _remove(old)


def withdraw(output: Path, step: int) -> None:
    """Remove the checkpoint of this step, if there is one."""
    _remove(output / f"{PREFIX}{step}")


def _remove(checkpoint: Path) -> None:
    (checkpoint / MARK).unlink(missing_ok=True)  # first, so that what is left of it never counts
    shutil.rmtree(checkpoint, ignore_errors=True)


def publish_result(partial: Path, output: Path) -> None:
    """Move a model or an adapter to its place, file by file, what makes it loadable last."""
    for name in LAST:  # of a result that was cut off here: it would make a model of old and new files
        (output / name).unlink(missing_ok=True)
    for path in sorted(partial.iterdir(), key=lambda path: (path.name in LAST, path.name)):
        if path.name != "training_args.bin":
            os.replace(path, output / path.name)
    shutil.rmtree(partial, ignore_errors=True)


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint has its completion mark, and every file that it lists."""
    try:
        sizes = json.loads((checkpoint / MARK).read_text(encoding="utf-8"))
        return bool(sizes) and all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def whole_checkpoints(output: Path) -> list[Path]:
    """The complete checkpoints of a run, newest first."""
    return [path for path in _numbered(output) if is_whole(path)]


def _numbered(output: Path) -> list[Path]:
    """The checkpoints of a run, complete or not, newest first."""
    found = [path for path in output.glob(f"{PREFIX}*") if path.name[len(PREFIX) :].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[len(PREFIX) :]), reverse=True)


@contextmanager
def only_run(output: Path) -> Iterator[None]:
    """Hold the folder for one run.

    Raises:
        ConfigError: another run holds it, or it cannot be written.
    """
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise ConfigError(
                f"--output {output}: another run is writing there; wait for it, or name another"
            ) from error
    try:
        yield
    finally:
        with suppress(OSError):
            (output / LOCK).unlink()  # while held: who has opened it finds out that it is gone, and tries again
        lock.release()


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Say what is left where something cannot be written.

    Raises:
        ConfigError: instead of the error of the file system (or of what the libraries make of it).
    """
    try:
        yield
    except Exception as error:
        plain = type(error) in (RuntimeError, Exception) and any(words in str(error) for words in WRITING)
        if not (plain or isinstance(error, (OSError, SafetensorError))):
            raise
        room = _room(output)
        shutil.rmtree(output / PARTIAL, ignore_errors=True)
        kept = next(iter(whole_checkpoints(output)), None) if output.is_dir() else None
        left = (
            f"{kept.name} is the last complete checkpoint: go on from it with --resume when there is room"
            if kept
            else "no checkpoint was complete yet"
        )
        raise ConfigError(f"--output {output}: cannot be written ({error}{room}); {left}") from error


def _room(output: Path) -> str:
    """The room on a disk, where that can be told: torch's own message does not speak of it."""
    try:
        free = shutil.disk_usage(output).free
    except OSError:
        return ""
    return f"; {free / 2**20:.1f} MB are free there"
