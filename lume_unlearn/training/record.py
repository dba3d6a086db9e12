"""`unlearning.json`: configuration, versions and history of a run, written with every checkpoint and at the end."""

import json
import platform
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState

from lume_unlearn.config import RunConfig
from lume_unlearn.errors import ConfigError
from lume_unlearn.files import write_text
from lume_unlearn.model.load import use_bfloat16
from lume_unlearn.training.distributed import processes

RECORD = "unlearning.json"
PACKAGES = ("lume-unlearning", "torch", "transformers", "peft", "accelerate", "datasets", "lm_eval")
# A resumed run may change these: they do not change the result, and rows are compared by their checksums.
FREE = {"output", "resume", "save_steps", "save_total_limit", "logging_steps", "report_to", "micro_batch_size"}
FREE |= {"evaluate_every", "evaluate_tasks", "evaluate_limit", "evaluate_batch_size", "best_metric"}
FREE |= {"watch_steps", "collapse_bound", "gradient_checkpointing", "max_tokens"}
FREE |= {"alternatives", "data", "split", "forget", "retain", "forgotten", "substitutes", "unseen"}


class Record(TrainerCallback):
    """Writes the record of one run: configuration, versions, checksums, seconds, NLL and loss terms over time."""

    def __init__(self, config: RunConfig, checksums: dict[str, str]) -> None:
        """``checksums``: SHA-256 of each data file."""
        self.output = Path(config.output)
        self.started = time.time()
        precision = "bfloat16" if use_bfloat16(config.precision) else "float32"
        self.content: dict[str, Any] = {
            "config": asdict(config) | {"precision": precision},
            "versions": versions(),
            "data_sha256": checksums,
            "seed": config.seed,
        }

    def resume(self, checkpoint: Path) -> None:
        """Compare with the record in a checkpoint, and count on from its seconds.

        Raises:
            ConfigError: the checkpoint was made with other options or rows, or its record cannot be read.
        """
        before = read_record(checkpoint)
        try:
            faults = self._differences(before)
            self.started -= before["seconds"]
        except KeyError as error:
            raise ConfigError(f"--resume: {checkpoint / RECORD} cannot be read, or lacks {error}") from error
        if faults:
            raise ConfigError("\n".join(faults))

    def _differences(self, before: dict[str, Any]) -> list[str]:
        """Return what this run would do differently from the run to resume."""
        ours, theirs = self.content["config"], before["config"]
        faults = [
            f"--{name} {ours[name]}: the run to resume has {theirs.get(name)}"
            for name in ours
            if name not in FREE and ours[name] != theirs.get(name)
        ]
        # In order, forget rows first: the files may have been moved.
        if list(self.content["data_sha256"].values()) != list(before["data_sha256"].values()):
            faults.append("--data: the rows are not those of the run to resume")
        count = before["processes"]
        if count != processes():  # each process has its own random state, and under FSDP its own shards
            faults.append(f"--resume: the run to resume has {count} processes, this one {processes()}; start as many")
        return faults

    def write(self, folder: Path, history: list[dict[str, Any]], **result: Any) -> None:
        """Write the record atomically, with Trainer's log of the loss terms.

        ``**result`` are ``finished`` and the monitor's measurements, ``watched``, of a finished run.
        """
        progress = {
            "finished": False,
            "processes": processes(),
            "seconds": round(time.time() - self.started, 1),
            "watched": [],
            "history": [entry for entry in history if "train_runtime" not in entry],
        }
        write_text(folder / RECORD, json.dumps(self.content | progress | result, indent=1) + "\n")

    def write_into(self, checkpoint: Path, state: TrainerState) -> None:
        """Write the record into a checkpoint, to be compared when it is resumed, and into the folder of the run."""
        if state.is_world_process_zero:
            for folder in (checkpoint, self.output):
                self.write(folder, state.log_history)


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record in the folder of a run or in a checkpoint; empty if there is none or it cannot be read."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout that is not installed
        return "unknown"
