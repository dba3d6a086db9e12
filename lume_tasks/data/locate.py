"""Find the data directory and MMLU, and load their content, for the tasks and the trainers."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lume_tasks.data.checks import check_sides, scan_mia, scan_mmlu
from lume_tasks.data.files import SUFFIXES, find_file, place, scan_rows
from lume_tasks.data.rows import SIDES, SPLITS, Row
from lume_tasks.errors import DataError, first_line, quote, raise_problems

DATA_VARIABLE = "LUME_DATA_DIR"
MMLU_VARIABLE = "LUME_MMLU_PATH"
MMLU_HUB_ID = "cais/mmlu"
MMLU_REVISION = "c30699e8356da336a370243923dbaf21066bb9fe"
MMLU_SUBJECTS = tuple(Path(__file__).with_name("mmlu_subjects.txt").read_text(encoding="utf-8").splitlines())
MMLU_QUESTIONS = 14_042  # in the test files of all subjects
_FILES = "forget.jsonl or forget.parquet (`lume-tasks prepare` makes them from CSV, XLSX, JSON, text and other files)"


def data_dir(lume_data_dir: str | None = None) -> Path:
    """Find the data directory: the argument (harness metadata), ``LUME_DATA_DIR``, else the published files.

    Raises:
        DataError: a directory that was named does not exist, or the published files cannot be downloaded.
    """
    named = _named("lume_data_dir", lume_data_dir, DATA_VARIABLE)
    if named is None:
        from lume_tasks.data.fetch import fetch  # not at the top: it imports the network modules

        return fetch()
    origin, directory = named
    if not os.path.isdir(directory):
        raise DataError(f"{origin} names {directory}, which is not a directory; name one with {_FILES}")
    return directory


def splits(directory: Path) -> list[str]:
    """List the splits that a data directory offers, ``all`` first."""
    whole = any((directory / f"{side}{suffix}").exists() for side in SIDES for suffix in SUFFIXES)
    return ["all"] * whole + [split for split in SPLITS if (directory / split).is_dir()]


def side_file(directory: Path, side: str, split: str = "all") -> Path:
    """Return the file of ``forget`` or ``retain`` in one split (``all``, ``train``, ...); DataError if absent."""
    offered = splits(directory)
    if not offered:
        raise DataError(f"{directory} has no {_FILES}")
    if split not in offered:
        raise DataError(f"lume_split: {quote(str(split))} is not there; {directory} has: {', '.join(offered)}")
    folder = directory if split == "all" else directory / split
    return find_file(folder, side, str(folder / side))


def load_rows(directory: Path, split: str = "all") -> dict[str, list[Row]]:
    """Read both sides of a split, ``forget`` and ``retain``; DataError lists all faults, or rows on both sides."""
    return read_sides({side: side_file(directory, side, split) for side in SIDES}, f"{directory}, split {split}")


def read_sides(files: Mapping[str, Path], shown: str) -> dict[str, list[Row]]:
    """Read the files of both sides; a side without a file has no rows. ``shown`` names them in the message.

    Raises:
        DataError: lists all faults; if there are none, the rows that are on both sides.
    """
    rows: dict[str, list[Row]] = {side: [] for side in SIDES}
    problems: list[str] = []
    for side, path in files.items():
        found, faults = scan_rows(path)
        rows[side] = list(found.values())
        problems += place(str(path), faults)
    raise_problems(problems or check_sides(shown, rows["forget"], rows["retain"]))
    return rows


def load_mia(directory: Path) -> tuple[list[str], list[str]]:
    """Read the membership-inference documents, (members, non-members); DataError lists all faults."""
    folder = directory / "mia_data"
    if not folder.is_dir():
        raise DataError(
            f"{folder} is missing: membership inference needs member.jsonl and nonmember.jsonl there, "
            'one {"document": "<whole text>"} a line'
        )
    members, nonmembers, problems = scan_mia(folder)
    raise_problems([f"{directory}/{problem}" for problem in problems])
    return members, nonmembers


def mmlu_source(lume_mmlu_path: str | None = None, directory: Path | None = None) -> str:
    """Find MMLU: the argument (harness metadata), ``LUME_MMLU_PATH``, ``<data directory>/mmlu``, else the hub's id.

    Raises:
        DataError: a folder that was named does not exist.
    """
    named = _named("lume_mmlu_path", lume_mmlu_path, MMLU_VARIABLE)
    if named is None:
        local = directory / "mmlu" if directory is not None else None
        return str(local) if local is not None and local.is_dir() else MMLU_HUB_ID
    origin, folder = named
    if folder.as_posix() != MMLU_HUB_ID and not os.path.isdir(folder):
        raise DataError(f"{origin} names {folder}, which is neither a directory nor the hub's {MMLU_HUB_ID}")
    return str(folder)


def load_mmlu(source: str, only: Sequence[str] | None = None) -> dict[str, list[dict[str, object]]]:
    """Read the MMLU test questions of the subjects ``only`` (None: all) from a local folder, or the hub by its id.

    Returns:
        subject -> rows with ``question`` (str), ``choices`` (four str) and ``answer`` (0 to 3).

    Raises:
        DataError: the folder has faults (all are listed), lacks a subject, or the hub cannot be read.
    """
    there: dict[str, list[dict[str, object]]] = {subject: [] for subject in MMLU_SUBJECTS}
    if source != MMLU_HUB_ID:
        there, problems = scan_mmlu(Path(source))
        raise_problems(problems, f"MMLU in {source} cannot be used:")
    unknown = [name for name in only or [] if name not in there]
    if unknown:
        named = ", ".join(map(quote, unknown))
        raise DataError(f"lume_mmlu_subjects: MMLU in {source} has no subject {named}; it has: {', '.join(there)}")
    wanted = [name for name in there if only is None or name in only]
    return {name: _hub_subject(name) if source == MMLU_HUB_ID else there[name] for name in wanted}


def _named(option: str, value: object, variable: str) -> tuple[str, Path] | None:
    """Return (where the name came from, the path) from metadata or environment; empty counts as not given."""
    for origin, path in ((f"metadata {option}", value), (f"the variable {variable}", os.environ.get(variable))):
        if path:
            return origin, Path(os.path.expanduser(str(path)))
    return None


def _hub_subject(subject: str) -> list[dict[str, object]]:
    from datasets import load_dataset

    try:
        rows = load_dataset(MMLU_HUB_ID, subject, split="test", revision=MMLU_REVISION)
    except Exception as error:  # the error classes of the hub's client differ between its versions
        raise DataError(
            f"MMLU ({MMLU_HUB_ID}, subject {subject}) cannot be read from the hub: {first_line(error)}\n"
            f"Check the network, or name a local copy (<folder>/<subject>/test-*.parquet) in {MMLU_VARIABLE}."
        ) from error
    return [{field: row[field] for field in ("question", "choices", "answer")} for row in rows]
