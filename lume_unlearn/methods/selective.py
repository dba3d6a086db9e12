"""The system SHA256 of SemEval-2025 task 4: gradient difference with an adaptive retain weight."""

import math

from lume_unlearn.methods.base import Defaults
from lume_unlearn.methods.gradient import Ascent


def selective_weight(retain_loss: float, average: float) -> float:
    """Return the retain weight ``0.3 * 6^(retain_loss - average) + 0.8``, rounded to 0.1, from 1.2 to 2.3.

    NaN stays NaN. Worked example: half a nat over the average gives round(1.534847, 1) = 1.5.

    Source: Agrawal & Huang 2025 (arXiv 2504.12996). The bound 2.3 is that of the authors' code. Deviations: there the
    loss of each micro-batch decides its own weight; here the loss of one step decides the weight of the next, since it
    is known only when the step is over. The average is over the steps of the first epoch (theirs divides a sum over
    batches by the number of rows).

    Args:
        retain_loss: retain loss of this step, in nats per token.
        average: its mean over the steps of the first epoch; a loss up to it gives 1.2.
    """
    if retain_loss <= average:
        return 1.2
    excess = min(retain_loss - average, 1.0)  # the upper bound holds from 0.9 on; 6^1e4 would overflow
    return min(max(round(0.3 * math.pow(6.0, excess) + 0.8, 1), 1.2), 2.3)


class Selective(Ascent):
    """Gradient difference with an adaptive retain weight: see `selective_weight`."""

    title = "selective layers, adaptive retain weight"
    source = "Agrawal and Huang 2025, arXiv 2504.12996"
    formula = "-NLL, token mean; retain weight 1.2 to 2.3 as the retain loss rises"
    retain_terms = ("nll",)
    defaults = Defaults(
        num_train_epochs=8,
        per_device_train_batch_size=60,
        warmup_steps=0.0,
        learning_rate={"full": 1.5e-5},
        retain_weight=1.2,
    )

    def adapt(self, state: dict[str, float], retain_loss: float, epochs: float) -> dict[str, float]:
        """Average the retain loss over the first epoch, then set the retain weight by `selective_weight`."""
        if epochs <= 1:
            total, steps = state.get("total", 0.0) + retain_loss, state.get("steps", 0.0) + 1
            return {"weight": state["weight"], "total": total, "steps": steps}
        return state | {"weight": selective_weight(retain_loss, state["total"] / state["steps"])}
