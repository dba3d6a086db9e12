"""`unlearning.json`: what a run was made of and how it went, written with every checkpoint and at the end."""

import json
import platform
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lume_unlearn.config import ConfigError, RunConfig
from lume_unlearn.modeling import use_bfloat16

RECORD = "unlearning.json"
PACKAGES = ("lume-unlearning", "torch", "transformers", "peft", "accelerate", "datasets", "lm_eval")
# May differ when a run is resumed: they change nothing in the result, or the checksums of the data stand for them.
FREE = {"output", "resume", "save_steps", "save_total_limit", "logging_steps", "report_to", "micro_batch_size"}
FREE |= {"evaluate_every", "evaluate_tasks", "evaluate_limit", "evaluate_batch_size", "best_metric"}
FREE |= {"gradient_checkpointing", "data", "split", "forget", "retain"}


class Record(TrainerCallback):
    """The record of one run: configuration, versions, checksums of the data, seed, seconds, loss terms over time."""

    def __init__(self, config: RunConfig, checksums: dict[str, str]) -> None:
        """``checksums``: SHA-256 of each data file."""
        self.path = Path(config.output) / RECORD
        self.started = time.time()
        precision = "bfloat16" if use_bfloat16(config) else "float32"
        resolved = {"learning_rate": config.rate, "retain_term": config.terms, "precision": precision}
        self.content: dict[str, Any] = {
            "config": asdict(config) | resolved,
            "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
            "data_sha256": checksums,
            "seed": config.seed,
        }

    def resume(self) -> None:
        """Count on from the seconds of the run that is resumed.

        Raises:
            ConfigError: that run was made with other options or data, or left no record.
        """
        try:
            before = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"--resume: {self.path} cannot be read, so the run cannot be identified") from error
        ours, theirs = self.content["config"], before["config"]
        faults = [
            f"--{name} {ours[name]}: the run to resume has {theirs.get(name)}"
            for name in ours
            if name not in FREE and ours[name] != theirs.get(name)
        ]
        if sorted(self.content["data_sha256"].values()) != sorted(before["data_sha256"].values()):
            faults.append("--data: the rows are not those of the run to resume")
        if faults:
            raise ConfigError("\n".join(faults))
        self.started -= before["seconds"]

    def write(self, history: list[dict[str, Any]]) -> None:
        """Write the file: what is known from the start, the seconds so far, and Trainer's log of the loss terms."""
        processes = PartialState().num_processes
        seconds = round(time.time() - self.started, 1)
        record = self.content | {"processes": processes, "seconds": seconds, "history": history}
        self.path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keep the file beside a checkpoint up to date."""
        if state.is_world_process_zero:
            self.write(state.log_history)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout that was not installed
        return "unknown"
