"""Make forget and retain rows from the user's own questions, texts and chats."""

import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from textwrap import shorten
from typing import Any

from lume_tasks.data.files import SUFFIXES, Fault, place
from lume_tasks.data.rows import SIDES, Row, row_problems, text_problems
from lume_tasks.data.sources import read_source, source_files
from lume_tasks.errors import DataError, first_few, quote, raise_problems

PAIRS = (("question", "answer"), ("input", "output"), ("prompt", "completion"), ("prompt", "response"))
CHATS = (("messages",), ("conversations",))
TEXTS = (("text",), ("content",), ("document",))
LISTED = 20  # lines of one list in the summary

_SENTENCE_END = re.compile(r"[.!?\u2026][\"'\u201d\u2019)\]]*(?=\s)")
_WORD_END = re.compile(r"(?<=\S)(?=\s)")
_TOKEN = re.compile(r"\w+(?:['\u2019-]\w\w+)*|[^\w\s]")

Fields = tuple[str, tuple[str, ...]]  # a file, and the names of the fields that hold question and answer, or the text


@dataclass(frozen=True)
class Options:
    """Fields that are not found by their usual names, and the task label of rows without a field ``task``."""

    input_field: str | None = None
    output_field: str | None = None
    document_field: str | None = None
    label: str = "own"


@dataclass(frozen=True)
class Item:
    """What becomes a row: ``note`` says where a text was cut ("sentence", "word") or that a chat question had context.

    ``kind`` is "qa" (question and answer) or "sc" (a text to complete). If it was read from a file, ``place`` is
    ``<file>:<line>`` (of a text, the file), ``document`` the value of the document field ("" without one), ``subject``
    the person's name in the field of this name, and ``fields`` names the file and the fields that hold the text.
    """

    kind: str
    input: str
    output: str
    note: str = ""
    place: str = ""
    document: str = ""
    subject: str = ""
    task: str = ""
    fields: Fields = ("", ())

    @property
    def text(self) -> str:
        """Input and output, separated by a space."""
        return f"{self.input} {self.output}"


Sides = dict[str, list[Item]]


def prepare(forget: list[Path], retain: list[Path], output: Path, options: Options, listed: bool = False) -> str:
    """Write ``forget.jsonl`` and, if there are retain files, ``retain.jsonl`` to the folder ``output``.

    Returns:
        A summary of what was read, made and left out; with ``listed`` also every row.

    Raises:
        DataError: lists everything wrong with the files and the output folder; nothing is written.
        OSError: the folder cannot be written.
    """
    there = [output / f"{side}{suffix}" for side in SIDES for suffix in SUFFIXES]
    problems = [f"{path}: exists already: name another --output folder" for path in there if path.exists()]
    read: Counter[Fields] = Counter()  # number of rows
    sides: Sides = {}
    duplicates: list[str] = []
    for side, paths in zip(SIDES, (forget, retain), strict=True):
        found, faults = _read_files(paths, options)
        problems += faults
        items: dict[tuple[str, str], Item] = {}
        for item in found:
            read[item.fields] += 1
            first = items.setdefault((item.input, item.output), item)
            if first is not item:
                duplicates.append(f"{item.place}: the same as {first.place}")
        sides[side] = list(items.values())
    problems += _on_both_sides(*sides.values())
    problems = problems or _unused(options, sides, read)
    if problems:
        raise DataError("\n".join([f"nothing is written, {len(problems)} problems:", *first_few(problems)]))
    rows = {side: _rows(side, items) for side, items in sides.items()}
    raise_problems([f"{row.id}: {fault}" for side in SIDES for row in rows[side] for fault in row_problems(vars(row))])
    output.mkdir(parents=True, exist_ok=True)
    for side in (side for side in SIDES if rows[side]):
        given = ({name: value for name, value in vars(row).items() if value} for row in rows[side])
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in given)
        (output / f"{side}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
    summary = _summary(output, sides, rows, read, duplicates)
    return "\n".join(summary + (_listing(sides, rows) if listed else []))


def read_texts(paths: list[Path], options: Options) -> list[str]:
    """Return the text of every row of the files; DataError lists everything wrong with them."""
    items, problems = _read_files(paths, options)
    raise_problems(problems)
    return [item.text for item in items]


def _read_files(paths: list[Path], options: Options) -> tuple[list[Item], list[str]]:
    """Return the items of files and folders, and everything wrong with them."""
    items: list[Item] = []
    problems: list[str] = []
    for path in source_files(paths):
        found, faults = _read_items(path, options)
        items += found
        problems += place(str(path), faults)
    return items, problems


def _read_items(path: Path, options: Options) -> tuple[list[Item], list[Fault]]:
    objects, faults = read_source(path)
    named = tuple(name.lower() for name in (options.input_field, options.output_field) if name)
    candidates = ((named,) if named else ()) + PAIRS + CHATS + TEXTS
    document_field = (options.document_field or "document").lower()
    items: list[Item] = []
    unknown: dict[int, str] = {}
    for line, obj in objects.items():
        names = next((names for names in candidates if all(name in obj for name in names)), None)
        if names is None:
            unknown[line] = ", ".join(map(quote, obj))
            continue
        found, problems = _items(obj, names)
        faults += [(line, f"{problem}; correct the row or leave it out") for problem in problems]
        known: dict[str, Any] = {"place": f"{path}:{line}" if line else str(path), "fields": (str(path), names)}
        known["document"] = "" if document_field in names else str(obj.get(document_field) or "").strip()
        known["subject"] = "" if "subject" in names else str(obj.get("subject") or "").strip()
        known["task"] = str(obj.get("task") or options.label)
        items += [replace(item, **known) for item in found]
    if unknown and len(unknown) == len(objects) and len(set(unknown.values())) == 1:
        unknown = {0: next(iter(unknown.values()))}  # a whole table: one fault is enough
    advice = "write them into a header line, or name two with --input_field and --output_field (a text: --input_field)"
    faults += [(line, f"no question and answer or text among its fields {f}: {advice}") for line, f in unknown.items()]
    return items, faults


def _items(obj: dict[str, Any], names: tuple[str, ...]) -> tuple[list[Item], list[str]]:
    """Return the items of one object and what is wrong with it."""
    if names in CHATS:
        return chat_questions(obj[names[0]])
    obj = {name: str(value) if type(value) in (int, float) else value for name, value in obj.items()}
    problems = text_problems(obj, *names)
    if problems:
        return [], problems
    if len(names) == 2:
        kind = "sc" if str(obj.get("kind")).strip().lower() == "sc" else "qa"
        return [Item(kind, obj[names[0]].strip(), obj[names[1]].strip())], []
    item = cut(obj[names[0]])
    return ([item], []) if item else ([], ["the text is one word: a completion needs at least two"])


def cut(text: str) -> Item | None:
    """Cut a text in two at the sentence end nearest to its middle, or else between two words.

    Returns:
        The two parts without white space around the cut; None for a text of one word.
    """
    text = text.strip()
    for note, pattern in (("sentence", _SENTENCE_END), ("word", _WORD_END)):
        ends = [match.end() for match in pattern.finditer(text)]
        if ends:
            end = min(ends, key=lambda end: abs(2 * end - len(text)))
            return Item("sc", text[:end], text[end:].lstrip(), note)
    return None


def chat_questions(turns: Any) -> tuple[list[Item], list[str]]:
    """Make a question of each user turn followed by an assistant turn, which is the answer; each is asked alone.

    Args:
        turns: A list of ``{"role", "content"}`` or ``{"from", "value"}``.

    Returns:
        The questions, with the note "context" if a system message or other turns come before, and what is wrong.
    """
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return [], ['is not a chat, a list of {"role": ..., "content": ...}']
    speakers = [turn.get("role") or turn.get("from") for turn in turns]
    texts = [turn.get("content") or turn.get("value") for turn in turns]
    answers = [
        i for i in range(1, len(turns)) if speakers[i - 1] in ("user", "human") and speakers[i] in ("assistant", "gpt")
    ]
    if not answers:
        return [], ["holds no user turn followed by an assistant turn"]
    if not all(isinstance(texts[j], str) and texts[j].strip() for i in answers for j in (i - 1, i)):
        return [], ["a turn of the chat is empty or is not text"]
    return [Item("qa", texts[i - 1].strip(), texts[i].strip(), "context" if i > 1 else "") for i in answers], []


def _on_both_sides(forget: list[Item], retain: list[Item]) -> list[str]:
    places = {(item.input, item.output): item.place for item in retain}
    both = [(item.place, places.get((item.input, item.output))) for item in forget]
    advice = "forgetting and keeping it contradict each other, so leave it on one side"
    return [f"{here}: is a retain row too ({other}): {advice}" for here, other in both if other]


def _unused(options: Options, sides: Sides, read: Counter[Fields]) -> list[str]:
    """List the fields that are named by an option but are in no row: most likely misspelt."""
    used = {name for _, names in read for name in names}
    problems = [
        f"--{option} {name}: no row was read from this field; use a field that the files have"
        for option, name in (("input_field", options.input_field), ("output_field", options.output_field))
        if name and name.lower() not in used
    ]
    if options.document_field and not any(item.document for items in sides.values() for item in items):
        problems.append(f"--document_field {options.document_field}: no row has a value there; use a field with values")
    return problems


def _rows(side: str, items: list[Item]) -> list[Row]:
    """Make the ids ``<side><document><kind><n>``, with numbers for documents: reports print ids, but no names."""
    rows = []
    documents: dict[str, int] = {}  # the value of the document field, else the place, to its number
    numbers: Counter[str] = Counter()
    for item in items:
        document = documents.setdefault(item.document or item.place, len(documents) + 1)
        start = f"{side}{document}{item.kind}"
        rows.append(Row(f"{start}{numbers[start]}", item.input, item.output, item.task, item.subject))
        numbers[start] += 1
    return rows


def names_in(text: str) -> set[str]:
    """Return the runs of capitalised words, also without the first word, which may only begin a sentence."""
    runs = [list(run) for capital, run in groupby(_TOKEN.findall(text), lambda token: token[0].isupper()) if capital]
    return {" ".join(run[start:]) for run in runs for start in (0, 1) if len(run) - start > 1}


def _shared_names(forget: list[Item], retain: list[Item]) -> list[str]:
    """List the retain items that contain a name of the forget items, or the value of their document field."""
    found = Counter(name for item in forget for name in names_in(item.text))
    values = {item.document for item in forget if item.document[:1].isupper() and len(item.document) > 2}
    names = {name for name, items in found.items() if items > 1} | {" ".join(_TOKEN.findall(value)) for value in values}
    sizes = sorted({len(name.split()) for name in names}, reverse=True)
    lines = []
    for item in retain:
        words = _TOKEN.findall(f"{item.document} . {item.text}")
        runs = (" ".join(words[i : i + size]) for size in sizes for i in range(len(words)))
        name = next((run for run in runs if run in names), None)
        if name:
            lines.append(f"{item.place}: {name}")
    return lines


def _summary(
    output: Path, sides: Sides, rows: dict[str, list[Row]], read: Counter[Fields], duplicates: list[str]
) -> list[str]:
    lines = [f"read {path}: {number} rows from {' and '.join(names)}" for (path, names), number in read.items()]
    lines = first_few(lines, LISTED)
    for side in (side for side in SIDES if rows[side]):
        kinds = Counter(row.kind for row in rows[side])
        documents = len({row.stem for row in rows[side]})
        counts = f"{kinds['qa']} questions, {kinds['sc']} completions, {documents} documents"
        lines.append(f"wrote {output / side}.jsonl: {counts}")
    notes = Counter(item.note for items in sides.values() for item in items)
    if notes["sentence"] or notes["word"]:
        cuts = f"{notes['sentence']} at a sentence end, {notes['word']} between words (no sentence end inside)"
        lines.append(f"texts cut into input and output: {cuts}")
    if notes["context"]:
        lines.append(f"chat questions asked without the turns or system message before them: {notes['context']}")
    if duplicates:
        lines += [f"duplicates left out: {len(duplicates)}", *_indented(duplicates)]
    shared = _shared_names(sides["forget"], sides["retain"])
    if shared:
        advice = "forget and retain loss contradict each other there; remove rows about the person to forget"
        lines += [f"warning: {len(shared)} retain rows contain a name of the forget rows: {advice}", *_indented(shared)]
    if not rows["retain"]:
        advice = "give some with --retain, or let the model write them: --retain generate --model MODEL"
        lines.append(f"no retain rows, which `lume-unlearn run` and `audit` need: {advice}")
    return lines


def _listing(sides: Sides, rows: dict[str, list[Row]]) -> list[str]:
    """List every row with its id and place."""
    lines = []
    for side, items in sides.items():
        for row, item in zip(rows[side], items, strict=True):
            shown = " -> ".join(shorten(text, 80, placeholder="...") for text in (row.input, row.output))
            lines.append(f"{row.id}  {item.place}  {shown}")
    return lines


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in first_few(lines, LISTED)]
