"""Errors for numbers that are not finite and for memory that runs out."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from lume_unlearn.errors import ConfigError, Diverged

OUT_OF_MEMORY = """out of memory; these options need less, the first ones at the least cost:
--max_tokens: fewer tokens in one forward pass, same result ({now})
--gradient_checkpointing: only one layer's activations at a time, a third more time
--reference_copy bfloat16, int8 or cpu: for methods that need the reference model in every step, unless --tuning is lora
--optim adamw_torch_8bit: a quarter of the optimiser's state
--tuning lora: gradients and optimiser state for an adapter only, and a model in bfloat16 where the GPU has it
--weights bfloat16: half the weights and gradients, for other values of --tuning"""


def require_finite(model: nn.Module, loss: Tensor, step: int, rows: Sequence[str], learning_rate: float) -> None:
    """Raise `Diverged` if the loss or a gradient of an optimiser step is not finite.

    ``step`` is counted from 1; ``rows`` are the ids of its rows. Call this before gradients are clipped: clipping turns
    a norm that overflows into gradients of 0, which look harmless. DeepSpeed takes the step within the backward pass
    and leaves no gradients, so only the loss is checked there. Until the step is logged, the host waits for the GPU
    only here.

    Raises:
        Diverged: the loss or the norm of all gradients is infinite or not a number.
    """
    norm = total_norm([weight.grad for weight in model.parameters()])
    loss_value, norm_value = torch.stack([loss.double(), norm.to(loss.device, torch.double)]).tolist()
    if math.isfinite(loss_value) and math.isfinite(norm_value):
        return
    what = f"the gradient norm is {norm_value}" if math.isfinite(loss_value) else f"the loss is {loss_value}"
    shown = ", ".join(rows[:8]) + (", ..." if len(rows) > 8 else "")
    raise Diverged(
        f"--learning_rate {learning_rate:g}: diverged at step {step} ({what}; rows {shown}); start again in "
        "another output folder with a lower --learning_rate"
    )


def total_norm(gradients: Sequence[Tensor | None]) -> Tensor:
    """Compute the L2 norm over all gradients, sharded or not; None is skipped."""
    norm: Any = get_total_norm([gradient for gradient in gradients if gradient is not None])
    found: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return found


@contextmanager
def memory_advice(max_tokens: int | None) -> Iterator[None]:
    """Turn out-of-memory errors within the block into a `ConfigError` that names options which need less memory.

    Raises:
        ConfigError: memory ran out; this replaces the errors of torch and Python.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
            raise
        now = "by default by the free memory" if max_tokens is None else f"now {max_tokens}"
        raise ConfigError(OUT_OF_MEMORY.format(now=now)) from error
