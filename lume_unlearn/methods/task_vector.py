"""Negated task vectors: train on the forget rows, then subtract the change of the weights."""

from dataclasses import dataclass

from lume_unlearn.methods.base import Method, param
from lume_unlearn.methods.common import Tensor


def negated(before: dict[str, Tensor], after: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return the weights before training minus the scaled change: before - scale * (after - before).

    The computation is in float32. Each result has the dtype and the device of its tensor before training; tensors
    without floating-point numbers are those before training. Source: Ilharco et al. 2022 (arXiv 2212.04089).
    """
    result = dict(before)
    for name, tensor in before.items():
        if tensor.is_floating_point():
            start = tensor.float()
            result[name] = (start - scale * (after[name].to(start) - start)).to(tensor.dtype)
    return result


@dataclass
class TaskVector(Method):
    """Negated task vector: train on the forget rows, then subtract the change of the weights (`negated`)."""

    name = "task-vector"
    title = "negated task vector"
    source = "Ilharco et al. 2022, arXiv 2212.04089"
    formula = "NLL, token mean; then the change of the weights times -scale"
    retain_term = "none"
    retain_terms = ("none",)
    negated = True

    scale: float = param(5.0, "factor by which the task vector is subtracted", search=(0.5, 20.0))
