"""Write, find and remove checkpoints; incomplete ones are ignored.

A checkpoint is complete if it holds `complete.json`, a list of its files and their sizes that is written last.
"""

import json
import os
import shutil
from pathlib import Path

from lume_unlearn.errors import ConfigError
from lume_unlearn.files import PREFIX

MARK = "complete.json"


def publish_checkpoint(partial: Path, output: Path, keep: int | None) -> None:
    """Mark the checkpoint in ``partial`` complete, move it into the folder of the run, and `prune`."""
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


def prune(output: Path, keep: int | None) -> None:
    """Remove incomplete checkpoints and all but the newest ``keep`` complete ones (None or 0: keep all)."""
    kept = whole_checkpoints(output)[: keep or None]
    for checkpoint in output.glob(f"{PREFIX}[0-9]*"):
        if checkpoint not in kept:
            (checkpoint / MARK).unlink(missing_ok=True)  # first: an interrupted removal leaves no complete checkpoint
            shutil.rmtree(checkpoint, ignore_errors=True)


def is_whole(checkpoint: Path) -> bool:
    """Return whether a checkpoint is complete: `complete.json` is there, and every file in it has the listed size."""
    try:
        sizes = json.loads((checkpoint / MARK).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def chosen_checkpoint(named: str | bool | None, output: Path) -> Path | None:
    """Return the checkpoint to continue from: the one named, or with True the newest complete one in ``output``.

    Raises:
        ConfigError: it is not complete, or there is none.
    """
    if named is None or named is False:
        return None
    if named is not True:
        if not is_whole(Path(named)):
            raise ConfigError(f"--resume_from_checkpoint {named}: not a complete checkpoint; name another one")
        return Path(named)
    found = whole_checkpoints(output)
    if not found:
        raise ConfigError(
            f"--resume_from_checkpoint: no complete checkpoint in {output}; start anew without this option"
        )
    return found[0]


def require_fresh(output: Path, save_strategy: str | None) -> None:
    """Refuse to save checkpoints among those of another training, since the older ones might be kept or resumed.

    Raises:
        ConfigError: ``output`` holds complete checkpoints, and ``save_strategy`` is not "no".
    """
    if save_strategy != "no" and (found := whole_checkpoints(output)):
        raise ConfigError(
            f"{found[0]}: belongs to another training; continue that with resume_from_checkpoint=True, name another "
            "output_dir, or delete its checkpoints"
        )


def whole_checkpoints(output: Path) -> list[Path]:
    """Return the complete checkpoints of a run, newest first."""
    found = [path for path in output.glob(f"{PREFIX}[0-9]*") if is_whole(path)]
    return sorted(found, key=lambda path: int(path.name[len(PREFIX) :]), reverse=True)
