"""`unlearning.json`: what a run was made of and how it went, written with every checkpoint and at the end."""

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lume_unlearn.config import ConfigError, RunConfig
from lume_unlearn.files import write_text
from lume_unlearn.model.load import use_bfloat16
from lume_unlearn.training.checkpoints import InCheckpoint, writing
from lume_unlearn.training.distributed import processes

RECORD = "unlearning.json"
PACKAGES = ("lume-unlearning", "torch", "transformers", "peft", "accelerate", "datasets", "lm_eval")
# May differ when a run is resumed: they change nothing in the result, or the checksums of the data stand for them.
FREE = {"output", "resume", "save_steps", "save_total_limit", "logging_steps", "report_to", "micro_batch_size"}
FREE |= {"evaluate_every", "evaluate_tasks", "evaluate_limit", "evaluate_batch_size", "best_metric"}
FREE |= {"learning_rate", "watch_steps", "collapse_bound", "on_collapse"}
FREE |= {"gradient_checkpointing", "max_tokens", "alternatives", "data", "split", "forget", "retain"}


class Record(TrainerCallback, InCheckpoint):
    """The record of one run: configuration, versions, checksums of the data, seed, seconds, loss terms over time."""

    def __init__(self, config: RunConfig, checksums: dict[str, str]) -> None:
        """``checksums``: SHA-256 of each data file."""
        self.path = Path(config.output) / RECORD
        self.started = time.time()
        precision = "bfloat16" if use_bfloat16(config.precision) else "float32"
        self.content: dict[str, Any] = {
            "config": asdict(config) | {"precision": precision},
            "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
            "data_sha256": checksums,
            "seed": config.seed,
        }

    def resume(self, checkpoint: Path) -> float:
        """Count on from the seconds of the run that is resumed, as its checkpoint has them.

        Returns:
            This run's learning rate to that of the run that is resumed.

        Raises:
            ConfigError: that run was made with other options or data, or left no record.
        """
        path = checkpoint / RECORD
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            faults, rate = self._differences(before)
            self.started -= before["seconds"]
        except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            raise ConfigError(f"--resume: {path} cannot be read, so the run cannot be identified") from error
        if faults:
            raise ConfigError("\n".join(faults))
        return rate

    def _differences(self, before: dict[str, Any]) -> tuple[list[str], float]:
        """What keeps this run from going on from the one before, and its learning rate to that one's."""
        ours, theirs = self.content["config"], before["config"]
        faults = [
            f"--{name} {ours[name]}: the run to resume has {theirs.get(name)}"
            for name in ours
            if name not in FREE and _of_training(ours[name]) != _of_training(theirs.get(name))
        ]
        rate, old_rate = ours["learning_rate"], theirs["learning_rate"]
        if rate > old_rate:
            faults.append(f"--learning_rate {rate}: the run to resume has {old_rate}; it can only be lowered")
        # By their places, the forget file first: the names may be others.
        if list(self.content["data_sha256"].values()) != list(before["data_sha256"].values()):
            faults.append("--data: the rows are not those of the run to resume")
        if (count := before["processes"]) != processes():  # each has a random state, and maybe weights, of its own
            faults.append(f"--resume: the run to resume has {count} processes, this one {processes()}; start as many")
        return faults, float(rate / old_rate)

    def write(
        self, history: list[dict[str, Any]], watched: Sequence[dict[str, float]] = (), finished: bool = False
    ) -> None:
        """Write the file in the folder of the run, as a whole.

        Args:
            history: Trainer's log of the loss terms.
            watched: NLL of the watched rows over time (see `watch`).
            finished: whether the model or adapter beside it is the result.
        """
        write_text(self.path, self._text(history, watched, finished))

    def _text(self, history: list[dict[str, Any]], watched: Sequence[dict[str, float]], finished: bool) -> str:
        ours = {
            "finished": finished,
            "processes": PartialState().num_processes,
            "seconds": round(time.time() - self.started, 1),
            "watched": list(watched),
            "history": [entry for entry in history if "train_runtime" not in entry],
        }
        return json.dumps(self.content | ours, indent=1) + "\n"

    def write_into(self, checkpoint: Path, state: TrainerState) -> None:
        """What the checkpoint was made with and by: it alone says what may be resumed from it."""
        if state.is_world_process_zero:
            (checkpoint / RECORD).write_text(self._text(state.log_history, (), False), encoding="utf-8")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keep the file of the run up to date."""
        if state.is_world_process_zero:
            with writing(self.path.parent):
                self.write(state.log_history)


def _of_training(value: Any) -> Any:
    """An option without what matters only when training has ended: the factor of a task vector."""
    return {name: number for name, number in value.items() if name != "scale"} if isinstance(value, dict) else value


def recorded_max_tokens(checkpoint: Path) -> int | None:
    """Return the ``max_tokens`` that a checkpoint was made with; None where its record cannot be read."""
    try:
        return int(json.loads((checkpoint / RECORD).read_text(encoding="utf-8"))["config"]["max_tokens"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_finished(output: Path) -> bool:
    """Whether the folder holds the result of a run."""
    try:
        return bool(json.loads((output / RECORD).read_text(encoding="utf-8"))["finished"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout that was not installed
        return "unknown"
