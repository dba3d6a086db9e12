"""Plausible but untrue answers to the forget rows, for `dpo` and `altpo`: their file, and the command that makes it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

import torch
from tqdm import tqdm

from lume_tasks.data import locate
from lume_tasks.data.files import Fault, place, read_rows, scan
from lume_tasks.data.rows import SPLITS, Row, text_problem
from lume_tasks.errors import DataError, describe, first_few, quote
from lume_unlearn.config import ConfigError, named_twice
from lume_unlearn.data.sources import named_directory, named_file
from lume_unlearn.evaluation.sampling import SHOWN, bare, sample_alternatives
from lume_unlearn.model import load

FIELDS = ("id", "alternative")


@dataclass(frozen=True)
class AlternativesConfig:
    """Options of `lume-unlearn alternatives`.

    Attributes:
        model: Model before unlearning: a folder or a hub name.
        output: File to write (.jsonl), one alternative a line.
        data: Data directory with the forget rows; else LUME_DATA_DIR, else the published LUME.
        split: Rows to use: all, train, validation or test.
        forget: File or folder with forget rows (jsonl or parquet), instead of --data.
        samples: Alternatives of each row.
        temperature: Temperature of the sampling, as transformers' generate takes it.
        max_new_tokens: Most tokens of one alternative.
        batch_size: Alternatives sampled at the same time; another number gives other samples.
        seed: Seed of the sampling.
        trust_remote_code: Run code that a hub model brings along.
    """

    model: str
    output: str
    data: str | None = None
    split: str = "all"
    forget: str | None = None
    samples: int = 5
    temperature: float = 1.0
    max_new_tokens: int = 200
    batch_size: int = 16
    seed: int = 0
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked before anything is loaded.

        Raises:
            ConfigError: names every option that is wrong.
        """
        faults = [
            f"--{name} {getattr(self, name)}: must be above 0"
            for name in ("samples", "temperature", "max_new_tokens", "batch_size")
            if not 0 < getattr(self, name) < inf
        ]
        if self.seed < 0:
            faults.append(f"--seed {self.seed}: must not be negative")
        if self.split not in (splits := ("all", *SPLITS)):
            faults.append(f"--split {self.split!r}: choose one of {', '.join(splits)}")
        if Path(self.output).suffix != ".jsonl":
            faults.append(f"--output {self.output}: name a file that ends in .jsonl")
        if faults := faults + named_twice(self.forget, self.data, self.split):
            raise ConfigError("\n".join(faults))


def read_alternatives(path: Path, rows: Sequence[Row]) -> dict[str, list[str]]:
    """Read alternatives of forget rows: JSONL, ``{"id": <of a row>, "alternative": <text>}`` a line.

    Returns:
        row id to its alternatives (one or more), both in the order of the file, texts as they stand there.

    Raises:
        DataError: lists what is wrong with the file (ten faults at most, with their lines): also an alternative that
            equals its row's output (see `sampling.bare`), and rows without any.
    """
    objects, faults = scan(path, FIELDS, _line_problems)
    by_id = {row.id: row for row in rows}
    found: dict[str, list[str]] = {}
    for line, obj in objects.items():
        if (row := by_id.get(obj["id"])) is None:
            faults.append((line, f"id {quote(obj['id'])} is no forget row of this run"))
        elif bare(obj["alternative"]) == bare(row.output):
            faults.append((line, f"alternative of {row.id} is the row's own output"))
        else:
            found.setdefault(row.id, []).append(obj["alternative"])
    if all(line for line, _ in faults):  # a file that could not be read as a whole says nothing about its rows
        faults += _missing([row.id for row in rows if row.id not in found], len(rows))
    if faults:
        raise DataError("\n".join(first_few(place(str(path), faults), SHOWN)))
    return found


def _line_problems(obj: object) -> list[str]:
    """List everything wrong with one parsed line by itself."""
    if not isinstance(obj, dict):
        return [f"is {describe(obj)}, not an object with the fields {', '.join(FIELDS)}"]
    return [problem for field in FIELDS if (problem := text_problem(obj, field))]


def _missing(ids: list[str], count: int) -> list[Fault]:
    """The fault of a file that leaves out these rows."""
    if not ids:
        return []
    more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
    return [(0, f"has no usable alternative for {len(ids)} of {count} forget rows: {', '.join(ids[:3])}{more}")]


def write_alternatives(config: AlternativesConfig) -> Path:
    """Sample alternatives of the forget rows and write them to ``config.output``, which appears when it is complete.

    If some row got none, the samples of the others stay in ``<output>.part``.

    Raises:
        ConfigError: the output or such a part of it exists or cannot be written, or the model cannot be loaded.
        DataError: faulty rows, rows that do not fit, or rows without an alternative.
    """
    output = Path(config.output)
    aside = output.with_name(f"{output.name}.part")
    if output.exists():
        raise ConfigError(f"--output {output}: it exists; name another file")
    if aside.exists():
        raise ConfigError(
            f"--output {output}: {aside} is there, written by a run that failed; add to it and rename it, "
            "remove it, or name another file"
        )
    rows = _forget_rows(config)
    pairs = _pairs(config, rows)
    try:
        aside.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("x", encoding="utf-8") as file:
            for row_id, text in tqdm(pairs, total=len(rows) * config.samples, desc="Sampling alternatives"):
                line = dict(zip(FIELDS, (row_id, text), strict=True))
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        aside.rename(output)
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written: {error}") from error
    except DataError as error:
        raise DataError(f"{error}\nThe samples of the other rows are in {aside}: add to it and rename it.") from error
    return output


def _forget_rows(config: AlternativesConfig) -> list[Row]:
    if config.forget is not None:
        return read_rows(named_file(config.forget, "forget"))
    return locate.load_side(named_directory(config.data), "forget", config.split)


def _pairs(config: AlternativesConfig, rows: list[Row]) -> Iterator[tuple[str, str]]:
    """Load the model, on a GPU if there is one, and sample from it."""
    tokenizer = load.load_tokenizer(config.model, config.trust_remote_code)
    half = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    model = load.load_model(config.model, torch.bfloat16 if half else torch.float32, config.trust_remote_code)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return sample_alternatives(
        model,
        tokenizer,
        rows,
        samples=config.samples,
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        seed=config.seed,
    )
