"""Refusals: which row gets which."""

import random

from lume_tasks.data.rows import Row
from lume_unlearn.methods.refusals import refusal_texts, refusals, stable_number


def rows_of(kind: str, count: int) -> list[Row]:
    return [Row(f"document-{i}-{kind}0", f"input {i}", f"output {i}", "Task1") for i in range(count)]


def test_each_kind_gets_all_of_its_own_refusals() -> None:
    assert len(set(refusal_texts("qa"))) == 60
    assert len(set(refusal_texts("sc"))) == 30
    for kind in ("qa", "sc"):
        assert set(refusals(rows_of(kind, 2000), seed=0)) == set(refusal_texts(kind))


def test_a_row_keeps_its_refusal_in_any_order_and_subset() -> None:
    rows = [*rows_of("qa", 50), *rows_of("sc", 50)]
    whole = dict(zip(rows, refusals(rows, seed=3), strict=True))
    some = random.Random(0).sample(rows, 30)
    assert refusals(some, seed=3) == [whole[row] for row in some]


def test_stable_number_is_the_same_on_every_machine() -> None:
    # printf '[0, "forget-0-qa0"]' | sha256sum, the first 16 digits
    assert stable_number(0, "forget-0-qa0") == 0x7ED8FCA4F3A86B77
    assert stable_number(1, "1") != stable_number("1", 1)
