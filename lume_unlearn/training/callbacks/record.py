"""`unlearning.json`: method, arguments, versions and history of a training, beside every checkpoint and result."""

import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerState

from lume_tasks.data.rows import Row
from lume_unlearn.checks import raise_faults
from lume_unlearn.errors import ConfigError
from lume_unlearn.files import write_text
from lume_unlearn.model.fingerprint import fingerprint
from lume_unlearn.training.arguments import UnlearningArguments
from lume_unlearn.training.distributed import processes

if TYPE_CHECKING:
    from lume_unlearn.training.trainer import UnlearningTrainer

RECORD = "unlearning.json"
PACKAGES = ("lume-unlearning", "torch", "transformers", "peft", "accelerate", "datasets", "lm_eval")
PRIVATE = {"output_dir", "logging_dir", "run_name", "resume_from_checkpoint", "hub_token", "local_rank", "project"}
"""Arguments that are not recorded, since names of folders may contain the name of a person."""
RESUME_MAY_CHANGE = {"save_strategy", "save_steps", "save_total_limit", "logging_steps", "report_to", "disable_tqdm"}
RESUME_MAY_CHANGE |= {"eval_strategy", "eval_steps", "evaluate_tasks", "per_device_eval_batch_size"}
RESUME_MAY_CHANGE |= {"metric_for_best_model", "greater_is_better", "do_eval", "monitor_steps", "collapse_bound"}
RESUME_MAY_CHANGE |= {"gradient_checkpointing", "activation_checkpointing", "max_tokens", "use_cpu"}
"""Arguments that do not change the result, so they may differ when a run is resumed."""


class Record(TrainerCallback):
    """Writes the record of a training."""

    def __init__(
        self, trainer: "UnlearningTrainer", args: UnlearningArguments, model: Any, inputs: Mapping[str, Any]
    ) -> None:
        """Collect what a training depends on.

        Args:
            trainer: the trainer, with the method and the rows.
            args: arguments, filled in; the record keeps those that differ from their default.
            model: the model, ready for training.
            inputs: other inputs of the training, by name: lists of rows or dictionaries; None if not given.
        """
        self.trainer, self.started = trainer, time.time()
        self.ended: float | None = None
        self.extra: dict[str, Any] = {}
        """Further entries; "model", the `fingerprint` of the model, is compared when a run is resumed."""
        defaults = UnlearningArguments(output_dir="unused").to_dict()  # type: ignore[no-untyped-call]
        filled: dict[str, Any] = args.to_dict()  # type: ignore[no-untyped-call]
        given = {name: value for name, value in filled.items() if name not in PRIVATE}
        peft_config = getattr(model, "peft_config", None)
        base = trainer.base and fingerprint(trainer.base)
        read = {"forget": trainer.forget, "retain": trainer.retain, "base": base, **inputs}
        self.content: dict[str, Any] = {
            "method": trainer.method.name,
            "title": trainer.method.title,
            "source": trainer.method.source,
            "method_options": asdict(trainer.method),
            "arguments": {name: value for name, value in given.items() if value != defaults.get(name)},
            "lora": _lora(peft_config[model.active_adapter]) if peft_config else None,
            "trained_parameters": sum(w.numel() for w in model.parameters() if w.requires_grad),
            "versions": versions(),
            "data_sha256": {name: inputs_sha256(value) for name, value in read.items() if value is not None},
            "seed": args.seed,
        }

    def resume(self, checkpoint: Path) -> dict[str, Any]:
        """Compare with the record in a checkpoint, continue its count of seconds, and return its arguments.

        Raises:
            ConfigError: the checkpoint was made with other options or rows, or its record cannot be read.
        """
        before = read_record(checkpoint)
        try:
            faults = self._differences(before)
            self.started -= before["seconds"]
        except KeyError as error:
            raise ConfigError(
                f"--resume_from_checkpoint: {checkpoint / RECORD} cannot be read, or lacks {error}; start anew"
            ) from error
        raise_faults(faults)
        return dict(before["arguments"])

    def _differences(self, before: dict[str, Any]) -> list[str]:
        """Return a fault for each difference from the training to resume that would change the result."""
        adapted = bool(self.content["lora"]) and bool(before["lora"])
        ours, theirs = (_options(content, adapted) for content in (self.content, before))
        differing = [name for name in _differing(ours, theirs) if name not in RESUME_MAY_CHANGE]
        faults = [
            f"--{name} {ours.get(name)}: the run to resume has {theirs.get(name)}; give the same" for name in differing
        ]
        if not faults and self.content["trained_parameters"] != before["trained_parameters"]:
            faults.append("--tuning: the run to resume trains other weights")
        model = self.extra.get("model")
        if model is not None and model != before.get("model", model):
            faults.append("--model: its weights are not those that the run to resume started from; name the same model")
        changed = _differing(self.content["data_sha256"], before["data_sha256"])
        faults += [f"--{name}: differs from what the run to resume has read; give the same" for name in changed]
        count = before["processes"]
        if count != processes():  # each process has its own random state, and under FSDP its own shards
            faults.append(f"--resume: the run to resume has {count} processes, this one {processes()}; start as many")
        return faults

    def write(self, folder: Path, finished: bool = False) -> None:
        """Write the record atomically, with the history of the loss terms and the monitor's measurements."""
        trainer = self.trainer
        progress = {
            "finished": finished,
            "processes": processes(),
            "seconds": round((self.ended or time.time()) - self.started, 1),
            "monitored": trainer.monitor.measured if finished else [],
            "history": [entry for entry in trainer.state.log_history if "train_runtime" not in entry],
        }
        write_text(folder / RECORD, json.dumps(self.content | self.extra | progress, indent=1, default=str) + "\n")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self.ended = time.time()

    def write_into(self, checkpoint: Path, state: TrainerState) -> None:
        """Write the record into a checkpoint, to be compared when it is resumed, and into the folder of the run."""
        if state.is_world_process_zero:
            for folder in (checkpoint, Path(str(self.trainer.args.output_dir))):
                self.write(folder)


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the names under which two mappings have different values; a missing one is None."""
    return [name for name in dict.fromkeys((*one, *other)) if one.get(name) != other.get(name)]


def _options(content: Mapping[str, Any], adapted: bool) -> dict[str, Any]:
    """Return the options of a training by name; if ``adapted``, also those of its adapter."""
    tuning = "lora" if content["lora"] else "of the model's own weights"
    named = {"method": content["method"], "tuning": tuning, **content["method_options"], **content["arguments"]}
    return named | (content["lora"] if adapted else {})


def inputs_sha256(read: Sequence[Row] | Mapping[str, Any]) -> str:
    """Return the SHA-256 (hexadecimal) of the JSON of a dictionary, or of rows: ids, texts, tasks and turns."""
    plain = dict(read) if isinstance(read, Mapping) else [_inputs(row) for row in read]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


def _inputs(row: Row) -> tuple[Any, ...]:
    return (row.id, row.input, row.output, row.task) + ((row.turns,) if row.turns else ())


def _lora(config: Any) -> dict[str, Any]:
    targets = config.target_modules
    return {
        "lora_rank": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "lora_targets": targets if isinstance(targets, str) else sorted(targets or []),
    }


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
