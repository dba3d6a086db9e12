"""Check a whole data directory and list everything wrong with it."""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from lume_tasks.data.files import Fault, find_file, place, scan, scan_documents, scan_rows
from lume_tasks.data.rows import SIDES, SPLITS, Row, text_key, text_problems
from lume_tasks.errors import DataError, quote

Rows = dict[int, Row]  # by line number


def check_dir(directory: Path) -> list[str]:
    """List every problem of a data directory, each as ``<file>:<line>: <what is wrong>`` with the file relative to it.

    Checks forget and retain, the split folders, ``mia_data/`` and ``mmlu/``. An empty list means no problems.
    """
    whole, problems = _check_folder(directory, "", {}, {})
    seen: dict[str, str] = {}
    for split in SPLITS:
        if (directory / split).exists():
            problems += _check_folder(directory / split, f"{split}/", whole, seen)[1]
    if (directory / "mia_data").exists():
        problems += scan_mia(directory / "mia_data")[2]
    if (directory / "mmlu").exists():
        problems += scan_mmlu(directory / "mmlu")[1]
    return problems


def _check_folder(
    folder: Path, prefix: str, whole: dict[str, Rows], seen: dict[str, str]
) -> tuple[dict[str, Rows], list[str]]:
    """Check the two sides in one folder, shown as ``prefix``, and return their valid rows and all problems.

    For a split, ``whole`` holds the rows of the whole files by side, and ``seen`` the split of each id of the splits
    checked before; this function adds those of ``folder``.
    """
    sides: dict[str, Rows] = {}
    problems: list[str] = []
    for side in SIDES:
        try:
            path = find_file(folder, side, f"{prefix}{side}")
        except DataError as error:
            problems.append(str(error))
            continue
        sides[side], faults = scan_rows(path)
        if side in whole:
            faults += _not_in_whole(sides[side], whole[side], side)
        for line, row in sides[side].items():
            if row.id in seen:
                faults.append((line, f"id {quote(row.id)} is in {seen[row.id]} too"))
        problems += place(f"{prefix}{path.name}", faults)
    if len(sides) == len(SIDES):
        problems += check_sides(f"{prefix}forget and retain", *(rows.values() for rows in sides.values()))
    seen.update((row.id, prefix) for rows in sides.values() for row in rows.values())
    return sides, problems


def _not_in_whole(part: Rows, whole: Rows, side: str) -> Iterator[Fault]:
    by_id = {row.id: row for row in whole.values()}
    for line, row in part.items():
        other = by_id.get(row.id)
        if other is None:
            yield line, f"id {quote(row.id)} is not among the valid rows of the whole {side} file"
        elif row != other:
            yield line, f"the row with id {quote(row.id)} has other fields in the whole {side} file"


def check_sides(shown: str, forget: Iterable[Row], retain: Collection[Row]) -> list[str]:
    """List what is in both forget and retain: the same text or the same id. ``shown`` is put before each problem."""
    texts = {text_key(row): row.id for row in retain}
    ids = {row.id for row in retain}
    problems = []
    for row in forget:
        twin = texts.get(text_key(row))
        if twin is not None:
            problems.append(f"{shown}: forget row {quote(row.id)} is in retain too, as {quote(twin)}")
        if row.id in ids and twin != row.id:
            problems.append(f"{shown}: id {quote(row.id)} is used in forget and in retain")
    return problems


def scan_mia(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Read ``mia_data`` and return members, non-members and every problem; use the documents only if there is none."""
    members: dict[str, int] = {}  # stripped document -> line
    documents: dict[str, list[str]] = {"member": [], "nonmember": []}
    problems: list[str] = []
    for stem in documents:
        try:
            path = find_file(folder, stem, f"mia_data/{stem}")
        except DataError as error:
            problems.append(str(error))
            continue
        found, faults = scan_documents(path)
        documents[stem] = list(found.values())
        for line, document in found.items():
            if stem == "member":
                members[document.strip()] = line
            elif document.strip() in members:
                member_line = members[document.strip()]
                faults.append((line, f"document is both non-member and member (line {member_line} of the members)"))
        problems += place(f"mia_data/{path.name}", faults)
    return documents["member"], documents["nonmember"], problems


def scan_mmlu(folder: Path) -> tuple[dict[str, list[dict[str, object]]], list[str]]:
    """Read the test questions of a local MMLU in the hub's layout, ``<subject>/test-*.parquet``.

    Returns:
        subject -> rows with ``question`` (str), ``choices`` (four str) and ``answer`` (0 to 3), and every problem.
    """
    subjects: dict[str, list[dict[str, object]]] = {}
    problems: list[str] = []
    collections = ("all", "auxiliary_train")  # beside the subjects on the hub
    for subject in sorted(folder.iterdir()):
        if not subject.is_dir() or subject.name in collections or subject.name.startswith("."):
            continue
        subjects[subject.name] = []
        files = sorted(subject.glob("test-*.parquet"))
        if not files:
            problems.append(f"mmlu/{subject.name}: holds no test-*.parquet")
        for path in files:
            questions, faults = scan(path, ("question", "choices", "answer"), question_problems)
            subjects[subject.name] += questions.values()
            problems += place(f"mmlu/{subject.name}/{path.name}", faults)
    if not subjects:
        problems.append("mmlu: holds no subject folder with a test-*.parquet")
    return subjects, problems


def question_problems(obj: dict[str, object]) -> list[str]:
    """List everything wrong with one MMLU question."""
    problems = text_problems(obj, "question")
    choices, answer = obj.get("choices"), obj.get("answer")
    if not isinstance(choices, list) or len(choices) != 4 or not all(isinstance(choice, str) for choice in choices):
        problems.append('field "choices" is not a list of four strings')
    if type(answer) is not int or not 0 <= answer <= 3:
        problems.append('field "answer" is not a whole number from 0 to 3')
    return problems
