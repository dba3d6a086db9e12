"""How the run was started, by hand or by `accelerate launch`, and what that means for it."""

import os
from functools import wraps
from typing import Any

import torch
from accelerate.utils import convert_to_fp32, get_int_from_env

from lume_unlearn.config import ConfigError, RunConfig


def by_deepspeed() -> bool:
    """Whether DeepSpeed holds the weights, in pieces."""
    return _says("ACCELERATE_USE_DEEPSPEED")


def sharded() -> bool:
    """Whether a process holds only its part of the weights while training."""
    return by_deepspeed() or _says("ACCELERATE_USE_FSDP")


def _says(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"


def is_first_process() -> bool:
    """Whether this process is the one that writes; to be asked before accelerate has set the processes up."""
    return int(get_int_from_env(["RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"], 0)) == 0


def processes() -> int:
    """How many processes train together; to be asked before accelerate has set them up."""
    return int(get_int_from_env(["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"], 1))


def require_launch(config: RunConfig) -> None:
    """Refuse, before anything is loaded, what cannot be done the way the run was started.

    Raises:
        ConfigError: names what, and another way.
    """
    method = f"--method {config.method}"
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no":
        raise ConfigError(f"accelerate's mixed_precision {precision}: set it to no; --precision says the arithmetic")
    if _says("ACCELERATE_USE_FSDP") and _says("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        raise ConfigError(
            "accelerate's fsdp_cpu_ram_efficient_loading true: set it to false, since it gives some processes no "
            "weights, and each of them looks at the model before it is sharded"
        )
    if by_deepspeed() and (config.spec.normalised or config.spec.phases):
        what = "needs the gradients themselves" if config.spec.normalised else "starts its optimiser anew"
        raise ConfigError(f"{method}: {what}, which DeepSpeed does not allow; use FSDP or one process")
    if config.spec.negated and (by_deepspeed() or (sharded() and config.tuning != "lora")):
        raise ConfigError(f"{method}: needs whole weights at the end; use FSDP with --tuning lora, or one process")
    if sharded() and config.spec.hidden_states:
        raise ConfigError(f"{method}: stops inside the model, where shards cannot; use one process")
    if sharded() and config.compile:
        raise ConfigError("--compile true: not with shards, which come and go around each layer; leave it out")
    if by_deepspeed() and config.weights == "bfloat16":
        raise ConfigError("--weights bfloat16: DeepSpeed holds float32 weights beside them in any case; leave it out")
    if by_deepspeed() and config.on_collapse == "rollback":
        raise ConfigError("--on_collapse rollback: DeepSpeed lets no weights be put back; use warn or stop, or FSDP")
    if sharded() and config.evaluate_every != "none":
        raise ConfigError(
            f"--evaluate_every {config.evaluate_every}: needs whole weights in one process; score the result instead, "
            "or start without FSDP and DeepSpeed"
        )


def in_bfloat16(model: Any, device_type: str) -> None:
    """Let the model's passes run in bfloat16 by autocast, as accelerate has it for weights that are not sharded.

    FSDP and DeepSpeed would cast all weights, gradients and outputs themselves: a token's NLL of 6 would come out in
    steps of 0.03, gradients would be summed in bfloat16, and DeepSpeed would save rounded weights.
    """
    own = model.forward

    @wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device_type, torch.bfloat16):
            found = own(*args, **kwargs)
        return convert_to_fp32(found)

    model.forward = forward
