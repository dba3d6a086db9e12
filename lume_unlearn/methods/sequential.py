"""Methods that go through the forget rows chunk by chunk, in phases: SUGD and AGAD."""

from collections.abc import Sequence
from typing import TypeVar

from lume_unlearn.methods.gradient import forget_ascent
from lume_unlearn.methods.spec import Method, Pair, Param

Item = TypeVar("Item")
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


def in_batches(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Cut items into lists of ``size`` in their order; the last may be shorter."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


CHUNK = "forget rows of one chunk"

METHODS = (
    Method(
        "sugd",
        "sequential unlearning by gradient difference",
        "Premptis et al. 2025, arXiv 2503.02443",
        "-NLL, mean over rows, chunk after chunk of the forget rows",
        lambda batch: -batch.forget.mean(len(batch.counts.forget) + len(batch.counts.retain)),
        retain_terms=("nll",),
        retain_mean=lambda rows, counts: rows.mean(len(counts.forget) + len(counts.retain)),
        params={
            "chunk": Param(32, CHUNK, whole=True),
            "retain_ratio": Param(7, "retain rows for each forget row", whole=True),
        },
        defaults={"epochs": 7, "batch_size": 1, "retain_weight": 0.5, "warmup": 0.0},
        phases=lambda forget, retain, batch_size, epochs, params: sequential(
            forget, retain, batch_size, int(params["chunk"]), int(params["retain_ratio"]), epochs
        ),
    ),
    Method(
        "agad",
        "alternating gradient ascent and descent",
        "Premptis et al. 2025, arXiv 2503.02443",
        "-NLL, token mean, on a chunk of the forget rows; then NLL on retain rows, alternating",
        forget_ascent,
        retain_terms=("nll",),
        params={
            "chunk": Param(64, CHUNK, whole=True),
            "anneal_share": Param(0.25, "share of the retain rows trained on after each chunk", most=1.0),
        },
        defaults={"epochs": 3, "batch_size": 16, "learning_rate": {"full": 5e-5, "lora": 5e-5}, "warmup": 0.0},
        phases=lambda forget, retain, batch_size, epochs, params: annealed(
            forget, retain, batch_size, int(params["chunk"]), params["anneal_share"], epochs, int(params["seed"])
        ),
    ),
)
