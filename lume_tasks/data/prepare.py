"""Make forget and retain rows from the user's own questions, texts and chats."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten

from lume_tasks.data.chats import shared_questions
from lume_tasks.data.encodings import encoding_problem
from lume_tasks.data.fields import Options, lower_name
from lume_tasks.data.files import SUFFIXES, write_rows
from lume_tasks.data.items import ALONE, Item
from lume_tasks.data.names import shared_names
from lume_tasks.data.reading import Read, read_files
from lume_tasks.data.rows import SIDES, Row, row_problems
from lume_tasks.data.source import Data
from lume_tasks.data.where import Where, parse_where
from lume_tasks.errors import counted, first_few, raise_problems

__all__ = ["Options", "Prepared", "prepare", "prepared", "read_texts"]

LISTED = 20  # lines of one list in the summary
PLACES = 5  # places in one line


@dataclass(frozen=True)
class Prepared(Data):
    """Rows made of the user's files, in memory.

    Attributes:
        forget: Rows of the forget files.
        retain: Rows of the retain files, and rows of the forget files that ``--where`` does not select; may be empty.
        summary: Lines on what was read, made and left out.
    """

    summary: list[str] = field(default_factory=list)


@dataclass
class _Split:
    """The items of both sides without duplicates, and how they were read."""

    forget: list[Item]
    retain: list[Item]
    read: Read
    where: Where | None
    duplicates: list[str] = field(default_factory=list)  # a line for each item left out
    shared: list[str] = field(default_factory=list)


def prepare(forget: list[Path], retain: list[Path], output: Path, options: Options) -> str:
    """Write ``forget.jsonl`` and, if there are retain rows, ``retain.jsonl`` to the folder ``output``.

    Returns:
        The summary of `prepared`, and what was written.

    Raises:
        DataError: lists everything wrong with the files and the output folder; nothing is written.
        OSError: the folder cannot be written.
    """
    there = [output / f"{side}{suffix}" for side in SIDES for suffix in SUFFIXES]
    raise_problems([f"{path}: exists already: name another --output folder" for path in there if path.exists()])
    found = prepared(forget, retain, options)
    summary = list(found.summary)
    for side, rows in found.rows.items():
        if rows:
            write_rows(output / f"{side}.jsonl", rows)
            summary.append(f"wrote {output / side}.jsonl: {_counts(rows)}")
    if not found.retain:
        advice = "give some with --retain, or let the model write them: --retain generate --model MODEL"
        summary.append(f"no retain rows, which `lume-unlearn run` and `audit` need: {advice}")
    return "\n".join(summary)


def prepared(forget: list[Path], retain: list[Path], options: Options) -> Prepared:
    """Read files and folders and return their rows.

    Args:
        forget: Files with what the model must forget; with ``options.where``, only the objects that match.
        retain: Files with what the model must keep.
        options: How to read them.

    Raises:
        DataError: lists everything wrong with the files and the options.
    """
    split = _split(forget, retain, options)
    rows, kept = _rows("forget", split.forget), _rows("retain", split.retain)
    places = [(row, item.place) for row, item in zip([*rows, *kept], [*split.forget, *split.retain], strict=True)]
    raise_problems([f"{at}: {fault}" for row, at in places for fault in row_problems(vars(row))])
    return Prepared(rows, kept, summary=_summary(split))


def read_texts(paths: list[Path], options: Options) -> list[str]:
    """Return the text of every row to forget; DataError lists everything wrong with the files."""
    return [item.text for item in _split(paths, [], options).forget]


def _split(forget: list[Path], retain: list[Path], options: Options) -> _Split:
    """Read the items of both sides; DataError lists everything wrong with them."""
    where = None if options.where is None else parse_where(options.where)
    wrong = encoding_problem(options.encoding) if options.encoding else None
    raise_problems([wrong] if wrong else [])
    read = Read()
    first = read_files(forget, options, read, where)
    second = [item for item in first if not item.chosen] + read_files(retain, options, read)
    split = _Split([item for item in first if item.chosen], second, read, where)
    split.forget, split.retain = (_once(items, split.duplicates) for items in (split.forget, split.retain))
    _leave_out_shared(split)
    problems = read.problems + _on_both_sides(split.forget, split.retain)
    problems = problems or (where.problems() if where else []) or _unused(options, read)
    if not problems and not split.forget:
        problems = [f"{where.shown if where else '--forget'}: no row can be made of the objects to forget"]
    raise_problems(problems, f"nothing is written, {counted(len(problems), 'problem')}:")
    return split


def _once(items: Iterable[Item], duplicates: list[str]) -> list[Item]:
    """Return each item once; a question that has no turns before it replaces an equal one asked alone."""
    kept: dict[object, Item] = {}
    for item in items:
        first = kept.setdefault(item.key, item)
        if first is not item:
            duplicates.append(f"{item.place}: the same as {first.place}")
            if first.note == ALONE and item.note != ALONE:
                kept[item.key] = item
    return list(kept.values())


def _leave_out_shared(split: _Split) -> None:
    """Leave out chat questions that the other side has too; a whole chat on both sides is an error."""
    sides = ({item.key: item.note == ALONE for item in items} for items in (split.forget, split.retain))
    out, others = shared_questions(*sides)
    left = {item.key: item for item in split.retain if item.key in others}
    left = {item.key: item for item in split.forget if item.key in out} | left
    split.forget = [item for item in split.forget if item.key not in out]
    split.retain = [item for item in split.retain if item.key not in others]
    split.shared += [f"{item.place}: {shorten(item.input, 80, placeholder='...')}" for item in left.values()]


def _on_both_sides(forget: list[Item], retain: list[Item]) -> list[str]:
    places = {item.key: item.place for item in retain}
    both = [(item.place, places.get(item.key)) for item in forget]
    advice = "forgetting and keeping it contradict each other, so leave it on one side"
    return [f"{here}: is a retain row too ({other}): {advice}" for here, other in both if other]


def _unused(options: Options, read: Read) -> list[str]:
    """List the fields that an option names but no row was read from: they are most likely misspelt."""
    used = {name for _, names in read.numbers for name in names}
    problems = [
        f"--{option} {name}: no row was read from this field; use a field that the files have"
        for option, name in (("input_field", options.input_field), ("output_field", options.output_field))
        if name and lower_name(name) not in used
    ]
    if options.document_field and not any(item.document for item in read.items):
        problems.append(f"--document_field {options.document_field}: no row has a value there; use a field with values")
    return problems


def _rows(side: str, items: list[Item]) -> list[Row]:
    """Make rows with ids ``<side><document><kind><n>``; documents are numbers: reports print ids, but no names."""
    rows = []
    documents: dict[str, int] = {}  # the value of the document field, else the place, to its number
    numbers: Counter[str] = Counter()
    for item in items:
        document = documents.setdefault(item.document or item.place, len(documents) + 1)
        start = f"{side}{document}{item.kind}"
        row_id = f"{start}{numbers[start]}"
        rows.append(Row(row_id, item.input, item.output, item.task, item.subject, turns=item.turns))
        numbers[start] += 1
    return rows


def _counts(rows: list[Row]) -> str:
    kinds = Counter(row.kind for row in rows)
    return f"{kinds['qa']} questions, {kinds['sc']} completions, {len({row.stem for row in rows})} documents"


def _summary(split: _Split) -> list[str]:
    read = split.read
    lines = [f"read {path}: {number} rows from {' and '.join(names)}" for (path, names), number in read.numbers.items()]
    lines = first_few(lines, LISTED)
    lines += _list("in folders, but not read (folders inside, and files of other types)", read.others)
    lines += _list(
        "files that are not UTF-8 (if letters are wrong, give their encoding with --encoding)", read.encodings
    )
    lines += split.where.summary() if split.where else []
    lines += _made([*split.forget, *split.retain])
    for what, places in read.counts.items():
        lines.append(f"{what}: {places.total()} ({', '.join(first_few(list(places), PLACES))})")
    lines += _list("fields that are in no row", read.unused)
    lines += _list("left out, since no row can be made of them", read.skipped)
    lines += _list("duplicates left out", split.duplicates)
    what = "chat questions (asked alone, or at the start of a chat) left out, since the other side has them too"
    lines += _list(what, split.shared)
    certain, perhaps = shared_names(split.forget, split.retain)
    advice = "forget and retain loss contradict each other there; remove rows about the person to forget"
    lines += _list(f"warning: {len(certain)} retain rows contain a name of the forget rows: {advice}", certain, False)
    advice = "perhaps they are about the person to forget, whose first or last name they contain; remove those that are"
    lines += _list(f"warning: {len(perhaps)} retain rows: {advice}", perhaps, False)
    return lines


def _made(items: list[Item]) -> list[str]:
    """Return summary lines on where texts were cut and how chat questions are asked."""
    lines = []
    notes = Counter(item.note for item in items)
    if notes["sentence"] or notes["word"]:
        cuts = f"{notes['sentence']} at a sentence end, {notes['word']} between words (no sentence end nearby)"
        lines.append(f"texts cut into input and output: {cuts}")
    context = sum(bool(item.turns) for item in items)
    alone = f"also asked without these turns: {notes[ALONE]}"
    return lines + ([f"chat questions asked after the turns before them: {context}; {alone}"] if context else [])


def _list(title: str, lines: list[str], number: bool = True) -> list[str]:
    """Return a title, with the number of the lines, and the first of them indented; nothing if there are none."""
    heading = f"{title}: {len(lines)}" if number else title
    return [heading, *(f"  {line}" for line in first_few(lines, LISTED))] if lines else []
