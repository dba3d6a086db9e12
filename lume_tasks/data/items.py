"""The form between the user's files and rows: one question with its answer, or one part of a text."""

from dataclasses import dataclass

from lume_tasks.data.rows import Turns

ALONE = "alone"
"""Note of a chat question asked without the turns before it; another item asks it with them."""

Fields = tuple[str, tuple[str, ...]]  # a file, and the names of the fields that hold question and answer, or the text


@dataclass(frozen=True)
class Item:
    """One future row. ``note`` tells where a text was cut ("sentence", "word"), or is `ALONE`.

    ``kind`` is "qa" (question and answer) or "sc" (a text to complete). ``turns``: see `Row`. If the item was read from
    a file, ``place`` is ``<file>:<line>`` (for a text file, only the file), ``document`` is the value of the document
    field ("" without one), ``subject`` is the value of the field ``subject``, ``fields`` is the file and the names of
    the fields that hold the text, and ``chosen`` tells whether its object matches ``--where``.
    """

    kind: str
    input: str
    output: str
    note: str = ""
    turns: Turns = ()
    place: str = ""
    document: str = ""
    subject: str = ""
    task: str = ""
    fields: Fields = ("", ())
    chosen: bool = True

    @property
    def text(self) -> str:
        """Input and output, separated by a space."""
        return f"{self.input} {self.output}"

    @property
    def key(self) -> tuple[str, str, Turns]:
        """Items with equal keys are the same test."""
        return self.input, self.output, self.turns
