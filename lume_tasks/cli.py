"""The command ``lume-tasks``."""

import argparse
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from lume_tasks.errors import DataError, counted, first_few, print_any_letter, raise_problems, visible
from lume_tasks.paths import task_dir


def main(argv: list[str] | None = None) -> int:
    """Run ``lume-tasks path``, ``fetch``, ``check`` or ``prepare``; return the exit status.

    0: success. 1: `check` found problems, or the reader closed the pipe. 2: invalid options or files; the message goes
    to stderr.
    """
    parser = argparse.ArgumentParser(prog="lume-tasks", description="LUME for lm-evaluation-harness: tasks and data.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("path", help="print the folder of the task YAMLs, for --include_path")
    commands.add_parser("fetch", help="download and check the published data, print the folder")
    about = "List all that is wrong with a data directory, or count its rows. Exit status: 0 valid; 1 invalid."
    check = commands.add_parser("check", help="validate a data directory", description=about)
    check.add_argument("dir", type=Path, metavar="DIR", help="its layout is in the README, section Data")
    _add_prepare(commands)
    args = parser.parse_args(argv)
    try:
        text, status = _run(args)
        print_any_letter()
        print(visible(text), flush=True)
    except BrokenPipeError:  # `lume-tasks check DIR | head` closes the pipe early
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (DataError, OSError) as error:
        print(visible(f"lume-tasks: {error}"), file=sys.stderr)
        return 2
    return status


def _add_prepare(commands: Any) -> None:
    about = "Make forget and retain rows from CSV, JSONL, JSON, parquet, XLSX and text files, or folders of them."
    text = (
        f"{about} Fields are found by name: question and answer, input and output, prompt and completion or response, "
        "instruction, input and output, messages or conversations (a chat), or text. Each question of a chat is asked "
        "after the turns before it and, if there are any, also without them. A text is cut at sentence ends, a long "
        "one into several rows, and the model must complete it. Each .txt and .md file is one text. The summary lists "
        "all data that is left out. An error message names the line (in .json and parquet files: the number of the "
        "row)."
    )
    parser = commands.add_parser("prepare", help="make forget and retain rows from your own files", description=text)
    files = {"type": Path, "nargs": "+", "metavar": "FILE"}
    parser.add_argument("--forget", required=True, **files, help="files or folders with what the model must forget")
    parser.add_argument(
        "--retain",
        default=[],
        **files,
        help="files or folders with what the model must keep; or `generate`: --model generates texts; those that share "
        "five consecutive words with a forget row are left out",
    )
    parser.add_argument("--model", metavar="NAME", help="model that generates retain rows")
    parser.add_argument("--samples", type=int, default=64, metavar="N", help="rows to generate (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the generated rows (%(default)s)")
    similar = "file of names similar to those to forget, one a line; --model writes a row about each"
    parser.add_argument("--neighbours", type=Path, metavar="FILE", help=similar)
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="output folder; it must not hold rows yet"
    )
    parser.add_argument(
        "--input_field", metavar="NAME", help="field of the question, or of the text if there is no --output_field"
    )
    parser.add_argument("--output_field", metavar="NAME", help="field of the answer; needs --input_field")
    parser.add_argument(
        "--document_field", metavar="NAME", help="rows with equal values here are one document (document)"
    )
    parser.add_argument(
        "--where",
        metavar="COLUMN=VALUE",
        help="forget the rows, chats or objects of --forget with this value in this column, and retain the others "
        "(COLUMN!=VALUE: forget those with another value); metadata.customer=77 looks into nested objects",
    )
    parser.add_argument(
        "--encoding", metavar="NAME", help="encoding of files that are not UTF-8, such as cp1252 (default: detect it)"
    )
    parser.add_argument("--label", default="own", help="task label of rows without a field task (%(default)s)")


def _run(args: argparse.Namespace) -> tuple[str, int]:
    """Run one command and return the text to print and the exit status; each command imports only what it needs."""
    if args.command == "path":
        return str(task_dir()), 0
    if args.command == "fetch":
        from lume_tasks.data.fetch import fetch

        return str(fetch()), 0
    if args.command == "prepare":
        return _prepare(args), 0
    from lume_tasks.data.checks import check_dir

    if not args.dir.is_dir():
        raise DataError(f"{args.dir} is not a directory")
    problems = check_dir(args.dir)
    if problems:
        return "\n".join([*first_few(problems), counted(len(problems), "problem")]), 1
    return _summary(args.dir), 0


def _prepare(args: argparse.Namespace) -> str:
    from lume_tasks.data.fields import Options
    from lume_tasks.data.prepare import prepare, read_texts

    if args.output_field and not args.input_field:
        raise DataError("--output_field: needs the field of the question; add --input_field")
    options = Options(args.input_field, args.output_field, args.document_field, args.label, args.where, args.encoding)
    retain = args.retain
    if [str(path) for path in retain] == ["generate"]:
        from lume_tasks.models.generate import write_generated

        if args.model is None:
            raise DataError("--retain generate: needs --model, which generates the rows")
        names = [] if args.neighbours is None else _neighbours(args.neighbours, args.encoding)
        retain = [args.output / "generated.jsonl"]
        if retain[0].exists():
            raise DataError(f"{retain[0]}: exists already: name another --output folder, or give this file to --retain")
        write_generated(args.model, read_texts(args.forget, options), names, args.samples, args.seed, retain[0])
    elif args.model or args.neighbours:
        raise DataError("--model, --neighbours: only with --retain generate")
    return prepare(args.forget, retain, args.output, options)


def _neighbours(path: Path, encoding: str | None) -> list[str]:
    """Read the names of ``--neighbours``, a line each, in any encoding that `prepare` reads."""
    from lume_tasks.data.encodings import decoded
    from lume_tasks.data.files import place, unreadable

    try:
        text, _, faults = decoded(path.read_bytes(), encoding)
    except OSError as error:
        text, faults = "", [unreadable(error)]
    raise_problems(place(f"--neighbours {path}", faults))
    return [name.strip() for name in text.split("\n") if name.strip()]


def _summary(directory: Path) -> str:
    """Count the rows of a valid data directory by split, task, side and kind."""
    from lume_tasks.data.locate import load_mia, load_mmlu, load_rows, splits
    from lume_tasks.data.rows import KINDS, SIDES

    lines = [f"{directory}: no problems"]
    for split in splits(directory):
        sides = load_rows(directory, split)
        found = Counter((row.task, side, row.kind) for side, rows in sides.items() for row in rows)
        for task in sorted({task for task, _, _ in found}):
            counts = [f"{found[task, side, kind]:>5} {side} {kind}" for side in SIDES for kind in KINDS]
            lines.append(f"{split:<12}{task}" + "".join(counts))
    if (directory / "mia_data").is_dir():
        members, nonmembers = load_mia(directory)
        lines.append(f"mia_data: {len(members)} members, {len(nonmembers)} non-members")
    if (directory / "mmlu").is_dir():
        subjects = load_mmlu(str(directory / "mmlu"))
        lines.append(f"mmlu: {len(subjects)} subjects, {sum(map(len, subjects.values()))} questions")
    return "\n".join(lines)
