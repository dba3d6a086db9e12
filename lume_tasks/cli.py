"""The command ``lume-tasks``."""

import argparse
import os
import sys
from pathlib import Path

from lume_tasks.errors import DataError, first_few, visible
from lume_tasks.paths import task_dir


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
        text, status = _run(args)
        print(visible(text), flush=True)
    except BrokenPipeError:  # `lume-tasks check DIR | head` closes the pipe early
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (DataError, OSError) as error:
        print(visible(f"lume-tasks: {error}"), file=sys.stderr)
        return 1
    return status


def _run(args: argparse.Namespace) -> tuple[str, int]:
    """Return the text to print and the exit status; import what the command needs only now."""
    if args.command == "path":
        return str(task_dir()), 0
    if args.command == "fetch":
        from lume_tasks.data.fetch import fetch

        return str(fetch()), 0
    from lume_tasks.data.checks import check_dir

    if not args.dir.is_dir():
        raise DataError(f"{args.dir} is not a directory")
    problems = check_dir(args.dir)
    if problems:
        return "\n".join([*first_few(problems), f"{len(problems)} problems"]), 1
    return _summary(args.dir), 0


def _summary(directory: Path) -> str:
    """Count the rows of a valid data directory by split, task, side and kind."""
    from lume_tasks.data.locate import load_mia, load_mmlu, load_rows, splits
    from lume_tasks.data.rows import SIDES

    lines = [f"{directory}: no problems"]
    for split in splits(directory):
        rows = load_rows(directory, split)
        for task in sorted({row.task for side in SIDES for row in rows[side]}):
            counts = [
                f"{sum(row.task == task and row.kind == kind for row in rows[side]):>5} {side} {kind}"
                for side in SIDES
                for kind in ("sc", "qa")
            ]
            lines.append(f"{split:<12}{task}" + "".join(counts))
    if (directory / "mia_data").is_dir():
        members, nonmembers = load_mia(directory)
        lines.append(f"mia_data: {len(members)} members, {len(nonmembers)} non-members")
    if (directory / "mmlu").is_dir():
        subjects = load_mmlu(str(directory / "mmlu"))
        lines.append(f"mmlu: {len(subjects)} subjects, {sum(map(len, subjects.values()))} questions")
    return "\n".join(lines)
