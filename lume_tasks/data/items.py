"""What the user's files become before it is a row: one question with its answer, or one part of a text."""

from dataclasses import dataclass

from lume_tasks.data.rows import Turns

ALONE = "alone"
"""Note of a chat question without the turns before it; there is another item with them."""

Fields = tuple[str, tuple[str, ...]]  # a file, and the names of the fields that hold question and answer, or the text


@dataclass(frozen=True)
class Item:
    """What becomes a row. ``note`` says where a text was cut ("sentence", "word"), or `ALONE`.

    ``kind`` is "qa" (question and answer) or "sc" (a text to complete). ``turns``: see `Row`. If it was read from a
    file, ``place`` is ``<file>:<line>`` (of a text, the file), ``document`` the value of the document field ("" without
    one), ``subject`` the person's name in the field of this name, ``fields`` names the file and the fields that hold
    the text, and ``chosen`` says whether its object matches ``--where``.
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
