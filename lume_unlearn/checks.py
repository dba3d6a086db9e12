"""Checks of options, and small helpers that every layer shares."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from math import inf, isfinite
from numbers import Real
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

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

RANGES: dict[Any, str] = {
    PositiveInt: "a whole number above 0",
    NonNegativeInt: "a whole number, 0 or more",
    PositiveFloat: "a number above 0",
    NonNegativeFloat: "a number, 0 or more",
    Share: "a number from 0 to below 1",
}


def check_types(options: Any) -> None:
    """Check the fields of a dataclass against their annotations, for callers in Python.

    The command line has checked its options already. Literals, bools, numbers and None are checked; other annotations
    pass. The numbers in `RANGES` become plain int or float, since pickles of jsonargparse's types load only where
    jsonargparse is installed. Bounds that `lume_unlearn.methods.base.param` declares are checked as well.

    Raises:
        ConfigError: the message names every option outside its choices or range.
    """
    hints = get_type_hints(type(options))
    faults = []
    for field in fields(options):
        name, value, hint = field.name, getattr(options, field.name), hints[field.name]
        kinds = {*get_args(hint)} if get_origin(hint) in (Union, UnionType) else {hint}
        if value is None:
            faults += [f"--{name} None: leave it out for the default"] * kinds.isdisjoint({Any, NoneType})
            continue
        whole = int in kinds
        if kinds <= {int, float, NoneType}:
            valid = isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)
            if not valid or (whole and value % 1):
                faults.append(f"--{name} {value!r}: must be a {'whole' if whole else 'finite'} number")
            else:
                faults += [f"--{name} {value}: {fault}" for fault in _beyond(value, **field.metadata)]
        if get_origin(hint) is Literal and value not in get_args(hint):
            faults.append(f"--{name} {value!r}: choose one of {', '.join(map(str, get_args(hint)))}")
        if kinds - {NoneType} == {bool} and not isinstance(value, bool):
            faults.append(f"--{name} {value!r}: must be true or false (True or False in Python)")
        for kind in kinds & RANGES.keys():
            try:
                number = kind(value)
                object.__setattr__(options, name, int(number) if isinstance(number, int) else float(number))
            except (TypeError, ValueError):
                faults.append(f"--{name} {value}: must be {RANGES[kind]}")
    raise_faults(faults)


def _beyond(value: float, zero: bool | None = None, most: float = inf, **_: Any) -> list[str]:
    """Return what is wrong with a number that may be 0 (``zero``; None: any number may be) and ``most`` at most."""
    if zero is not None and (value < 0 or (value == 0 and not zero)):
        return ["must be 0 or more" if zero else "must be above 0"]
    return [f"must be at most {most:g}"] * bool(value > most)


def raise_faults(faults: Sequence[str]) -> None:
    """Raise one `ConfigError` that lists the faults, one per line; do nothing if there are none."""
    if faults:
        raise ConfigError("\n".join(faults))


def names(text: str | None) -> list[str]:
    """Return the comma-separated names in a text, without duplicates."""
    return list(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))


def listed(given: Any) -> list[Any]:
    """Return a text as a list of this text, and anything else as a list: a loop over a text would read its letters."""
    return [given] if isinstance(given, str) else list(given)


def require_list(name: str, given: Any) -> None:
    """Raise `ConfigError` for a text, mapping or table where a list of texts is meant.

    A loop over these would read letters, keys or names of columns.
    """
    if isinstance(given, (str, Mapping)) or hasattr(given, "columns") or hasattr(given, "column_names"):
        what = "one text" if isinstance(given, str) else f"a {type(given).__name__}"
        raise ConfigError(f"{name}: give a list of texts, not {what}")


def restored(kind: Any, content: Any) -> Any:
    """Restore a value of the annotated type ``kind`` from the output of `dataclasses.asdict`, also after JSON."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{name: restored(hints[name], value) for name, value in content.items()})  # type: ignore[operator]
    kinds = [one for one in get_args(kind) if one is not NoneType]
    if get_origin(kind) is dict:
        return {kinds[0](key): restored(kinds[1], value) for key, value in content.items()}
    return content if content is None or not kinds else restored(kinds[0], content)


def require_loaded(given: Any, name: str = "model") -> None:
    """Raise `ConfigError` for None, a text or an object of the harness, where ``name`` should be a loaded model."""
    if not hasattr(given, "named_parameters"):
        raise ConfigError(f"{name} {given!r}: pass a loaded model, from AutoModelForCausalLM.from_pretrained(MODEL)")


def require_tokenizer(given: Any) -> None:
    """Raise `ConfigError` for None, or a name, where a tokenizer is meant."""
    if given is None or isinstance(given, str):
        raise ConfigError(f"tokenizer {given!r}: pass the model's own, from AutoTokenizer.from_pretrained(MODEL)")


def stable_number(*parts: int | str) -> int:
    """Return an evenly distributed 64-bit hash of the parts, the same in every process and on every machine."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big")
