"""What a run trains: an adapter, all weights, the last layers, or the weights that a pattern names."""

import re
from typing import Any

from lume_unlearn.model.forward import decoder_layers


class TuningError(ValueError):
    """``--tuning`` names nothing in this model."""


def depth_fault(tuning: str, depth: int) -> str | None:
    """What is wrong with ``last:K`` for a model of so many decoder layers."""
    kind, _, count = tuning.partition(":")
    return f"--tuning {tuning}: the model has {depth} decoder layers" if kind == "last" and int(count) > depth else None


def freeze(model: Any, tuning: str) -> None:
    """Leave only the weights that ``last:K`` or ``modules:REGEX`` names to be trained; ``full`` leaves all.

    Everything else is frozen for good: it gets no gradient, takes no memory in the optimiser, and in tied embeddings
    one name is enough to train both.

    Raises:
        TuningError: the model has fewer layers than K, or no weight of such a name.
    """
    kind, _, rest = tuning.partition(":")
    if kind == "full":
        return
    model.requires_grad_(False)
    if kind == "last":
        layers = decoder_layers(model)
        if fault := depth_fault(tuning, len(layers)):
            raise TuningError(fault)
        for layer in layers[-int(rest) :]:
            layer.requires_grad_(True)
        return
    named = [weight for name, weight in model.named_parameters() if re.search(rest, name)]
    if not named:
        example = next(name for name, _ in reversed(list(model.named_parameters())))
        raise TuningError(f"--tuning {tuning}: found in no weight's name (they look like {example})")
    for weight in named:
        weight.requires_grad_(True)
