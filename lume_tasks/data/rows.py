"""What a row of LUME is, and what can be wrong with one."""

import re
from dataclasses import dataclass

from lume_tasks.errors import describe, quote

SIDES = ("forget", "retain")
SPLITS = ("train", "validation", "test")
TASKS = ("Task1", "Task2", "Task3")
TEXT = "text"  # see `parquet.parquet_records`
FIELDS = dict.fromkeys(("id", "input", "output", "task"), TEXT)

_KIND = re.compile(r"(sc|qa)[0-9]\Z")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Row:
    """One test of the benchmark, its strings exactly as in the file.

    ``id`` ends in ``sc<digit>`` (sentence completion) or ``qa<digit>`` (question answering).
    """

    id: str
    input: str
    output: str
    task: str

    @property
    def kind(self) -> str:
        """``"sc"`` (regurgitation test) or ``"qa"`` (knowledge test)."""
        return self.id[-3:-1]

    @property
    def stem(self) -> str:
        """The id without its kind and digit: what the tests of one document or person share."""
        return self.id[:-3]


def text_key(row: Row) -> tuple[str, str]:
    """What makes two rows the same test: input and output without the white space around them."""
    return row.input.strip(), row.output.strip()


def text_problem(obj: dict[str, object], field: str) -> str | None:
    """Say what is wrong with one field that has to hold text, or return None."""
    if field not in obj:
        return f'field "{field}" is missing'
    value = obj[field]
    if not isinstance(value, str):
        return f'field "{field}" is {describe(value)}, not a string'
    if not value.strip():
        return f'field "{field}" is empty'
    if "\0" in value:
        return f'field "{field}" contains a NUL character'
    if _SURROGATE.search(value):
        return f'field "{field}" contains half a surrogate pair (such as \\ud800), which UTF-8 cannot hold'
    return None


def row_problems(obj: object) -> list[str]:
    """List everything wrong with one parsed row of forget or retain; extra fields are fine."""
    if not isinstance(obj, dict):
        return [f"is {describe(obj)}, not an object with the fields {', '.join(FIELDS)}"]
    found = {field: text_problem(obj, field) for field in FIELDS}
    problems = [problem for problem in found.values() if problem]
    if found["task"] is None and obj["task"] not in TASKS:
        problems.append(f"task {quote(obj['task'])} is unknown: use one of {', '.join(TASKS)}")
    if found["id"] is None and not _KIND.search(obj["id"]):
        problems.append(f"id {quote(obj['id'])} ends neither in sc<digit> nor in qa<digit>")
    return problems


def document_problems(obj: object) -> list[str]:
    """List everything wrong with one parsed membership-inference document; extra fields are fine."""
    if not isinstance(obj, dict):
        return [f'is {describe(obj)}, not an object with the field "document"']
    problem = text_problem(obj, "document")
    return [problem] if problem else []
