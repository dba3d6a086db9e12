"""Read the user's files into items, and list all data that is left out."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lume_tasks.data.chats import chat_questions
from lume_tasks.data.fields import ALPACA, CHATS, Options, as_text, lower_name, names_of, quoted
from lume_tasks.data.files import Fault, place
from lume_tasks.data.items import Fields, Item
from lume_tasks.data.rows import KINDS, TURNS, Row, Turns, turn_problems, turns_of
from lume_tasks.data.sources import Source, read_source, source_files
from lume_tasks.data.texts import completions
from lume_tasks.data.where import Where, value_of
from lume_tasks.errors import first_few

_NAMES = 20  # names of fields in one line
_ADVICE = "correct the row or leave it out"


@dataclass
class Read:
    """Everything that was read from files.

    Attributes:
        items: Questions and parts of texts, in the order of the files.
        problems: What the user has to correct.
        numbers: Number of items by file and fields.
        others: What the folders hold besides supported files.
        encodings: A line on each file that is not UTF-8.
        unused: A line on each file with fields that are in no item.
        skipped: A line on each object that gave no item.
        counts: How often parts of chats and empty lines were left out or changed, by description and by place.
    """

    items: list[Item] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    numbers: Counter[Fields] = field(default_factory=Counter)
    others: list[str] = field(default_factory=list)
    encodings: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def count(self, counts: Mapping[str, int], at: str) -> None:
        """Add the counts of one place."""
        for what, number in counts.items():
            if number:
                self.counts.setdefault(what, Counter())[at] += number


@dataclass
class Converted:
    """The result for one object: its items, its faults, why there are no items, counts, and the fields used."""

    items: list[Item] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    skipped: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    used: tuple[str, ...] = ()


def read_files(paths: list[Path], options: Options, read: Read, where: Where | None = None) -> list[Item]:
    """Return the items of files and folders; add them, with problems and counts, to ``read``.

    With ``where``, the items of objects that do not match have ``chosen`` False.
    """
    before = len(read.items)
    files, others = source_files(paths)
    read.others += map(str, others)
    for path in files:
        for name, source in read_source(path, options).items():
            _read_source(name, source, options, read, where)
    return read.items[before:]


def _read_source(name: str, source: Source, options: Options, read: Read, where: Where | None) -> None:
    """Add the items of a file or sheet to ``read``; ``name`` is its name in messages."""
    faults, skipped = source.faults, list[Fault]()
    unknown: dict[int, str] = {}
    items: list[Item] = []
    used: set[str] = set()
    for line, obj in source.objects.items():
        chosen = where is None or where.matches(obj)
        names = names_of(obj, options)
        if names is None:
            unknown[line] = ", ".join(map(quoted, obj))
            continue
        made = converted(obj, names)
        faults += [(line, f"{fault}; {_ADVICE}") for fault in made.faults]
        skipped += [(line, made.skipped)] if made.skipped else []
        at = f"{name}:{line}" if line else name
        read.count(made.counts, at)
        known: dict[str, Any] = {"place": at, "fields": (name, names)}
        of_row, given = _known(obj, names, options)
        items += [replace(item, chosen=chosen, **known, **of_row) for item in made.items]
        used |= {*made.used, *given} if made.items else set()
    faults += _unknown(unknown, len(source.objects))
    if skipped and not items and not faults:
        faults, skipped = [(line, f"{reason}; {_ADVICE}") for line, reason in skipped], []
    read.problems += place(name, faults)
    read.skipped += place(name, skipped)
    read.items += items
    read.numbers += Counter(item.fields for item in items)
    if source.encoding:
        read.encodings.append(f"{name}: {source.encoding}")
    for line, what in source.notes:
        read.count({what: 1}, f"{name}:{line}" if line else name)
    column = lower_name(where.column) if where else None
    used |= {column, column.partition(".")[0]} if column else set()
    fields = dict.fromkeys(one for obj in source.objects.values() for one in obj)
    unused = [quoted(one) for one in fields if one not in used]
    if items and unused:
        read.unused.append(f"{name}: {', '.join(first_few(unused, _NAMES))}")


def _unknown(unknown: Mapping[int, str], total: int) -> list[Fault]:
    """Return the faults of objects in which no fields have usual names."""
    if unknown and len(unknown) == total and len(set(unknown.values())) == 1:
        unknown = {0: next(iter(unknown.values()))}  # a whole table: one fault is enough
    advice = "name the columns in a header line, or give --input_field and --output_field (a text: --input_field)"
    return [(line, f"no question and answer or text among its fields {f}: {advice}") for line, f in unknown.items()]


def _known(obj: Mapping[str, Any], names: tuple[str, ...], options: Options) -> tuple[dict[str, Any], list[str]]:
    """Return document, subject and task of an item, and the names of the fields that gave them."""
    fields = {"document": lower_name(options.document_field or "document"), "subject": "subject", "task": "task"}
    values = {of: as_text(value_of(obj, name)[1]).strip() for of, name in fields.items() if name not in names}
    document = _of_id(obj, names)[0]
    if document and not values.get("document"):
        values["document"], fields["document"] = document, "id"
    known = {"document": values.get("document", ""), "subject": values.get("subject", "")}
    return known | {"task": values.get("task") or options.label}, [fields[of] for of, value in values.items() if value]


def _of_id(obj: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, str]:
    """Return document and kind from the id of a row in the form of a data directory; empty for all other objects."""
    row = Row(as_text(obj.get("id")).strip() if names == ("input", "output") else "", "", "", "")
    return (row.stem, row.kind) if row.kind else ("", "")


def converted(obj: Mapping[str, Any], names: tuple[str, ...]) -> Converted:
    """Make items from one object; its fields ``names`` hold question and answer, a chat or a text."""
    if names in CHATS and as_text(obj[names[0]]).strip():
        items, faults, counts = chat_questions(obj[names[0]])
        skipped = "" if items or faults else "holds no user turn that an assistant turn with text follows"
        return Converted(items, faults, skipped, counts, names)
    nested = [name for name in names if isinstance(obj[name], (dict, list, bytes))]
    empty = [name for name in names if not as_text(obj[name]).strip()]
    if nested:
        return Converted(faults=[f'field "{name}" is not text' for name in nested])
    if empty:
        return Converted(skipped=f'field "{empty[0]}" is empty')
    texts = [as_text(obj[name]).strip() for name in names]
    if len(texts) == 1:
        items = completions(texts[0])
        skipped = "" if items else "the text is one word: a completion needs at least two"
        counts = Counter({"long texts made into several rows": 1} if len(items) > 1 else {})
        return Converted(items, [], skipped, counts, names)
    return _pair(obj, names, texts)


def _pair(obj: Mapping[str, Any], names: tuple[str, ...], texts: list[str]) -> Converted:
    """Make an item from a question and its answer, with the optional fields input (Alpaca), kind or id, and turns."""
    used = list(names)
    if names == ALPACA and as_text(obj.get("input")).strip():
        texts[0] += f"\n\n{as_text(obj['input']).strip()}"
    if names == ALPACA:
        used.append("input")
    kind = as_text(obj.get("kind")).strip().lower()
    used += ["kind"] if kind in KINDS else []
    kind = kind or _of_id(obj, names)[1]
    turns: Turns = ()
    if obj.get(TURNS) is not None and not turn_problems(obj[TURNS]):
        turns = turns_of(obj[TURNS])
        used.append(TURNS)
    return Converted([Item("sc" if kind == "sc" else "qa", texts[0], texts[1], turns=turns)], used=tuple(used))
