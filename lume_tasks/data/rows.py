"""The rows of LUME: their fields, and everything that can be wrong with one row."""

import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lume_tasks.errors import quote

SIDES = ("forget", "retain")
SPLITS = ("train", "validation", "test")
TASKS = ("Task1", "Task2", "Task3")
ROW_TASKS = ("lume_task1", "lume_task2", "lume_task3", "lume_rows")
"""The harness's tasks that generate answers to rows."""
FIELDS = ("id", "input", "output", "task")
SWAP = ("subject", "question")
"""Optional fields for the swap test: the person whom a row is about, and a question that names the person."""
OPTIONAL = ("document", "kind")
"""Fields from which a row without an id gets one."""
TURNS = "turns"
"""Optional field: the turns before the question in a chat, a list of ``{"role", "content"}``."""
ROLES = ("system", "user", "assistant", "tool")
OWN = "own"
"""The task of rows without the field ``task``."""

KINDS = ("sc", "qa")

Turns = tuple[tuple[str, str], ...]

_KIND = re.compile(rf"({'|'.join(KINDS)})[0-9]+\Z")


@dataclass(frozen=True)
class Row:
    """One test of the benchmark, its strings exactly as in the file.

    ``id`` ends in ``sc<number>`` (sentence completion) or ``qa<number>`` (question answering). ``task`` is one of
    ``TASKS``, or another label for the user's own data. For the swap test, ``subject`` is the name of the person that
    the row is about; ``question`` replaces ``input``, names the person and has the answer ``output``. ``turns`` is the
    (role, content) of each turn before the question in a chat.
    """

    id: str
    input: str
    output: str
    task: str
    subject: str = ""
    question: str = ""
    turns: Turns = ()

    @property
    def kind(self) -> str:
        """``"sc"`` (regurgitation test) or ``"qa"`` (knowledge test)."""
        return self.id[len(self.stem) :][:2]

    @property
    def stem(self) -> str:
        """The part of the id that all rows about one document or person share."""
        return stem_of(self.id)


def stem_of(row_id: str) -> str:
    """Return a row's id without its kind and number."""
    return _KIND.sub("", row_id)


def task_name(label: str) -> str:
    """Return the harness's task for the rows of a label: ``lume_task1`` for "Task1", ``lume_rows`` for your own."""
    return f"lume_{label.lower()}" if label in TASKS else "lume_rows"


def text_key(row: Row) -> tuple[str, str, Turns]:
    """Return input and output without surrounding white space, and turns; rows with equal keys are the same test."""
    return row.input.strip(), row.output.strip(), row.turns


def completion_texts(rows: Iterable[Row]) -> set[str]:
    """Return the text of each ``sc`` row: ``input``, a space, ``output``, without white space at the ends."""
    return {f"{row.input} {row.output}".strip() for row in rows if row.kind == "sc"}


def text_problems(obj: object, *fields: str) -> list[str]:
    """List everything wrong with a parsed line whose ``fields`` must hold text; other fields are not checked."""
    if not isinstance(obj, dict):
        return [f"is not a JSON object with the fields {', '.join(fields)}"]
    problems = []
    for field in fields:
        value = obj.get(field)
        if field not in obj:
            problems.append(f'field "{field}" is missing')
        elif not isinstance(value, str):
            problems.append(f'field "{field}" is not a string')
        elif not value.strip():
            problems.append(f'field "{field}" is empty')
    return problems


def completed(obj: Any) -> Any:
    """Return a parsed row with a task and an id; both are added if they are missing.

    The id consists of a checksum of ``document`` (without it, of the text), ``kind`` ("qa" without it), and a checksum
    of the text with its turns. So it contains no name, and is the same in the files of the splits. A row of an unknown
    kind gets no id.
    """
    if not isinstance(obj, dict):
        return obj
    text = f"{obj.get('input')}\n{obj.get('output')}"
    turns = obj.get(TURNS)
    whole = text if turns is None or turn_problems(turns) else "\n".join([text, *map(str, turns_of(turns))])
    document, number = (zlib.crc32(str(part).encode()) for part in (obj.get("document") or text, whole))
    kind = obj.get("kind") or "qa"
    made = {"task": OWN, **dict.fromkeys(SWAP, "")}
    made |= {"id": f"{document:08x}-{kind}{number}"} if kind in KINDS else {}
    return obj | {field: value for field, value in made.items() if obj.get(field) is None}


def turns_of(turns: Any) -> Turns:
    """Return valid turns, which are objects or pairs (see `turn_problems`), as pairs of role and content."""
    pairs = ((turn["role"], turn["content"]) if isinstance(turn, Mapping) else tuple(turn) for turn in turns or ())
    return tuple(pairs)


def turn_problems(turns: Any) -> list[str]:
    """List everything wrong with the field ``turns``: a list of ``{"role", "content"}``, or of such pairs."""
    if not isinstance(turns, (list, tuple)):
        return ['field "turns" is not a list of {"role": ..., "content": ...}']
    problems = []
    for number, turn in enumerate(turns, 1):
        pair = [turn.get("role"), turn.get("content")] if isinstance(turn, Mapping) else turn
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            problems.append(f'field "turns", turn {number}: is not {{"role": ..., "content": ...}}')
        elif pair[0] not in ROLES:
            problems.append(f'field "turns", turn {number}: "role" is none of {", ".join(ROLES)}')
        elif not isinstance(pair[1], str):
            problems.append(f'field "turns", turn {number}: "content" is not a string')
    return problems


def row_of(obj: Mapping[str, Any]) -> Row:
    """Return the row of a completed object without problems."""
    return Row(**{field: obj[field] for field in (*FIELDS, *SWAP)}, turns=turns_of(obj.get(TURNS)))


def row_object(row: Row) -> dict[str, Any]:
    """Return the JSON object of a row, without its empty optional fields; `row_of` is the inverse."""
    obj = {name: value for name, value in vars(row).items() if value or name in FIELDS}
    return obj | ({TURNS: [{"role": role, "content": content} for role, content in row.turns]} if row.turns else {})


def row_problems(obj: object) -> list[str]:
    """List everything wrong with a parsed forget or retain row; extra fields are allowed."""
    unknown_kind = isinstance(obj, dict) and obj.get("id") is None and obj.get("kind") not in (None, "", *KINDS)
    problems = text_problems(obj, *(field for field in FIELDS if not (unknown_kind and field == "id")))
    if not isinstance(obj, dict):
        return problems
    task, row_id = obj.get("task"), obj.get("id")
    problems += [f'field "{name}" is not a string' for name in SWAP if not isinstance(obj.get(name, ""), str)]
    problems += [] if obj.get(TURNS) is None else turn_problems(obj[TURNS])
    if unknown_kind:
        shown = quote(str(obj["kind"]))
        problems.append(f'field "kind" is {shown}: use "sc" (a text to complete) or "qa" (question and answer)')
    if isinstance(task, str) and task not in TASKS and task.replace(" ", "").capitalize() in TASKS:
        problems.append(f"task {quote(task)} is misspelt: use one of {', '.join(TASKS)}, or your own label")
    if isinstance(row_id, str) and row_id.strip() and not _KIND.search(row_id):
        problems.append(f"id {quote(row_id)} ends neither in sc<number> nor in qa<number>")
    return problems
