"""The command ``lume-tasks``."""

import argparse
import os
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Run ``lume-tasks path``, ``fetch`` or ``check DIR``; return the exit status (0 fine, 1 problems)."""
    parser = argparse.ArgumentParser(prog="lume-tasks", description="LUME for lm-evaluation-harness: tasks and data.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("path", help="print the folder of the task YAMLs, for --include_path")
    commands.add_parser("fetch", help="download and check the published data, print the folder")
    check = commands.add_parser("check", help="validate a data directory")
    check.add_argument("dir", type=Path, metavar="DIR")
    args = parser.parse_args(argv)
    try:
        return _run(args)
    except BrokenPipeError:  # `lume-tasks check DIR | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(error)


def _run(args: argparse.Namespace) -> int:
    if args.command == "path":  # answers at once: nothing else is imported
        from lume_tasks.paths import task_dir

        _say(str(task_dir()))
        return 0
    from lume_tasks.errors import DataError

    try:
        return _fetch() if args.command == "fetch" else _check(args.dir)
    except DataError as error:
        return _fail(error)


def _fail(error: Exception) -> int:
    from lume_tasks.errors import visible

    print(f"lume-tasks: {visible(str(error))}", file=sys.stderr)
    return 1


def _fetch() -> int:
    from lume_tasks.data.fetch import fetch

    _say(str(fetch()))
    return 0


def _check(directory: Path) -> int:
    from lume_tasks.data.checks import check_dir
    from lume_tasks.errors import DataError, visible

    if not directory.is_dir():
        raise DataError(f"{directory} is not a directory")
    problems = check_dir(directory)
    _say(visible(_grouped(problems) if problems else _summary(directory)))
    return 1 if problems else 0


def _grouped(problems: list[str]) -> str:
    """Put the problems of each file under its name, and a count below."""
    groups: dict[str, list[str]] = {}
    for problem in problems:
        name, _, rest = problem.partition(":")
        groups.setdefault(name, []).append(rest.strip())
    blocks = ["\n".join([name, *(f"  {line}" for line in lines)]) for name, lines in groups.items()]
    count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
    return "\n".join([*blocks, "", count])


def _summary(directory: Path) -> str:
    """Count the rows of a sound data directory by split, task, side and kind."""
    from lume_tasks.data.checks import scan_mmlu
    from lume_tasks.data.locate import load_mia, load_rows, splits
    from lume_tasks.data.rows import TASKS

    columns = [(side, kind) for side in ("forget", "retain") for kind in ("sc", "qa")]
    table = [["split", "task", *(f"{side} {kind}" for side, kind in columns)]]
    for split in splits(directory):
        rows = load_rows(directory, split)
        for task in TASKS:
            counts = [sum(r.task == task and r.kind == kind for r in rows[side]) for side, kind in columns]
            table.append([split, task, *map(str, counts)])
    lines = ["".join(f"{cell:<12}" if i < 2 else f"{cell:>11}" for i, cell in enumerate(line)) for line in table]
    if (directory / "mia_data").is_dir():
        members, nonmembers = load_mia(directory)
        lines.append(f"mia_data: {len(members)} members, {len(nonmembers)} non-members")
    if (directory / "mmlu").is_dir():
        subjects = scan_mmlu(directory / "mmlu")[0]
        lines.append(f"mmlu: {len(subjects)} subjects, {sum(map(len, subjects.values()))} questions")
    return "\n".join([f"{directory}: no problems", *lines])


def _say(text: str) -> None:
    """Print, with escapes for what the terminal's encoding cannot show."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()
