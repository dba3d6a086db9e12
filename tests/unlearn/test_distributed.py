"""Two processes on the CPU against one, with the shipped accelerate configurations: equal terms and weights."""

import json
import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import lume_unlearn
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.registry import method_of
from lume_unlearn.training.arguments import UnlearningArguments, filled_in
from lume_unlearn.training.supported import require_supported
from tests.conftest import logged_steps, make_rows, read_run, saved_weights, start_run, write_rows

CONFIGS = Path(lume_unlearn.__file__).parent / "accelerate"

# Eleven forget rows in steps of four: in the last step one process has fewer rows, and fewer micro-batches.
PLAIN: dict[str, Any] = {"num_train_epochs": 1, "per_device_train_batch_size": 2, "max_tokens": 150}
PLAIN |= {"learning_rate": 1e-3, "monitor_steps": 1, "lora_rank": 4, "lora_dropout": 0.0, "disable_tqdm": True}
NAMED: dict[str, dict[str, Any]] = {
    "gd": {"method": "gd", "tuning": "full"},
    "npo-lora": {"method": "npo", "tuning": "lora"},
    "kl-lora": {"method": "kl", "tuning": "lora"},
    "kl-last": {"method": "kl", "tuning": "last:1"},
    "both-terms": {"method": "gd", "tuning": "lora", "retain_term": "nll+kl"},
    "live-reference": {"method": "undial", "tuning": "lora", "per_device_train_batch_size": 1},
    "states": {"method": "rmu", "tuning": "full", "layer": 0},
    "phases": {"method": "sugd", "tuning": "full", "chunk": 5, "retain_ratio": 2},
    "weight": {"method": "pdu", "tuning": "full", "dual_warmup": 0.0},
    "swap": {"method": "swap", "tuning": "full", "controls": 2, "answers": 2},
    "bfloat16": {"method": "kl", "tuning": "full", "bf16": True},
    "bfloat16-lora": {"method": "kl", "tuning": "lora", "bf16": True},
    "recomputed": {"method": "gd", "tuning": "full", "gradient_checkpointing": True},
    "rollback": {
        "method": "ga",
        "tuning": "full",
        "on_collapse": "rollback",
        "collapse_bound": 0.1,
        "monitor_steps": 1,
    },
}
ROUNDING = 2**-6
"""Relative tolerance in bfloat16: four times the largest error of one rounding (2**-8), because a gradient passes
through some forty roundings, whose errors mostly cancel. Which errors these are depends on the CPU's kernels."""
EXACT = ("learning_rate", "epoch", "step")
CASES = {
    "ddp": ["gd", "npo-lora", "both-terms", "states", "phases", "weight", "swap"],
    "fsdp2": ["gd", "kl-last", "live-reference", "bfloat16", "bfloat16-lora", "recomputed", "rollback", "swap"],
    "zero3": ["gd", "kl-last", "kl-lora", "live-reference", "weight"],
}


def runs_of(kind: str, model_dir: Path, folder: Path) -> list[dict[str, Any]]:
    """Options of each run; its results are to be in ``folder/two``."""
    for side, count in (("forget", 11), ("retain", 12)):
        write_rows(folder / "data" / f"{side}.jsonl", make_rows(side, count))
    shared = PLAIN | {"model": str(model_dir), "data": str(folder / "data")}
    return [shared | NAMED[name] | {"output": str(folder / "two" / name)} for name in CASES[kind]]


def in_one_process(options: dict[str, Any], processes: int = 2) -> dict[str, Any]:
    """The same run with all rows of a step in one process, into ``one``."""
    rows = processes * options["per_device_train_batch_size"]
    return options | {"per_device_train_batch_size": rows, "output": options["output"].replace("/two/", "/one/")}


def launch_environment(kind: str) -> dict[str, str]:
    """Return the environment that `accelerate launch --config_file` sets."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    options = ["--config_file", str(CONFIGS / f"{kind}.yaml"), "--num_processes", "2", "script.py"]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(options))
    if not args.use_deepspeed:
        return prepare_multi_gpu_env(args)
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    return prepare_deepspeed_cmd_env(args)[1] | {"DS_ACCELERATOR": "cpu"}


def worker(task: Path) -> None:
    """Do the runs of a file, in one of the processes."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.tensor import DTensor
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from lume_unlearn.training.trainer import UnlearningTrainer

    torch.set_num_threads(1)
    initialise, training_step = PartialState.__init__, UnlearningTrainer.training_step
    seen, types = set(), set()

    def as_if_on_gpus(state: PartialState, *args: Any, **kwargs: Any) -> None:
        """accelerate shards for GPUs alone, though gloo and FSDP2 know CPUs as well."""
        initialise(state, *args, **kwargs)
        if "ACCELERATE_USE_FSDP" in os.environ and state.distributed_type == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    def look(trainer: UnlearningTrainer, *args: Any) -> torch.Tensor:
        weights = list(trainer.model.parameters())
        sharded = any(isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in weights)
        seen.add((trainer.args.world_size, sharded))
        return training_step(trainer, *args)

    def note(module: nn.Module, *args: Any) -> None:
        types.update(str(weight.dtype) for weight in module.parameters(recurse=False) if weight.requires_grad)

    PartialState.__init__, UnlearningTrainer.training_step = as_if_on_gpus, look
    torch.nn.modules.module.register_module_forward_pre_hook(note)
    for options in json.loads(task.read_text()):
        unset_hf_deepspeed_config()
        start_run(**options)
    task.with_suffix(f".{os.environ['RANK']}").write_text(json.dumps([*map(list, seen), sorted(types)]))


def start(kind: str, runs: list[dict[str, Any]], folder: Path, processes: int = 2) -> None:
    task = folder / "task.json"
    task.write_text(json.dumps(runs))
    root = str(Path(lume_unlearn.__file__).parent.parent)
    environment = launch_environment(kind) | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": root}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [*torchrun, __file__, str(task)], env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    for rank in range(processes):
        assert json.loads(task.with_suffix(f".{rank}").read_text()) == [[processes, kind != "ddp"], ["torch.float32"]]


def assert_same(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Terms, gradient norms and learning rates of every step, and the change of all weights together.

    In bfloat16 (see `ROUNDING`) a KL divergence has an absolute error: half the variance of the errors of logits up to
    8. A single weight is not compared: Adam moves one with hardly any gradient as far as others, up or down.
    """
    relative, absolute, apart = (ROUNDING, ROUNDING / 16, 0.2) if one.get("bf16") else (1e-5, 2e-6, 0.05)
    expected, found = logged_steps(one["output"]), logged_steps(two["output"])
    assert expected
    for mine, theirs in zip(expected, found, strict=True):
        assert [theirs.pop(name) for name in EXACT] == [mine.pop(name) for name in EXACT]
        assert theirs == pytest.approx(mine, rel=relative, abs=absolute), two["output"]
    start, ours, others = (saved_weights(run[key]) for run, key in ((one, "model"), (one, "output"), (two, "output")))
    assert ours.keys() == others.keys()
    trained = [name for name in ours if "lora_A" not in name]  # B starts at 0
    moved = torch.cat([(ours[name] - start.get(name, 0)).flatten() for name in trained])
    difference = torch.cat([(ours[name] - others[name]).flatten() for name in trained])
    assert difference.norm() <= apart * moved.norm(), two["output"]


@pytest.mark.parametrize(
    "kind",
    ["ddp", "fsdp2", pytest.param("zero3", marks=pytest.mark.skipif(not find_spec("deepspeed"), reason="deepspeed"))],
)
def test_two_processes_equal_one(kind, model_dir, data_dir, tmp_path):
    two = runs_of(kind, model_dir, tmp_path)
    start(kind, two, tmp_path)
    for options in two:
        start_run(**in_one_process(options))
        assert_same(in_one_process(options), options)
    first = two[0]["output"]
    assert read_run(first)["processes"] == 2
    assert AutoModelForCausalLM.from_pretrained(first).config.vocab_size == 400


MASTERS = {"weights": "masters", "bf16": True}
FSDP, DEEPSPEED = {"ACCELERATE_USE_FSDP": "true"}, {"ACCELERATE_USE_DEEPSPEED": "true"}


@pytest.mark.parametrize(
    ("environment", "method", "options", "fault"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "gd", {}, "accelerate's mixed_precision bf16"),
        (
            FSDP | {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"},
            "gd",
            {},
            "accelerate's fsdp_cpu_ram_efficient_loading true",
        ),
        (DEEPSPEED, "sugd", {}, "--method sugd"),
        (DEEPSPEED, "task-vector", {}, "--method task-vector"),
        (FSDP, "task-vector", {}, "--method task-vector"),
        (FSDP, "rmu", {}, "--method rmu"),
        (FSDP, "gd", {"robust": "sam"}, "--robust"),
        (DEEPSPEED, "gd", {"weights": "bfloat16"}, "--weights bfloat16"),
        (FSDP, "gd", MASTERS, "--weights masters"),
        ({"WORLD_SIZE": "2"}, "gd", MASTERS, "--weights masters"),
        (DEEPSPEED, "gd", {"on_collapse": "rollback"}, "--on_collapse rollback"),
        (FSDP, "gd", {"eval_strategy": "epoch"}, "--eval_strategy"),
    ],
)
def test_options_that_a_launch_does_not_support_are_refused(environment, method, options, fault, monkeypatch):
    chosen = method_of(method)
    args = filled_in(UnlearningArguments(output_dir="out", **options), chosen, nn.Linear(1, 1))
    given = dict.fromkeys(("retain", "alternatives", "substitutes", "unseen", "base"))
    require = partial(require_supported, chosen, args, nn.Linear(1, 1), [], given)
    require()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"^{fault}\\b"):
        require()


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
