"""The optimiser and the learning rate, where they are not Trainer's."""

from collections.abc import Callable, Sequence
from typing import Any

from transformers.training_args import OptimizerNames

from lume_unlearn.errors import ConfigError
from lume_unlearn.model.load import require_torchao
from lume_unlearn.training.arguments import UnlearningArguments


def optimizer_class(args: UnlearningArguments) -> tuple[Any, dict[str, Any]] | None:
    """Return the optimiser of bfloat16 weights, torchao's with stochastic rounding, or None for Trainer's own.

    Raises:
        ConfigError: torchao is not installed, or has no such optimiser.
    """
    if args.optim == OptimizerNames.ADAMW_TORCH_8BIT:
        require_torchao(f"--optim {OptimizerNames.ADAMW_TORCH_8BIT.value}")
    if args.weights != "bfloat16":
        return None
    require_torchao("--weights bfloat16")
    from torchao.optim import AdamW8bit, _AdamW

    known = {
        OptimizerNames.ADAMW_TORCH: _AdamW,
        OptimizerNames.ADAMW_TORCH_FUSED: _AdamW,
        OptimizerNames.ADAMW_TORCH_8BIT: AdamW8bit,
    }
    optim = OptimizerNames(args.optim)
    if optim not in known:
        raise ConfigError(f"--optim {optim.value}: --weights bfloat16 needs one of {', '.join(n.value for n in known)}")
    return known[optim], {"lr": args.learning_rate, "bf16_stochastic_round": True}


def phase_factor(lengths: Sequence[int]) -> Callable[[int], float]:
    """Return a function from the optimiser step to a learning rate factor that falls from 1 to 0 in each phase.

    ``lengths`` are the optimiser steps of each phase.
    """
    factors = [1 - step / length for length in lengths for step in range(length)]
    return lambda step: factors[step] if step < len(factors) else 0.0


def warmed_up(factor: Callable[[int], float], warmup: int) -> Callable[[int], float]:
    """Put a linear warm-up, (step + 1) / (warmup + 1), before a learning rate factor.

    Steps count from 0. Trainer's own warm-up has factor 0 in the first step, which then changes no weight.
    """
    return lambda step: (step + 1) / (warmup + 1) if step < warmup else factor(step)
