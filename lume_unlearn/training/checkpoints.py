"""Checkpoints that are complete or do not count, and which one a run can continue from.

A checkpoint is complete if it holds `complete.json`, a list of its files and their sizes that is written last.
"""

import json
import os
import shutil
from pathlib import Path

from transformers import TrainerState

from lume_unlearn.files import PREFIX

MARK = "complete.json"


class InCheckpoint:
    """A callback that keeps a file in every checkpoint."""

    def write_into(self, checkpoint: Path, state: TrainerState) -> None:
        """Write the file. Every process calls this before the checkpoint is marked complete."""
        raise NotImplementedError


def publish_checkpoint(partial: Path, output: Path, keep: int) -> None:
    """Mark a written checkpoint complete, move it to its place, then remove old ones.

    Args:
        partial: folder that holds one folder ``checkpoint-<step>``.
        output: folder of the run.
        keep: see `prune`.
    """
    (written,) = partial.glob(f"{PREFIX}*")
    (written / "training_args.bin").unlink(missing_ok=True)  # a pickle; unlearning.json has the options
    files = [path for path in sorted(written.rglob("*")) if path.is_file()]
    sizes = {str(path.relative_to(written)): path.stat().st_size for path in files}
    (written / MARK).write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")
    final = output / written.name
    shutil.rmtree(final, ignore_errors=True)  # an incomplete checkpoint of the run before it was resumed
    os.replace(written, final)
    shutil.rmtree(partial, ignore_errors=True)
    prune(output, keep)


def prune(output: Path, keep: int) -> None:
    """Remove incomplete checkpoints and all but the newest ``keep`` complete ones (0: keep all)."""
    kept = whole_checkpoints(output)[: keep or None]
    for checkpoint in _checkpoints(output):
        if checkpoint not in kept:
            (checkpoint / MARK).unlink(missing_ok=True)  # first: an interrupted removal leaves no complete checkpoint
            shutil.rmtree(checkpoint, ignore_errors=True)


def is_whole(checkpoint: Path) -> bool:
    """Return whether a checkpoint is complete: `complete.json` is there, and every file in it has its size."""
    try:
        sizes = json.loads((checkpoint / MARK).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def whole_checkpoints(output: Path) -> list[Path]:
    """Return the complete checkpoints of a run, newest first."""
    return [path for path in _checkpoints(output) if is_whole(path)]


def _checkpoints(output: Path) -> list[Path]:
    found = [path for path in output.glob(f"{PREFIX}*") if path.name[len(PREFIX) :].isdecimal()]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Return the optimiser step of a checkpoint."""
    return int(checkpoint.name[len(PREFIX) :])


def resume_advice(output: Path, last_good: float) -> str:
    """Say how to continue from the newest complete checkpoint up to step ``last_good``."""
    found = whole_checkpoints(output)
    good = [path.name for path in found if step_of(path) <= last_good]
    bad = [path.name for path in found if step_of(path) > last_good]
    if not good:
        return "no checkpoint is from before that: start again in another --output with a lower --learning_rate"
    how = f"the same command with --resume and a lower --learning_rate continues from {good[0]}"
    return f"remove {', '.join(bad)}; then {how}" if bad else how
