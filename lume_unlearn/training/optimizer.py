"""The optimiser, where it is not Trainer's AdamW."""

from typing import Any

from lume_unlearn.model.load import require_torchao


def optimizer_class(name: str, learning_rate: float, bfloat16_weights: bool) -> tuple[Any, dict[str, Any]] | None:
    """Return torchao's optimiser and its arguments, or None for Trainer's AdamW.

    ``name`` is "adamw" or "adamw8bit"; bfloat16 weights are rounded stochastically.

    Raises:
        ConfigError: torchao is not installed.
    """
    if name == "adamw" and not bfloat16_weights:
        return None
    require_torchao("--weights bfloat16" if bfloat16_weights else "--optimizer adamw8bit")
    from torchao.optim import AdamW8bit, _AdamW

    optimizer = AdamW8bit if name == "adamw8bit" else _AdamW
    return optimizer, {"lr": learning_rate, "bf16_stochastic_round": bfloat16_weights}
