"""``--where``: select the objects to forget by the value of a column."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from lume_tasks.data.fields import as_text, lower_name, lower_names, quoted
from lume_tasks.errors import DataError, first_few

_SHOWN = 5  # names or values in a message


@dataclass
class Where:
    """The condition ``COLUMN=VALUE`` (with ``differs``: ``COLUMN!=VALUE``), and the objects' values in that column.

    The name of the column is compared without case. The value is compared exactly, except for white space around it and
    the encoding of accents. If there is no column ``a.b``, it means the field ``b`` of the object in ``a``. An object
    without the column has the value "".
    """

    column: str
    value: str
    differs: bool = False
    values: Counter[str] = field(default_factory=Counter)
    columns: dict[str, None] = field(default_factory=dict)
    missing: int = 0

    @property
    def shown(self) -> str:
        """The option, for messages."""
        return f"--where {self.column}{'!=' if self.differs else '='}{self.value}"

    def matches(self, obj: Mapping[str, Any]) -> bool:
        """Return whether an object is to be forgotten, and remember its value."""
        there, value = value_of(obj, self.column)
        text = unicodedata.normalize("NFC", as_text(value).strip())  # some systems store accents as characters
        self.missing += not there
        self.values[text] += 1
        self.columns |= dict.fromkeys(_columns(obj))
        return (text == self.value) != self.differs

    def problems(self) -> list[str]:
        """List why the objects cannot be split; call it after all objects were matched."""
        total = self.values.total()
        if not total:
            return []
        if self.missing == total:
            named = _closest(lower_name(self.column), self.columns)
            return [f"{self.shown}: no object has the column {quoted(self.column)}; use one of those there: {named}"]
        if self.value not in self.values:
            named = _closest(self.value, [value for value, _ in self.values.most_common()])
            return [f"{self.shown}: no object has this value; use one of those there: {named}"]
        if len(self.values) == 1:
            return [f"{self.shown}: all {total} objects have this value, so nothing is split; leave --where out"]
        return []

    def summary(self) -> list[str]:
        """Return lines on how many objects are on each side, and how many lack the column."""
        equal = self.values[self.value]
        forget = self.values.total() - equal if self.differs else equal
        lines = [f"{self.shown}: {forget} objects to forget, {self.values.total() - forget} to retain"]
        if self.missing:
            side = "forget" if (self.value == "") != self.differs else "retain"
            lines.append(f"objects without the column {quoted(self.column)}, which go to {side}: {self.missing}")
        same = _simple(self.value)
        near = [quoted(value) for value in self.values if value != self.value and _simple(value) == same]
        if near:
            what = "values that differ from it only in capital letters or decimals are on the other side"
            lines.append(f"warning: {what}: {', '.join(first_few(near, _SHOWN))}")
        return lines


def parse_where(text: str) -> Where:
    """Parse ``COLUMN=VALUE`` or ``COLUMN!=VALUE``; DataError if the text is neither."""
    found = re.fullmatch(r"\s*([^=]*[^=!\s])\s*(!?)=(.*)", text, re.DOTALL)
    if not found:
        raise DataError(f"--where {text}: is not COLUMN=VALUE or COLUMN!=VALUE, such as --where customer=77")
    return Where(found[1], unicodedata.normalize("NFC", found[3].strip()), found[2] == "!")


def _simple(value: str) -> str:
    """Return a value without case, and a whole number without decimals: spreadsheets and pandas write 77 as 77.0."""
    return re.sub(r"(?<=\d)[.,]0{1,2}$", "", value.casefold())


def value_of(obj: Mapping[str, Any], column: str) -> tuple[bool, Any]:
    """Return whether an object has the column, and its value; the part after a dot names a field of a nested object."""
    lower, column = lower_names(obj), lower_name(column)
    if column in lower:
        return True, lower[column]
    for dot in (match.start() for match in re.finditer(r"\.", column)):
        inner = lower.get(column[:dot])
        if isinstance(inner, Mapping):
            there, value = value_of(inner, column[dot + 1 :])
            if there:
                return True, value
    return False, None


def _columns(obj: Mapping[str, Any], front: str = "") -> Iterable[str]:
    for name, value in obj.items():
        if isinstance(value, Mapping):
            yield from _columns(value, f"{front}{name}.")
        else:
            yield f"{front}{name}"


def _closest(wanted: str, there: Iterable[str]) -> str:
    """Return the first few names in quotation marks, the most similar ones in front."""
    there = list(there)
    close = get_close_matches(wanted, there, n=_SHOWN)
    names = [*close, *(name for name in there if name not in close)]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(quoted, names[:_SHOWN])) + more
