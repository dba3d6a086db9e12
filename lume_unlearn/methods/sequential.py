"""Methods that go through the forget rows chunk by chunk, in phases: SUGD and AGAD."""

from collections.abc import Sequence
from dataclasses import dataclass

from lume_unlearn.methods.base import Batch, Defaults, Method, Pair, Rows, TokenCounts, in_batches, param
from lume_unlearn.methods.common import Tensor
from lume_unlearn.methods.gradient import Ascent

Steps = list[list[Pair]]


CHUNK = "forget rows of one chunk"


@dataclass
class SUGD(Method):
    """Sequential unlearning by gradient difference."""

    title = "sequential unlearning by gradient difference"
    source = "Premptis et al. 2025, arXiv 2503.02443"
    formula = "-NLL, mean over rows, chunk after chunk of the forget rows"
    retain_terms = ("nll",)
    defaults = Defaults(num_train_epochs=7, per_device_train_batch_size=1, retain_weight=0.5, warmup_steps=0.0)

    chunk: int = param(32, CHUNK)
    retain_ratio: int = param(7, "retain rows for each forget row")

    def forget_loss(self, batch: Batch) -> Tensor:
        """Average -NLL over the tokens of each row, then over the forget and retain rows of the step."""
        return -batch.forget.mean(len(batch.counts.forget) + len(batch.counts.retain))

    def retain_loss(self, rows: Rows, counts: TokenCounts) -> Tensor:
        """Average over the tokens of each row, then over the forget and retain rows of the step."""
        return rows.mean(len(counts.forget) + len(counts.retain))

    def phases(self, forget: int, retain: int, batch_size: int, epochs: int, seed: int) -> list[Steps]:
        """Return one phase for each chunk of forget rows: ``epochs`` times over the chunk, never shuffled.

        Each forget row is paired with the next ``retain_ratio`` retain rows, cycling through the retain rows; a chunk
        keeps its retain rows in all epochs. Source: Premptis et al. 2025 (arXiv 2503.02443), "sequential unlearning".
        Deviation: the authors' rows end without EOS; here they end with it, as for all methods.
        """
        ratio = self.retain_ratio
        pairs = [Pair((f,), tuple((f * ratio + i) % retain for i in range(ratio))) for f in range(forget)]
        return [in_batches(part, batch_size) * epochs for part in in_batches(pairs, self.chunk)]


@dataclass
class AGAD(Ascent):
    """Alternating gradient ascent and descent."""

    title = "alternating gradient ascent and descent"
    source = "Premptis et al. 2025, arXiv 2503.02443"
    formula = "-NLL, token mean, on a chunk of the forget rows; then NLL on retain rows, alternating"
    retain_terms = ("nll",)
    defaults = Defaults(
        num_train_epochs=3,
        per_device_train_batch_size=16,
        learning_rate={"full": 5e-5, "lora": 5e-5},
        warmup_steps=0.0,
    )

    chunk: int = param(64, CHUNK)
    anneal_share: float = param(0.25, "share of the retain rows trained on after each chunk", most=1.0)

    def phases(self, forget: int, retain: int, batch_size: int, epochs: int, seed: int) -> list[Steps]:
        """Return two phases for each chunk: ascent on its forget rows, and training on a share of the retain rows.

        After the last chunk comes a phase on all retain rows. Each phase goes ``epochs`` times over its rows, in new
        random order each time. Source: Premptis et al. 2025 (arXiv 2503.02443), "alternating gradient ascent-descent".
        """
        import numpy as np

        random = np.random.default_rng(seed)

        def phase(pairs: Sequence[Pair]) -> Steps:
            orders = [random.permutation(len(pairs)) for _ in range(epochs)]
            return [step for order in orders for step in in_batches([pairs[i] for i in order], batch_size)]

        retain_pairs = [Pair((), (r,)) for r in range(retain)]
        sample = max(1, round(self.anneal_share * retain))
        phases = []
        for part in in_batches([Pair((f,)) for f in range(forget)], self.chunk):
            phases.append(phase(part))
            phases.append(phase([retain_pairs[r] for r in random.choice(retain, sample, replace=False)]))
        return [*phases, phase(retain_pairs)]
