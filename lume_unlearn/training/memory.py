"""How many tokens one forward pass may hold by default."""

import psutil
import torch

from lume_unlearn.training.distributed import processes

MOST = {"cuda": 8192, "cpu": 2048}
"""Tokens. On a CPU more are no faster: for a LoRA on a model of 135 M parameters 8192 took 13.3 GB and 2048 6.3 GB."""
LEAST = 512
PER_TOKEN = 4 * 2**20
"""Bytes of free memory that each token asks for: almost four times what that model takes, since others are larger."""


def default_max_tokens() -> int:
    """Return the default of `--max_tokens` on this machine.

    Several processes must agree on the number, so with them it depends on the device alone.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if processes() > 1:
        return MOST[device]
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
    return fitting_tokens(device, free)


def fitting_tokens(device: str, free: int) -> int:
    """Return the most tokens for ``cuda`` or ``cpu``, halved until they fit into so many free bytes."""
    tokens = MOST[device]
    while tokens > LEAST and tokens * PER_TOKEN > free:
        tokens //= 2
    return tokens
