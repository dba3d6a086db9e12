"""Check a whole data directory and list everything wrong with it."""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from lume_tasks.data.files import Fault, find_file, place, scan, scan_documents, scan_rows
from lume_tasks.data.rows import SIDES, SPLITS, Row, text_key
from lume_tasks.errors import DataError, quote


def check_dir(directory: Path) -> list[str]:
    """List every problem of a data directory, each as ``<file>:<line>: <what is wrong>`` with the file relative to it.

    Checks forget and retain, the split folders, ``mia_data/`` and ``mmlu/``. An empty list means no problems.
    """
    problems: list[str] = []
    whole: dict[tuple[str, str], Row] = {}  # by side and id
    seen: dict[str, str] = {}  # id -> its split
    for folder in ("", *(f"{split}/" for split in SPLITS if (directory / split).exists())):
        sides: dict[str, list[Row]] = {}
        for side in SIDES:
            try:
                path = find_file(directory / folder, side, f"{folder}{side}")
            except DataError as error:
                problems.append(str(error))
                continue
            rows, faults = scan_rows(path)
            sides[side] = list(rows.values())
            if folder:
                faults += _not_in_whole(rows, whole, side)
                repeated = {line: row.id for line, row in rows.items() if row.id in seen}
                faults += [(line, f"id {quote(name)} is in {seen[name]} too") for line, name in repeated.items()]
            problems += place(f"{folder}{path.name}", faults)
        if len(sides) == len(SIDES):
            problems += check_sides(f"{folder}forget and retain", *sides.values())
        for side, found in sides.items():
            if folder:
                seen |= {row.id: folder for row in found}
            else:
                whole |= {(side, row.id): row for row in found}
    if (directory / "mia_data").exists():
        problems += scan_mia(directory / "mia_data")[2]
    if (directory / "mmlu").exists():
        problems += scan_mmlu(directory / "mmlu")[1]
    return problems


def _not_in_whole(part: dict[int, Row], whole: dict[tuple[str, str], Row], side: str) -> Iterator[Fault]:
    if not any(of == side for of, _ in whole):  # the whole file is missing, which is reported separately
        return
    for line, row in part.items():
        other = whole.get((side, row.id))
        if other is None:
            yield line, f"id {quote(row.id)} is not among the valid rows of the whole {side} file"
        elif row != other:
            yield line, f"the row with id {quote(row.id)} differs from the row with this id in the whole {side} file"


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
    """Read ``mia_data``; return members, non-members and all problems. Use the documents only without problems."""
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
    for path in sorted(folder.glob("*/test-*.parquet")):
        subject = path.parent.name
        if subject not in ("all", "auxiliary_train"):  # beside the subjects on the hub
            questions, faults = scan(path, ("question", "choices", "answer"), question_problems)
            subjects.setdefault(subject, []).extend(questions.values())
            problems += place(f"mmlu/{subject}/{path.name}", faults)
    if not subjects:
        problems.append("mmlu: holds no subject folder with a test-*.parquet")
    return subjects, problems


def question_problems(obj: dict[str, object]) -> list[str]:
    """Return one line if this is not an MMLU question."""
    choices = obj.get("choices")
    answered = isinstance(choices, list) and len(choices) == 4 and obj.get("answer") in range(4)
    whole = answered and isinstance(obj.get("question"), str)
    return [] if whole else ["needs a question, four choices, and an answer from 0 to 3"]
