"""Distributed launches (`accelerate launch`, torchrun): detect them, and set up bfloat16 for sharded models."""

from typing import Any

import torch
from accelerate.utils import convert_outputs_to_fp32, get_int_from_env, parse_flag_from_env


def by_deepspeed() -> bool:
    """Return whether DeepSpeed shards the weights."""
    return bool(parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"))


def sharded() -> bool:
    """Return whether a process holds only a part of the weights while training (FSDP or DeepSpeed)."""
    return by_deepspeed() or bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def is_first_process() -> bool:
    """Return whether this process writes the results; also before accelerate has set up the processes."""
    return int(get_int_from_env(["RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"], 0)) == 0


def processes() -> int:
    """Return how many processes train together; also before accelerate has set them up."""
    return int(get_int_from_env(["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"], 1))


def in_bfloat16(model: Any, device_type: str) -> None:
    """Wrap the model's forward in bfloat16 autocast, in place, as accelerate does for weights that are not sharded.

    FSDP and DeepSpeed would cast all weights, gradients and outputs instead: an NLL of 6 would be rounded to steps of
    0.03, gradients would be summed in bfloat16, and DeepSpeed would save rounded weights.
    """
    model.forward = convert_outputs_to_fp32(torch.autocast(device_type, torch.bfloat16)(model.forward))
