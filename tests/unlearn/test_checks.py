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
    steps: int = -1
    decay: float | None = 0.0
    other: Any = None


def faults(**options: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_types(Options(**options))
    return str(caught.value).splitlines()


def test_all_values_that_make_no_sense_are_named_together():
    wrong = {"split": "tset", "epochs": 0, "rows": 1.5, "seed": "much", "warmup": 1.0, "chat": 1}
    wrong |= {"steps": 1.5, "decay": "x"}
    assert sorted(line.split()[0].strip("-") for line in faults(**wrong)) == sorted(wrong)
    assert faults(trust_remote_code="false") == [
        "--trust_remote_code 'false': must be true or false (True or False in Python)"
    ]
    assert faults(split=None) == ["--split None: leave it out for the default"]
    for epochs in (nan, inf):
        assert faults(epochs=epochs) == [f"--epochs {epochs}: must be a number above 0"]


def test_numbers_become_plain():
    options = Options(epochs=PositiveFloat(3), rows=PositiveInt(2), other="false")
    check_types(options)
    assert (type(options.epochs), type(options.rows), options.other) == (float, int, "false")


def test_names_are_separated_by_commas_each_once():
    assert names(" a,b,, a ") == ["a", "b"]
    assert names(None) == []
    raise_faults([])
