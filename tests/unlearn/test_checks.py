"""Checks of options that callers in Python give."""

from dataclasses import dataclass
from math import inf, nan
from typing import Any, Literal

import pytest

from lume_unlearn.checks import NonNegativeInt, PositiveFloat, PositiveInt, Share, check_types, names, raise_faults
from lume_unlearn.errors import ConfigError


@dataclass
class Options:
    split: Literal["all", "train"] = "all"
    epochs: PositiveFloat = 1.0
    rows: PositiveInt | None = None
    seed: NonNegativeInt = 0
    warmup: Share = 0.0
    trust_remote_code: bool = False
    chat: bool | None = None
    other: Any = None


def faults(**options: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_types(Options(**options))
    return str(caught.value).splitlines()


def test_all_values_that_make_no_sense_are_named_together() -> None:
    assert sorted(
        faults(split="tset", epochs=0, rows=1.5, seed="much", warmup=1.0, trust_remote_code="false", chat=1)
    ) == [
        "--chat 1: must be true or false (True or False in Python)",
        "--epochs 0: must be a number above 0",
        "--rows 1.5: must be a whole number above 0",
        "--seed much: must be a whole number, 0 or more",
        "--split 'tset': choose one of all, train",
        "--trust_remote_code 'false': must be true or false (True or False in Python)",
        "--warmup 1.0: must be a number from 0 to below 1",
    ]
    assert faults(epochs=nan) == ["--epochs nan: must be a number above 0"]
    assert faults(epochs=inf) == ["--epochs inf: must be a number above 0"]


def test_numbers_become_plain() -> None:
    options = Options(epochs=PositiveFloat(3), rows=PositiveInt(2), other="false")
    check_types(options)
    assert (type(options.epochs), type(options.rows), options.other) == (float, int, "false")


def test_names_are_separated_by_commas_each_once() -> None:
    assert names(" a,b,, a ") == ["a", "b"]
    assert names(None) == []
    raise_faults([])
