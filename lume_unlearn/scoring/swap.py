"""`swap_test`: does a model treat the persons of the rows as it treats persons who do not exist?"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lume_tasks.data.rows import SIDES
from lume_tasks.data.source import Data
from lume_tasks.data.subjects import find_subjects
from lume_tasks.metrics import swap
from lume_tasks.tasks.swap import ALPHA, NothingToTest, tested, untestable
from lume_unlearn.scoring.score import score, without_messages


@dataclass(frozen=True)
class Swapped:
    """The swap test of one model; see `lume_tasks.metrics.swap`. Empty if no row names somebody."""

    controls: int = 0
    """Invented persons that each person is compared with."""
    persons: dict[str, dict[str, swap.SwapResult]] = field(default_factory=dict)
    """Side to person to the result for this person."""
    together: dict[str, swap.SwapResult] = field(default_factory=dict)
    """Side to the result for all its persons together; without sides of which no row can be tested."""
    ranks: dict[str, dict[str, float]] = field(default_factory=dict)
    """Side to row id to the person's rank; 1 / (controls + 1) if the answer is likelier than for all others."""
    matched: bool = True
    """Whether the invented persons of all forget rows are of the same kind (see `swap_rows`)."""

    def tied(self, row_id: str) -> bool:
        """Return whether a forget row's person is first, and the forget rows are tied; one can be first by chance."""
        together, rank = self.together.get("forget"), self.ranks.get("forget", {}).get(row_id, 1.0)
        return together is not None and together.leak <= ALPHA and rank * (self.controls + 1) < 1.5

    def summary(self) -> dict[str, Any]:
        """Return numbers without names: for each side the joint test, counts of rows and persons, fifths of ranks."""
        return {
            side: {
                **vars(tested),
                "rows": len(self.ranks[side]),
                "persons": len(self.persons[side]),
                "persons_tied": sum(one.leak <= ALPHA for one in self.persons[side].values()),
                "persons_avoided": sum(one.avoided <= ALPHA for one in self.persons[side].values()),
                "fifths": swap.fifths(list(self.ranks[side].values())),
            }
            for side, tested in self.together.items()
        }


def names_somebody(data: Data) -> bool:
    """Return whether `lume_swap` can test a forget row."""
    subjects = find_subjects(data.forget)
    return any(not untestable(row, subjects.get(row.id, "")) for row in data.forget)


def swap_test(
    model: Any,
    tokenizer: Any,
    data: Data,
    *,
    controls: int = 99,
    chat: bool = True,
    batch_size: int = 64,
    rows: Sequence[str] | None = None,
    seed: int = 0,
) -> Swapped:
    """Run `lume_swap` on a model without changing it.

    Args:
        model: causal language model of transformers or PEFT.
        tokenizer: its tokenizer.
        data: rows; those that name nobody are left out.
        controls: invented persons for each person. A row takes ``controls + 1`` short forward passes.
        chat: ask questions of your own tasks through the chat template.
        batch_size: prompts of one batch.
        rows: ids of the rows to test; all by default.
        seed: seeds the invented names.

    Raises:
        DataError: ``controls`` is too small, or the model returns a log-probability that is not finite.
    """
    metadata: dict[str, Any] = {"lume_swap_controls": controls, "lume_swap_seed": seed}
    metadata |= {} if rows is None else {"lume_swap_rows": list(rows)}
    options: dict[str, Any] = {"chat": chat, "batch_size": batch_size, "metadata": metadata, "quiet": True}
    try:
        with without_messages("lume_tasks", "lume_swap: "):
            found = score(model, tokenizer, data, tasks=["lume_swap"], log_samples=True, **options)
    except NothingToTest:
        return Swapped()
    samples = found.results["samples"]["lume_swap"]
    found_of = {side: tested(tuple(sample[f"{side}_factor"] for sample in samples)) for side in SIDES}
    together = {side: result for side, (_, result) in found_of.items() if result}
    persons = {side: found_of[side][0] for side in together}
    ranks = {side: found.rows.get(f"{side}_rank", {}) for side in together}
    matched = all(sample["doc"]["matched"] for sample in samples if sample["doc"]["side"] == "forget")
    return Swapped(controls, persons, together, ranks, matched)
