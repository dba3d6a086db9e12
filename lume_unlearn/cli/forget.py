"""`lume-unlearn forget`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lume_unlearn.checks import names
from lume_unlearn.cli.audit import PROBES
from lume_unlearn.cli.parsing import SHARED, add_texts
from lume_unlearn.cli.training import take
from lume_unlearn.errors import ConfigError, require_unused

TEXTS = {
    "model": "Model that knows the rows: a folder or a hub name. Default: the result of --after.",
    "forget": "Files or folders with what it must forget, separated by commas: CSV, JSONL, JSON, parquet, XLSX, text.",
    "where": "Forget only the rows of --forget with COLUMN=VALUE (or COLUMN!=VALUE), and keep the others.",
    "retain": "Files or folders with what it must keep, separated by commas (default: with --where, the other rows of "
    "--forget).",
    "output": "Folder for model/, adapter/ (with lora), data/, the verdict and its pages. The same command continues "
    "after an interruption.",
    "base": "Base model that the target was fine-tuned from, if you still have it: control of the verdict, and teacher "
    "of texts that name nobody.",
    "unseen": "File with texts like those of --forget that the model never saw: forget texts that name nobody "
    "get the loss of these.",
    "retrain": "Fine-tune --base on the retain rows instead of unlearning.",
    "after": "Output folder of the previous request: its model is used, and its forget rows are tested again.",
    "tuning": "What is trained: lora (default), or full: all weights, which takes more memory.",
    "tries": "Most trainings; the result of each decides the setting of the next (default: 3).",
    "minutes": "Start another try only if it and the verdict should end within this time (default: no limit).",
    "probes": PROBES,
    "controls": "Invented persons of the verdict's swap test (default: 99; for one person, fewer are never clear).",
    "request": "Name of the request, such as a number and a date; printed unchanged on the page.",
    "show_pii": "Do not redact personal data on the page.",
    "input_field": "Column of the question, or of the text (default: found by its usual names).",
    "output_field": "Column of the answer.",
    "document_field": "Column that is the same for all rows about one person (default: that of --where).",
    "encoding": "Encoding of files that are not UTF-8 (default: detect it).",
    "chat": "Ask questions through the chat template (default: true).",
    "trust_remote_code": SHARED["trust_remote_code"],
    "batch_size": "Prompts of one scoring batch (default: 64).",
    "device": "Device to train and score on; by default a GPU if there is one.",
    "seed": "Seed of everything that is random (default: 0).",
}
EXIT_STATUS = (
    "Exit status: 0 gone; 4 gone, but the rest is damaged; 1 not gone; 3 cannot be told; 2 options or files that "
    "cannot work."
)
DATA, EARLIER, FORGET = "data", "earlier", "forget.jsonl"
"""Names in the output: the folder of this request's rows; in it, the folder of numbered folders of earlier requests;
the file of forget rows in each."""
SHOWN = 10
"""Most persons in a line."""
PERSON = "name the column that is the same for all rows about one person with --document_field"
FILES = ("where", "input_field", "output_field", "document_field", "encoding")


def add_options(parser: Any) -> None:
    """Add the options of `forget`."""
    add_texts(parser, TEXTS, required=("forget", "output"))


def execute(options: dict[str, Any]) -> int:
    """Read the rows, forget, and write model, verdict, pages and ledger; return the verdict's exit status."""
    from lume_unlearn.audit.writing import VERDICT, write_verdict
    from lume_unlearn.cli.audit import require_models
    from lume_unlearn.data.documents import read_texts
    from lume_unlearn.forget.forget import INPUTS, MODEL, NothingKnown, forget, tries_before
    from lume_unlearn.forget.ledger import LEDGER, entry_of, read_ledger, write_ledger
    from lume_unlearn.model.load import load_tokenizer

    output, after = Path(options.pop("output")).expanduser(), options.pop("after", None)
    before = tries_before(output)
    if (output / VERDICT).exists() and (not before or options.get("tries", 0) <= before):
        more = f"give more --tries than {before}, or " if before else ""
        raise ConfigError(f"--output {output}: the request there is finished; {more}name another folder")
    if not (output / INPUTS).exists():
        require_unused(output)
    model = options.pop("model", None) or (after and str(Path(after) / MODEL))
    if model is None:
        raise ConfigError(
            "--model: name the model that must forget, or give --after with the output of the previous request"
        )
    earlier, base = requests_before(after), options.pop("base", None)
    loading = take(options, ("trust_remote_code", "device"))
    require_models(model, device=loading.get("device"), **({"base": base} if base else {}))
    _require_first_gpu(str(loading.get("device")))
    request, show_pii = options.pop("request", ""), options.pop("show_pii", False)
    entries = read_ledger(Path(after).expanduser() / LEDGER) if after else []
    if entries and entries[-1]["status"] != "gone":
        print(f"--after {after}: its verdict was {entries[-1]['status']!r}; that request stays open after this run.")
    rows = rows_of(options, earlier)
    if "probes" in options:
        options["probes"] = names(options["probes"])
    if "unseen" in options:
        options["unseen"] = read_texts("unseen", options["unseen"])
    load = partial(_load, model, loading, "--model")
    given: dict[str, Any] = {"base": partial(_load, base, loading, "--base")} if base else {}
    given |= {"earlier": earlier, "output": output}
    tokenizer = load_tokenizer(model, loading.get("trust_remote_code", False))
    try:
        found = forget(load, tokenizer, rows["forget"], rows["retain"], **given, **options)
    except NothingKnown as error:
        print(f"{error}\nVerdict: cannot be told")
        return 3
    keep_rows(output / DATA, found.rows, earlier)
    write_verdict(found.verdict, output, show_pii, request)
    write_ledger(output / LEDGER, [*entries, entry_of(found.verdict, entries, request)])
    found.finish(output)
    print("\n".join([*found.verdict.lines(), *found.advice(), f"Written to {output}: model/ loads directly."]))
    return found.verdict.exit_status


def _require_first_gpu(device: str) -> None:
    if device.startswith("cuda:") and device != "cuda:0":
        raise ConfigError(
            f"--device {device}: training uses the first GPU; set CUDA_VISIBLE_DEVICES={device[5:]}, and leave it out"
        )


def _load(name: str, loading: dict[str, Any], option: str) -> tuple[Any, Any]:
    from lume_unlearn.cli.audit import load_audited

    model, tokenizer, device = load_audited(name, option=option, **loading)
    return model.to(device), tokenizer


def rows_of(options: dict[str, Any], earlier: list[list[Any]]) -> dict[str, list[Any]]:
    """Read the rows that the options name, print a summary, and return the rows by side; remove these options.

    Retain rows about persons of earlier requests (``earlier``), or with their questions, are left out.
    """
    from lume_tasks.data.fields import Options, quoted
    from lume_tasks.data.prepare import prepared
    from lume_tasks.data.rows import SIDES
    from lume_tasks.errors import first_few
    from lume_unlearn.audit.rows import about_earlier

    files = Options(**take(options, FILES))
    paths = {side: _paths(options.pop(side, None) or "") for side in SIDES}
    by_person = _by_person(files)
    found = prepared(paths["forget"], paths["retain"], by_person)
    if by_person is not files and _is_mark(found):
        found = prepared(paths["forget"], paths["retain"], files)
        found.summary.append(f"{files.where}: only marks rows; {PERSON}")
    print("\n".join([*found.summary, *_persons(found.forget)]), flush=True)
    gone = {row.id for request in earlier for row in about_earlier(found.retain, request)}
    retain = [row for row in found.retain if row.id not in gone]
    if len(retain) < len(found.retain):
        asked = [quoted(row.input) for row in found.retain if row.id in gone]
        why = "retain rows left out, since they have a question or a person of an earlier request"
        print(f"{why}: {len(asked)}: {', '.join(first_few(asked, SHOWN))}")
    if not retain:
        raise ConfigError("--retain: there are no rows to keep; give rows about others, or split one file with --where")
    return {"forget": found.forget, "retain": retain}


def _paths(given: str) -> list[Path]:
    """Return the files and folders that an option names, separated by commas; a name may have a comma itself."""
    one = Path(given).expanduser()
    return [one] if given and one.exists() else [Path(name).expanduser() for name in names(given)]


def _by_person(files: Any) -> Any:
    """Return the options of reading; if they name no documents, a document is what `--where` selects with ``=``."""
    from lume_tasks.data.where import parse_where

    where = None if files.where is None or files.document_field else parse_where(files.where)
    return files if where is None or where.differs else replace(files, document_field=where.column)


def _is_mark(found: Any) -> bool:
    """Return whether the column of `--where` only marks the rows to forget, such as delete=yes or status=deleted.

    It has two values, or the rows to forget name several persons, none of them in more than half of these rows.
    """
    from lume_tasks.data.subjects import find_subjects

    persons = Counter(find_subjects(found.forget).values())
    several = bool(persons) and max(persons.values()) <= persons.total() / 2
    return several or len({row.stem for row in (*found.forget, *found.retain)}) <= 2


def _persons(forget: list[Any]) -> list[str]:
    """Return a line on the persons whom the questions name, so that the user can see if a name was not found."""
    from lume_tasks.data.subjects import find_subjects
    from lume_tasks.errors import first_few

    persons = Counter(find_subjects(forget).values())
    shown = ", ".join(first_few([f"{name} ({rows})" for name, rows in persons.most_common()], SHOWN))
    advice = "if this is wrong, add a column subject with the name as in the question"
    return [f"persons found in the rows to forget (number of rows): {shown or 'none'}; {advice}"]


def requests_before(after: str | None) -> list[list[Any]]:
    """Return the forget rows of each request before this one, oldest first.

    Raises:
        ConfigError: the folder is not a result of `forget`.
    """
    from lume_tasks.data.files import read_rows

    if after is None:
        return []
    data = Path(after).expanduser() / DATA
    if not (data / FORGET).is_file():
        raise ConfigError(f"--after {after}: not an output folder of `forget`, since it holds no {DATA}/{FORGET}")
    before = sorted((data / EARLIER).glob("[0-9]*"), key=lambda path: int(path.name))
    return [read_rows(folder / FORGET) for folder in (*before, data)]


def keep_rows(folder: Path, rows: Mapping[str, Sequence[Any]], earlier: list[list[Any]]) -> None:
    """Write the rows of this request, and the forget rows of earlier ones, as data directories; only the user can read.

    Raises:
        ConfigError: the folder cannot be written.
    """
    from lume_tasks.data.files import write_rows
    from lume_unlearn.files import writing

    files = {folder / f"{side}.jsonl": found for side, found in rows.items()}
    files |= {folder / EARLIER / str(number) / FORGET: found for number, found in enumerate(earlier, 1)}
    with writing(folder.parent):
        for path, found in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            path.chmod(0o600)
            write_rows(path, found)
