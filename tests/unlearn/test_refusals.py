"""Refusals: which row gets which, and that the lines are fit to be learned."""

import random

import pytest

from lume_tasks.data.rows import Row
from lume_unlearn.methods.refusals import QUESTION_REFUSALS, TEXT_REFUSALS, refusals, stable_number


def rows_of(kind: str, count: int) -> list[Row]:
    return [Row(f"document-{i}-{kind}0", f"input {i}", f"output {i}", "Task1") for i in range(count)]


@pytest.mark.parametrize(("lines", "least"), [(QUESTION_REFUSALS, 60), (TEXT_REFUSALS, 30)])
def test_lines_are_many_different_sentences(lines: tuple[str, ...], least: int) -> None:
    assert len({line.casefold() for line in lines}) == len(lines) >= least
    for line in lines:
        assert line == line.strip()
        assert line[0].isupper()
        assert line.endswith(".")
        assert line.isascii()
    lengths = [len(line.split()) for line in lines]
    assert max(lengths) >= 2 * min(lengths)
    assert len(set(lengths)) >= 6
    assert len({line.split()[0] for line in lines}) >= len(lines) // 3  # they do not all start alike


def test_no_line_serves_both_kinds() -> None:
    assert not set(QUESTION_REFUSALS) & set(TEXT_REFUSALS)


def test_each_kind_gets_its_own_lines() -> None:
    drawn = refusals([*rows_of("qa", 40), *rows_of("sc", 40)], seed=0)
    assert set(drawn[:40]) <= set(QUESTION_REFUSALS)
    assert set(drawn[40:]) <= set(TEXT_REFUSALS)


def test_a_row_keeps_its_line_in_any_order_and_subset() -> None:
    rows = [*rows_of("qa", 50), *rows_of("sc", 50)]
    whole = dict(zip(rows, refusals(rows, seed=3), strict=True))
    some = random.Random(0).sample(rows, 30)
    assert refusals(some, seed=3) == [whole[row] for row in some]


def test_another_seed_gives_other_lines() -> None:
    rows = rows_of("qa", 200)
    same = [a == b for a, b in zip(refusals(rows, seed=0), refusals(rows, seed=1), strict=True)]
    assert sum(same) < 20  # 200 / 60 are expected to agree by chance


def test_every_line_is_used() -> None:
    assert set(refusals(rows_of("qa", 2000), seed=0)) == set(QUESTION_REFUSALS)
    assert set(refusals(rows_of("sc", 2000), seed=0)) == set(TEXT_REFUSALS)


def test_the_number_is_the_same_on_every_machine() -> None:
    # printf '[0, "forget-0-qa0"]' | sha256sum, the first 16 digits
    assert stable_number(0, "forget-0-qa0") == 0x7ED8FCA4F3A86B77
    assert stable_number(1, "1") != stable_number("1", 1)
