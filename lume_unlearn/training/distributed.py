"""Distributed launches (`accelerate launch`, torchrun): which one this is, and what it cannot do."""

import os
from functools import wraps
from typing import Any

import torch
from accelerate.utils import convert_to_fp32, get_int_from_env

from lume_unlearn.config import RunConfig
from lume_unlearn.errors import ConfigError
from lume_unlearn.model.load import use_bfloat16
from lume_unlearn.model.masters import require_grad_dtype


def by_deepspeed() -> bool:
    """Return whether DeepSpeed shards the weights."""
    return _is_true("ACCELERATE_USE_DEEPSPEED")


def sharded() -> bool:
    """Return whether a process holds only a part of the weights while training (FSDP or DeepSpeed)."""
    return by_deepspeed() or _is_true("ACCELERATE_USE_FSDP")


def _is_true(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"


def is_first_process() -> bool:
    """Return whether this process writes the results; also before accelerate has set up the processes."""
    return int(get_int_from_env(["RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"], 0)) == 0


def processes() -> int:
    """Return how many processes train together; also before accelerate has set them up."""
    return int(get_int_from_env(["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"], 1))


def require_launch(config: RunConfig) -> None:
    """Refuse options that this launch does not support, before anything is loaded.

    Raises:
        ConfigError: names the option and an alternative.
    """
    method = f"--method {config.method}"
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no":
        raise ConfigError(f"accelerate's mixed_precision {precision}: set it to no and choose by --precision")
    if _is_true("ACCELERATE_USE_FSDP") and _is_true("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        raise ConfigError(
            "accelerate's fsdp_cpu_ram_efficient_loading true: set it to false; it loads the weights in one process "
            "only, but every process runs the whole model once, to try packing"
        )
    if by_deepspeed() and (config.spec.normalised or config.spec.phases):
        why = "needs the gradients of each side" if config.spec.normalised else "restarts its optimiser"
        raise ConfigError(f"{method}: {why}, which DeepSpeed does not allow; use FSDP or one process")
    if config.spec.negated and (by_deepspeed() or (sharded() and config.tuning != "lora")):
        raise ConfigError(f"{method}: needs unsharded weights at the end; use FSDP with --tuning lora, or one process")
    if sharded() and config.spec.hidden_states:
        raise ConfigError(
            f"{method}: ends its forward pass inside the model, which FSDP and DeepSpeed do not allow; use one process"
        )
    if sharded() and (config.robust, config.protect) != ("none", "none"):
        raise ConfigError("--robust, --protect: need unsharded weights; start without FSDP and DeepSpeed")
    if sharded() and config.compile:
        raise ConfigError("--compile true: not supported with FSDP and DeepSpeed; drop --compile")
    if by_deepspeed() and config.weights == "bfloat16":
        raise ConfigError("--weights bfloat16: DeepSpeed keeps float32 weights as well; drop --weights")
    if config.weights == "masters":
        _require_masters(config)
    if by_deepspeed() and config.on_collapse == "rollback":
        raise ConfigError("--on_collapse rollback: DeepSpeed cannot restore weights; use warn or stop, or FSDP")
    if sharded() and config.evaluate_every != "none":
        raise ConfigError(
            f"--evaluate_every {config.evaluate_every}: needs unsharded weights; score the result instead, or start "
            "without FSDP and DeepSpeed"
        )


def _require_masters(config: RunConfig) -> None:
    """Refuse what ``--weights masters`` does not support."""
    require_grad_dtype()
    fault = None
    if not use_bfloat16(config.precision):
        fault = "needs bfloat16 arithmetic, which is off here; give --precision bfloat16, or drop --weights"
    if processes() > 1 or sharded():
        fault = "DDP, FSDP and DeepSpeed exchange gradients in bfloat16 then; use one process, or drop --weights"
    if config.spec.normalised:
        fault = f"{config.method} tries learning rates by steps that bfloat16 weights round away; drop --weights"
    if fault:
        raise ConfigError(f"--weights masters: {fault}")


def in_bfloat16(model: Any, device_type: str) -> None:
    """Run the model's forward in bfloat16 by autocast, as accelerate does for weights that are not sharded.

    FSDP and DeepSpeed would cast all weights, gradients and outputs instead: an NLL of 6 would come in steps of 0.03,
    gradients would be summed in bfloat16, and DeepSpeed would save rounded weights.
    """
    own = model.forward

    @wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device_type, torch.bfloat16):
            output = own(*args, **kwargs)
        return convert_to_fp32(output)

    model.forward = forward
