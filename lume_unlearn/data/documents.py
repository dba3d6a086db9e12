"""Read files of texts that are not rows: `--texts`, `--unseen` and `--unrelated`."""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from lume_tasks.data import prepare
from lume_tasks.data.files import SUFFIXES, place, read_lines, scan_documents
from lume_tasks.data.rows import Row
from lume_tasks.data.sources import TABLES
from lume_tasks.data.text import UNSPACED
from lume_tasks.errors import DataError, first_few, raise_problems
from lume_unlearn.checks import require_list
from lume_unlearn.errors import ConfigError

PREPARED = (*TABLES, ".xlsx", ".json")
"""Suffixes of files that are read as `lume-tasks prepare` reads them."""


def read_texts(option: str, named: str | Path, known: Iterable[Row] = ()) -> list[Row]:
    """Read the texts of a file as rows; a text is the ``input``, a space and the ``output`` of its row.

    A .jsonl or .parquet file has them in the field "document", a table or .json file as `lume-tasks prepare` reads it;
    in any other file, blank lines separate them.

    Args:
        option: option that names the file, for messages.
        named: path of the file.
        known: rows whose texts are left out.

    Raises:
        ConfigError: there is no such file.
        DataError: the message lists everything wrong with the file.
    """
    path = Path(named).expanduser()
    if not path.is_file():
        raise ConfigError(f"--{option} {named}: there is no such file")
    if path.suffix in SUFFIXES:
        documents, faults = scan_documents(path)
    elif path.suffix.lower() in PREPARED:
        documents, faults = dict(enumerate(prepare.read_texts([path], prepare.Options()))), []
    else:
        lines, faults = read_lines(path)
        blocks = re.split(r"\n\s*\n", "\n".join(lines.values()))
        documents = dict(enumerate(block for block in blocks if block.strip()))
        faults = faults or ([] if documents else [(0, "is empty: it holds no texts")])
    raise_problems(place(str(path), faults))
    return new_texts(documents.values(), "text", known)


def text_rows(texts: Iterable[str | Row]) -> list[Row]:
    """Return texts as rows (see `whole_text`) with the ids "text <number>"; rows are returned unchanged.

    Raises:
        ConfigError: it is one text, perhaps the name of a file, or a table, or it holds something else.
    """
    require_list("unseen, unrelated", texts)
    texts = list(texts)
    for text in texts:
        if not isinstance(text, (str, Row)):
            raise ConfigError(f"unseen, unrelated: give a list of texts, not of {type(text).__name__}")
    numbered = enumerate(texts, 1)
    return [text if isinstance(text, Row) else _text_row(f"text {number}", text.strip()) for number, text in numbered]


def unseen_rows(texts: Iterable[str | Row], known: Iterable[Row]) -> list[Row]:
    """Return texts that a model never saw as rows (see `text_rows`).

    Raises:
        ConfigError: see `text_rows`.
        DataError: some are texts of ``known``, the forget and retain rows, which the model saw.
    """
    rows, held = text_rows(texts), {text_of(row) for row in known}
    seen = [row.id for row in rows if text_of(row) in held]
    if seen:
        listed = ", ".join(first_few(seen, 3))
        raise DataError(
            f"--unseen: {len(seen)} of {len(rows)} texts are forget or retain rows, which the model saw: {listed}; "
            "give texts that it never saw"
        )
    return rows


def new_texts(texts: Iterable[str], name: str, known: Iterable[Row]) -> list[Row]:
    """Return the texts that are not in ``known``, as rows (see `whole_text`) with the ids "<name> <number>"."""
    held = {text_of(row) for row in known}
    numbered = enumerate(map(str.strip, texts), 1)
    return [_text_row(f"{name} {number}", text) for number, text in numbered if text not in held]


def _text_row(name: str, text: str) -> Row:
    return whole_text(Row(name, text, "", ""))


def text_of(row: Row) -> str:
    """Return the text of a row: ``input``, a space, ``output``."""
    return f"{row.input} {row.output}".strip()


def whole_text(row: Row) -> Row:
    """Cut a row at the first space of its text, so that nearly all is the answer; `Encoder` adds the space again.

    In a script without spaces, such as Chinese, the whole text is the answer.
    """
    start, _, rest = (text := text_of(row)).partition(" ")
    if re.search(f"[{UNSPACED}]", start):
        start, rest = "", text
    return replace(row, input=start, output=rest)
