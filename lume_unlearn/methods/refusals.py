"""Refusals: the answers that `idk`, `idk-dpo` and `jensun` train instead of the true answer.

`refusals_qa.txt` refuses a question, `refusals_sc.txt` refuses to continue a text; one refusal per line.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from lume_tasks.data.rows import Row
from lume_unlearn.checks import stable_number


@cache
def refusal_texts(kind: str) -> list[str]:
    """Read the refusals for rows of a kind, ``qa`` or ``sc``."""
    return Path(__file__).with_name(f"refusals_{kind}.txt").read_text(encoding="utf-8").splitlines()


def refusals(rows: Sequence[Row], seed: int) -> list[str]:
    """Choose one refusal for each row: of a question for ``qa`` rows, of a text to be continued for ``sc`` rows.

    The choice depends on the row's id and the seed alone, so that a resumed run, other processes and subsets of rows
    agree on it, and its reference NLL is computed once. Deviation: TOFU (Maini et al. 2024, arXiv 2401.06121) samples
    another one each time.
    """
    texts = [refusal_texts(row.kind) for row in rows]
    return [own[stable_number(seed, row.id) % len(own)] for row, own in zip(rows, texts, strict=True)]
