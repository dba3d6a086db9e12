"""Representation misdirection (RMU): hidden states of forget rows are steered to a random direction."""

from dataclasses import dataclass

from lume_unlearn.methods.base import Batch, Defaults, Method, Needs, Rows, TokenCounts, param
from lume_unlearn.methods.common import Tensor
from lume_unlearn.methods.retain import state_distance


def rmu_direction(size: int, seed: int) -> Tensor:
    """Return RMU's fixed direction: (size,) float32 on the CPU, entries uniform in [0, 1), scaled to length 1.

    It depends on the seed alone, so every process and every resumed run steers the same way.

    Source: Li et al. 2024 (arXiv 2403.03218), where the hidden states of forget rows are steered to
    ``steering * direction`` by `state_distance`, averaged by `row_mean` (the authors average over padding, too).
    """
    import torch

    generator = torch.Generator(device="cpu").manual_seed(seed)
    direction: Tensor = torch.rand(size, generator=generator, dtype=torch.float32, device="cpu")
    return direction.div_(direction.norm())


@dataclass
class RMU(Method):
    """Steer hidden states to a random direction: see `rmu_direction` and `state_distance`."""

    title = "representation misdirection"
    source = "Li et al. 2024, arXiv 2403.03218"
    formula = "distance of the hidden states from a random direction, mean over rows"
    needs = Needs(hidden_states=True)
    retain_term = "states"
    retain_terms = ("states", "none")
    defaults = Defaults(
        num_train_epochs=1,
        per_device_train_batch_size=4,
        retain_weight=1200.0,
        learning_rate={"full": 5e-5},
        lr_scheduler_type="constant",
        warmup_steps=0.0,
    )

    layer: int = param(7, "decoder layer, from 0, whose output is steered", zero=True)
    steering: float = param(
        6.5, "length of the vector that hidden states of forget rows are steered to", search=(2.0, 200.0)
    )

    def token_loss(self, hidden_states: Tensor, targets: Tensor, reference: None) -> Tensor:
        """Compute the distance of (n, d) hidden states from ``steering`` times `rmu_direction`: (n,)."""
        direction = rmu_direction(hidden_states.shape[-1], self.seed).to(hidden_states.device)
        return state_distance(hidden_states, self.steering * direction)

    def forget_loss(self, batch: Batch) -> Tensor:
        """Average over the tokens of each row, then over rows."""
        return batch.forget.mean(batch.counts.rows("forget"))

    def retain_loss(self, rows: Rows, counts: TokenCounts) -> Tensor:
        """Average over the tokens of each row, then over rows."""
        return rows.mean(counts.rows("retain"))
