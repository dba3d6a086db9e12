"""The texts that `finetune` and `distill` train on: rows, member documents, and files of further texts."""

from collections.abc import Iterable
from pathlib import Path

from lume_tasks.data import locate
from lume_tasks.data.files import find_file
from lume_tasks.data.rows import SIDES
from lume_unlearn.data.documents import new_texts, read_texts
from lume_unlearn.data.inputs import Inputs, named_directory


def load_texts(data: str | None, split: str, rows: str, texts: str | None) -> Inputs:
    """Read the texts to memorise, each once, as rows whose ``input``, a space and ``output`` are the text.

    Args:
        data: data directory, or None for the default one.
        split: rows to use.
        rows: "all": forget and retain rows, then the member documents that are not the text of one of these rows;
            "retain": retain rows alone.
        texts: file of further texts, or None.

    Returns:
        All texts as the forget rows of a run, and the checksums of the files read.

    Raises:
        ConfigError: ``data`` is not a directory, or there is no file ``texts``.
        DataError: lists everything wrong with rows, documents or texts.
    """
    directory = named_directory(data)
    sides = locate.load_rows(directory, split)
    chosen = SIDES if rows == "all" else ("retain",)
    files = [locate.side_file(directory, side, split) for side in chosen]
    found = [row for side in chosen for row in sides[side]]
    if rows == "all" and (directory / "mia_data").is_dir():
        members, _ = locate.load_mia(directory)
        files.append(find_file(directory / "mia_data", "member", "mia_data/member"))
        found += new_texts(members, "member", found)
    if texts is not None:
        files.append(Path(texts).expanduser())
        found += read_texts("texts", texts, found)
    return Inputs(forget=found, retain=[], alternatives=None, checksums=checksums(files))


def checksums(files: Iterable[Path]) -> dict[str, str]:
    """Return the SHA-256 of each file by its path."""
    return {str(path): locate.checksums(path.parent, [path.name])[path.name] for path in files}
