"""Ranges of numeric options, and the check of options that Python code passes."""

from collections.abc import Sequence
from dataclasses import fields
from math import inf
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

from lume_unlearn.errors import ConfigError

if TYPE_CHECKING:
    PositiveInt: TypeAlias = int
    NonNegativeInt: TypeAlias = int
    PositiveFloat: TypeAlias = float
    NonNegativeFloat: TypeAlias = float
    Share: TypeAlias = float
else:
    from jsonargparse.typing import NonNegativeInt, PositiveInt, restricted_number_type

    PositiveFloat = restricted_number_type("PositiveFiniteFloat", float, [(">", 0), ("<", inf)])
    NonNegativeFloat = restricted_number_type("NonNegativeFiniteFloat", float, [(">=", 0), ("<", inf)])
    Share = restricted_number_type("Share", float, [(">=", 0), ("<", 1)])

Split = Literal["all", "train", "validation", "test"]

_RANGES: dict[Any, str] = {
    PositiveInt: "a whole number above 0",
    NonNegativeInt: "a whole number, 0 or more",
    PositiveFloat: "a number above 0",
    NonNegativeFloat: "a number, 0 or more",
    Share: "a number from 0 to below 1",
}


def check_types(options: Any) -> None:
    """Check the fields of a dataclass against their annotations, for callers in Python; the command line has done so.

    Numbers become plain int or float: pickles of jsonargparse's types load only where jsonargparse is installed.

    Raises:
        ConfigError: names every option outside its choices or range.
    """
    hints = get_type_hints(type(options))
    faults = []
    for field in fields(options):
        name, value, hint = field.name, getattr(options, field.name), hints[field.name]
        if value is None:
            if field.default is not None:
                faults.append(f"--{name} None: must have a value")
            continue
        if get_origin(hint) is Literal and value not in get_args(hint):
            faults.append(f"--{name} {value!r}: choose one of {', '.join(get_args(hint))}")
        for kind, words in _RANGES.items():
            if kind in (hint, *get_args(hint)):
                try:
                    number = kind(value)
                    object.__setattr__(options, name, int(number) if isinstance(number, int) else float(number))
                except (TypeError, ValueError):
                    faults.append(f"--{name} {value}: must be {words}")
    raise_faults(faults)


def raise_faults(faults: Sequence[str]) -> None:
    """Raise one `ConfigError` that lists the faults, one a line; do nothing if there are none."""
    if faults:
        raise ConfigError("\n".join(faults))


def source_faults(forget: str | None, data: str | None, split: str) -> list[str]:
    """List contradictions between ``--forget`` and the options that select rows from a data directory."""
    faults = []
    if forget is not None and data is not None:
        faults.append("--data and --forget both name the rows; give one of them")
    if forget is not None and split != "all":
        faults.append(f"--split {split}: is for --data; --forget already names the rows")
    return faults
