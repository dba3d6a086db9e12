"""Methods that go through the forget rows chunk by chunk, in phases: SUGD and AGAD."""

from collections.abc import Sequence
from dataclasses import dataclass

from lume_unlearn.methods.base import Batch, Defaults, Method, Pair, Rows, TokenCounts, in_batches, param
from lume_unlearn.methods.common import Tensor
from lume_unlearn.methods.gradient import Ascent

Steps = list[list[Pair]]


def sequential(forget: int, retain: int, batch_size: int, chunk: int, ratio: int, epochs: int) -> list[Steps]:
    """Return the phases of SUGD: for each chunk of forget rows, ``epochs`` times over the chunk, never shuffled.

    Each forget row is paired with the next ``ratio`` retain rows, cycling through the retain rows; a chunk keeps its
    retain rows in all epochs. Source: Premptis et al. 2025 (arXiv 2503.02443), "sequential unlearning". Deviation: the
    authors' rows end without EOS, these end with it as all others do.
    """
    pairs = [Pair((f,), tuple((f * ratio + i) % retain for i in range(ratio))) for f in range(forget)]
    return [in_batches(part, batch_size) * epochs for part in in_batches(pairs, chunk)]


def annealed(
    forget: int, retain: int, batch_size: int, chunk: int, share: float, epochs: int, seed: int
) -> list[Steps]:
    """Return the phases of AGAD: ascent on a chunk of forget rows, training on a random share of the retain rows, ...

    After the last chunk comes a phase on all retain rows. Each phase goes ``epochs`` times over its rows, in new random
    order each time. Source: Premptis et al. 2025 (arXiv 2503.02443), "alternating gradient ascent-descent".
    """
    import numpy as np

    random = np.random.default_rng(seed)

    def phase(pairs: Sequence[Pair]) -> Steps:
        orders = [random.permutation(len(pairs)) for _ in range(epochs)]
        return [step for order in orders for step in in_batches([pairs[i] for i in order], batch_size)]

    retain_pairs = [Pair((), (r,)) for r in range(retain)]
    sample = max(1, round(share * retain))
    phases = []
    for part in in_batches([Pair((f,)) for f in range(forget)], chunk):
        phases.append(phase(part))
        phases.append(phase([retain_pairs[r] for r in random.choice(retain, sample, replace=False)]))
    return [*phases, phase(retain_pairs)]


CHUNK = "forget rows of one chunk"


@dataclass
class SUGD(Method):
    """Sequential unlearning by gradient difference: see `sequential`."""

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
        """Return one phase for each chunk: see `sequential`."""
        return sequential(forget, retain, batch_size, self.chunk, self.retain_ratio, epochs)


@dataclass
class AGAD(Ascent):
    """Alternating gradient ascent and descent: see `annealed`."""

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
        """Return two phases for each chunk and one on all retain rows: see `annealed`."""
        return annealed(forget, retain, batch_size, self.chunk, self.anneal_share, epochs, seed)
