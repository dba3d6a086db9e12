"""Two processes on the CPU against one, with the shipped accelerate configurations: equal terms and weights."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import lume_unlearn
from lume_unlearn.config import RunConfig
from lume_unlearn.errors import ConfigError
from lume_unlearn.training.distributed import require_launch
from lume_unlearn.training.run import run
from tests.conftest import logged_steps, read_run, saved_weights

CONFIGS = Path(lume_unlearn.__file__).parent / "accelerate"

# Twelve rows a side in steps of five: the processes' shares differ, and so does their number of passes.
PLAIN: dict[str, Any] = {"epochs": 1, "batch_size": 5, "max_tokens": 150, "learning_rate": 1e-3, "lora_dropout": 0.0}
NAMED: dict[str, dict[str, Any]] = {
    "gd": {"method": "gd", "tuning": "full"},
    "npo-lora": {"method": "npo", "tuning": "lora"},
    "kl-lora": {"method": "kl", "tuning": "lora"},
    "kl-last": {"method": "kl", "tuning": "last:1"},
    "both-terms": {"method": "gd", "tuning": "lora", "retain_term": "nll+kl"},
    "live-reference": {"method": "undial", "tuning": "lora", "batch_size": 1, "epochs": 0.25},
    "states": {"method": "rmu", "tuning": "full", "params": {"layer": 0}},
    "normalised": {"method": "ngdiff", "tuning": "full", "params": {"rate_every": 1}},
    "phases": {"method": "sugd", "tuning": "full", "epochs": 1, "params": {"chunk": 5, "retain_ratio": 2}},
    "weight": {"method": "pdu", "tuning": "full", "params": {"dual_warmup": 0.0}},
    "bfloat16": {"method": "kl", "tuning": "full", "precision": "bfloat16"},
    "bfloat16-lora": {"method": "kl", "tuning": "lora", "precision": "bfloat16"},
    "recomputed": {"method": "gd", "tuning": "full", "gradient_checkpointing": True},
    "rollback": {"method": "gd", "tuning": "full", "on_collapse": "rollback", "collapse_bound": 1e-4, "watch_steps": 1},
}
CASES = {
    "ddp": ["gd", "npo-lora", "both-terms", "states", "normalised", "phases", "weight"],
    "fsdp2": ["gd", "kl-last", "live-reference", "normalised", "bfloat16", "bfloat16-lora", "recomputed", "rollback"],
    "zero3": ["gd", "kl-last", "kl-lora", "live-reference", "weight"],
}


def configs(kind: str, model_dir: Path, data_dir: Path, output: Path) -> list[RunConfig]:
    files = {"model": str(model_dir), "data": str(data_dir)}
    return [RunConfig(**(files | PLAIN | NAMED[name] | {"output": str(output / name)})) for name in CASES[kind]]


def launch_environment(kind: str) -> dict[str, str]:
    """Return the environment that `accelerate launch --config_file` sets."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    options = ["--config_file", str(CONFIGS / f"{kind}.yaml"), "--num_processes", "2", "script.py"]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(options))
    if not args.use_deepspeed:
        return prepare_multi_gpu_env(args)  # type: ignore[no-any-return]
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    return prepare_deepspeed_cmd_env(args)[1] | {"DS_ACCELERATOR": "cpu"}  # type: ignore[no-any-return]


def worker(task: Path) -> None:
    """Do the runs of a file, in one of the processes."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.tensor import DTensor
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from lume_unlearn.training.trainer import UnlearningTrainer

    torch.set_num_threads(1)
    initialise, terms = PartialState.__init__, UnlearningTrainer.terms
    seen = set()

    def as_if_on_gpus(state: PartialState, *args: Any, **kwargs: Any) -> None:
        """accelerate shards for GPUs alone, though gloo and FSDP2 know CPUs as well."""
        initialise(state, *args, **kwargs)
        if "ACCELERATE_USE_FSDP" in os.environ and state.distributed_type == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    def look(trainer: UnlearningTrainer, *args: Any) -> dict[str, torch.Tensor]:
        weights = list(trainer.model.parameters())
        sharded = any(isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in weights)
        seen.add((trainer.args.world_size, sharded))
        return terms(trainer, *args)

    PartialState.__init__, UnlearningTrainer.terms = as_if_on_gpus, look  # type: ignore[method-assign]
    for options in json.loads(task.read_text()):
        unset_hf_deepspeed_config()
        run(RunConfig(**options))
    task.with_suffix(f".{os.environ['RANK']}").write_text(json.dumps(list(seen)))


def start(kind: str, runs: list[RunConfig], folder: Path, processes: int = 2) -> None:
    task = folder / "task.json"
    task.write_text(json.dumps([vars(config) for config in runs]))
    root = str(Path(lume_unlearn.__file__).parent.parent)
    environment = launch_environment(kind) | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": root}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [*torchrun, __file__, str(task)], env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    for rank in range(processes):
        assert json.loads(task.with_suffix(f".{rank}").read_text()) == [[processes, kind != "ddp"]]


def assert_same(one: RunConfig, two: RunConfig) -> None:
    """Terms, gradient norms and learning rates of every step, and the weights at the end."""
    # In bfloat16 gradients are summed over the rows of a pass with rounding: it matters which rows share one.
    off = 2e-3 if one.precision == "bfloat16" else 1e-5
    expected, found = logged_steps(one.output), logged_steps(two.output)
    assert expected
    for mine, theirs in zip(expected, found, strict=True):
        assert theirs == pytest.approx(mine, rel=off, abs=off / 5), two.output
    ours, others = saved_weights(one.output), saved_weights(two.output)
    assert ours.keys() == others.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(others[name], weight, rtol=off, atol=off, msg=f"{two.output}: {name}")


@pytest.mark.parametrize(
    "kind",
    ["ddp", "fsdp2", pytest.param("zero3", marks=pytest.mark.skipif(not find_spec("deepspeed"), reason="deepspeed"))],
)
def test_two_processes_equal_one(kind: str, model_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    two = configs(kind, model_dir, data_dir, tmp_path / "two")
    start(kind, two, tmp_path)
    for config in two:
        one = replace(config, output=config.output.replace("/two/", "/one/"))
        run(one)
        assert_same(one, config)
    first = two[0].output
    assert read_run(first)["processes"] == 2
    assert AutoModelForCausalLM.from_pretrained(first).config.vocab_size == 400


MASTERS = {"tuning": "full", "weights": "masters", "precision": "bfloat16"}
FSDP, DEEPSPEED = {"ACCELERATE_USE_FSDP": "true"}, {"ACCELERATE_USE_DEEPSPEED": "true"}


@pytest.mark.parametrize(
    ("environment", "options", "fault"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, {}, "mixed_precision bf16: set it to no and choose by --precision"),
        (FSDP | {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, {}, "fsdp_cpu_ram_efficient_loading true: set it to false"),
        (DEEPSPEED, {"method": "ngdiff"}, "--method ngdiff: needs the gradients of each side, which DeepSpeed"),
        (DEEPSPEED, {"method": "sugd"}, "--method sugd: restarts its optimiser, which DeepSpeed"),
        (DEEPSPEED, {"method": "task-vector"}, "--method task-vector: needs unsharded weights at the end"),
        (FSDP, {"method": "task-vector", "tuning": "full"}, "--method task-vector: needs unsharded weights at the end"),
        (FSDP, {"method": "rmu"}, "--method rmu: ends its forward pass inside the model"),
        (DEEPSPEED, {"tuning": "full", "weights": "bfloat16"}, "--weights bfloat16: DeepSpeed keeps float32 weights"),
        (FSDP, MASTERS, "--weights masters: DDP, FSDP and DeepSpeed exchange gradients in bfloat16"),
        ({"WORLD_SIZE": "2"}, MASTERS, "--weights masters: DDP, FSDP and DeepSpeed exchange gradients in bfloat16"),
        (DEEPSPEED, {"on_collapse": "rollback"}, "--on_collapse rollback: DeepSpeed cannot restore weights"),
        (FSDP, {"evaluate_every": "epoch"}, "--evaluate_every epoch: needs unsharded weights"),
    ],
)
def test_options_that_a_launch_does_not_support_are_refused(
    environment: dict[str, str], options: dict[str, Any], fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = RunConfig(**({"model": "no/such/model", "output": str(tmp_path / "out"), "method": "gd"} | options))
    require_launch(config)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=fault):
        run(config)


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
