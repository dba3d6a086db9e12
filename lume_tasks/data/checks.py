"""Everything that can be wrong with a whole data directory, found in one pass."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lume_tasks.data.files import Fault, Faults, find_file, place, scan, scan_documents, scan_rows
from lume_tasks.data.rows import FIELDS, SIDES, SPLITS, TEXT, Row, text_key, text_problem
from lume_tasks.errors import DataError, describe, quote

MIA_FILES = ("member", "nonmember")
MMLU_FIELDS = {"question": TEXT, "choices": f"lists of {TEXT}", "answer": "whole numbers"}

Rows = dict[int, Row]


def check_dir(directory: Path) -> list[str]:
    """List every problem of a data directory, each as ``<file>:<line>: <what is wrong>`` with the file relative to it.

    Looks at forget and retain, the split folders, ``mia_data/`` and ``mmlu/``; an empty list means that all is well.
    """
    if not directory.is_dir():
        return [f"{directory}: is not a directory"]
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


def check_sides(shown: str, forget: Iterable[Row], retain: Iterable[Row]) -> list[str]:
    """List what stands in both forget and retain: the same text (input and output, stripped) or the same id.

    ``shown`` is what each line begins with.
    """
    faults = Faults()
    faults.add((0, problem) for problem in _in_both(forget, list(retain)))
    return place(shown, faults)


def _in_both(forget: Iterable[Row], retain: Sequence[Row]) -> Iterator[str]:
    retain_texts = {text_key(row): row.id for row in retain}
    retain_ids = {row.id for row in retain}
    for row in forget:
        twin = retain_texts.get(text_key(row))
        if twin is not None:
            yield f"forget row {quote(row.id)} also stands in retain, as {quote(twin)}"
        if row.id in retain_ids and twin != row.id:
            yield f"id {quote(row.id)} is used in forget and in retain"


def scan_mia(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Read ``mia_data``: members, non-members and every problem of the two files (none: both lists are complete)."""
    found: dict[str, dict[int, str]] = {}
    problems: list[str] = []
    for stem in MIA_FILES:
        try:
            path = find_file(folder, stem, f"mia_data/{stem}")
        except DataError as error:
            problems.append(str(error))
            continue
        found[stem], faults = scan_documents(path)
        if stem == "nonmember":
            faults.add(_also_members(found.get("member", {}), found["nonmember"]))
        problems += place(f"mia_data/{path.name}", faults)
    return list(found.get("member", {}).values()), list(found.get("nonmember", {}).values()), problems


def scan_mmlu(folder: Path) -> tuple[dict[str, list[dict[str, object]]], list[str]]:
    """Read the test questions of a local MMLU in the hub's layout, ``<subject>/test-*.parquet``.

    Returns:
        subject -> rows with ``question`` (str), ``choices`` (four str) and ``answer`` (0 to 3), and every problem.
    """
    if not folder.is_dir():
        return {}, ["mmlu: is not a directory"]
    subjects: dict[str, list[dict[str, object]]] = {}
    problems: list[str] = []
    for subject in _subject_folders(folder):
        subjects[subject.name] = []
        files = sorted(subject.glob("test-*.parquet"))
        if not files:
            problems.append(f"mmlu/{subject.name}: holds no test-*.parquet")
        for path in files:
            questions, faults = scan(path, MMLU_FIELDS, question_problems)
            subjects[subject.name] += questions.values()
            problems += place(f"mmlu/{subject.name}/{path.name}", faults)
    if not subjects:
        problems.append("mmlu: holds no subject folder with a test-*.parquet")
    return subjects, problems


def question_problems(obj: dict[str, object]) -> list[str]:
    """List everything wrong with one MMLU question."""
    problems = [text_problem(obj, "question")]
    choices, answer = obj.get("choices"), obj.get("answer")
    if not isinstance(choices, list) or len(choices) != 4 or not all(isinstance(choice, str) for choice in choices):
        problems.append(f'field "choices" is not a list of four strings{_given(obj, "choices")}')
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer <= 3:
        problems.append(f'field "answer" is not a whole number from 0 to 3{_given(obj, "answer")}')
    return [problem for problem in problems if problem]


def _given(obj: dict[str, object], field: str) -> str:
    value = obj.get(field)
    if field not in obj:
        return " (it is missing)"
    if isinstance(value, list):
        return f" (it has {len(value)})"
    return f" (it is {value if type(value) is int else describe(value)})"


def _check_folder(
    folder: Path, prefix: str, whole: dict[str, Rows], seen: dict[str, str]
) -> tuple[dict[str, Rows], list[str]]:
    """Check the two sides in one folder.

    ``whole`` maps a side to the rows that those of a split have to be among, ``seen`` the ids of the splits before this
    one to their split; this one's are added.
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
            faults.add(_strangers(sides[side], whole[side], side))
        faults.add(_seen_before(sides[side], seen))
        problems += place(f"{prefix}{path.name}", faults)
    if len(sides) == len(SIDES):
        problems += check_sides(f"{prefix}forget and retain", *(rows.values() for rows in sides.values()))
    seen.update((row.id, prefix) for rows in sides.values() for row in rows.values())
    return sides, problems


def _seen_before(part: Rows, seen: dict[str, str]) -> Iterator[Fault]:
    for line, row in part.items():
        if row.id in seen:
            yield line, f"id {quote(row.id)} is in {seen[row.id]} too"


def _strangers(part: Rows, whole: Rows, side: str) -> Iterator[Fault]:
    by_id = {row.id: row for row in whole.values()}
    for line, row in part.items():
        if row.id not in by_id:
            yield line, f"id {quote(row.id)} is not among the valid rows of the whole {side} file"
        elif row != by_id[row.id]:
            other = by_id[row.id]
            differing = " and ".join(name for name in FIELDS if getattr(row, name) != getattr(other, name))
            yield line, f"id {quote(row.id)} has another {differing} in the whole {side} file"


def _also_members(members: dict[int, str], nonmembers: dict[int, str]) -> Iterator[Fault]:
    known = {document.strip(): line for line, document in members.items()}
    for line, document in nonmembers.items():
        if document.strip() in known:
            yield line, f"document is both non-member and member (line {known[document.strip()]} of the members)"


def _subject_folders(folder: Path) -> list[Path]:
    aside = ("all", "auxiliary_train")  # the hub's collections beside the subjects
    return sorted(p for p in folder.iterdir() if p.is_dir() and p.name not in aside and not p.name.startswith("."))
