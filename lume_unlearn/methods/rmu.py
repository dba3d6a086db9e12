"""Representation misdirection (RMU): hidden states of forget rows are steered to a random direction."""

from collections.abc import Mapping

from lume_unlearn.methods.common import Tensor
from lume_unlearn.methods.retain import state_distance
from lume_unlearn.methods.spec import Method, Param


def rmu_direction(size: int, seed: int) -> Tensor:
    """Return RMU's fixed direction: (size,) float32 on the CPU, entries uniform in [0, 1), scaled to length 1.

    It depends on the seed alone, so every process and every resumed run steers the same way.

    Source: Li et al. 2024 (arXiv 2403.03218), where forget states are steered to ``steering * direction`` by
    `state_distance`, averaged by `row_mean` (the authors average over padding too).
    """
    import torch

    generator = torch.Generator(device="cpu").manual_seed(seed)
    direction: Tensor = torch.rand(size, generator=generator, dtype=torch.float32, device="cpu")
    return direction.div_(direction.norm())


def _steer(params: Mapping[str, float], states: Tensor, targets: Tensor, reference: Tensor | None) -> Tensor:
    direction = rmu_direction(states.shape[-1], int(params["seed"]))
    return state_distance(states, params["steering"] * direction.to(states.device))


METHODS = (
    Method(
        "rmu",
        "representation misdirection",
        "Li et al. 2024, arXiv 2403.03218",
        "distance of the hidden states from a random direction, mean over rows",
        lambda batch: batch.forget.mean(batch.counts.rows("forget")),
        retain="states",
        retain_terms=("states", "none"),
        retain_mean=lambda rows, counts: rows.mean(counts.rows("retain")),
        per_token_loss=_steer,
        hidden_states=True,
        params={
            "layer": Param(7, "decoder layer, from 0, whose output is steered", zero=True, whole=True),
            "steering": Param(
                6.5, "length of the vector that hidden states of forget rows are steered to", search=(2.0, 200.0)
            ),
        },
        defaults={
            "epochs": 1,
            "batch_size": 4,
            "retain_weight": 1200.0,
            "learning_rate": {"full": 5e-5},
            "lr_schedule": "constant",
            "warmup": 0.0,
        },
    ),
)
