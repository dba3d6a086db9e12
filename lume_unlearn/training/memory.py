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
    """Return the default of `--max_tokens` on this machine: halved until the tokens fit into its free memory.

    Several processes must agree on the number, so with them it depends on the device alone.
    """
    gpu = torch.cuda.is_available()
    tokens = MOST["cuda" if gpu else "cpu"]
    if processes() == 1:
        free = torch.cuda.mem_get_info()[0] if gpu else psutil.virtual_memory().available
        while tokens > LEAST and tokens * PER_TOKEN > free:
            tokens //= 2
    return tokens
