"""Find, read and check the rows of a run, and encode them."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lume_tasks.data import locate
from lume_tasks.data.checks import check_sides
from lume_tasks.data.files import find_file, place, read_rows, scan_rows
from lume_tasks.data.rows import SIDES, Row, members_among
from lume_tasks.errors import DataError, raise_problems
from lume_unlearn.config import RunConfig, names
from lume_unlearn.data.alternatives import read_alternatives
from lume_unlearn.data.contexts import Context, aligned, window
from lume_unlearn.data.dataset import Sides
from lume_unlearn.data.documents import read_texts
from lume_unlearn.data.encode import Tokens, encode_row, encode_rows
from lume_unlearn.data.substitutes import Variant, read_substitutes, templated, variants
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.refusals import refusals


@dataclass(frozen=True)
class Inputs:
    """What a run reads beside the model."""

    forget: list[Row]
    retain: list[Row]
    """Empty if none were named; a method without retain term only monitors them."""
    alternatives: list[list[str]] | None
    """Other answers to each forget row, if the method needs them."""
    checksums: dict[str, str]
    """SHA-256 of each file read."""
    forgotten: list[Row] = field(default_factory=list)
    """Forget rows of earlier requests, to monitor."""
    variants: list[list[Variant]] = field(default_factory=list)
    """Each forget row with substitutes, if the method has a counterfactual teacher."""
    unseen: list[Row] = field(default_factory=list)
    """Texts that the model never saw, whose level is followed."""


def load_inputs(config: RunConfig) -> Inputs:
    """Read and check every file of the run: those of the data directory, or the named ones.

    Raises:
        ConfigError: ``--data`` is not a directory, or ``--unseen`` or ``--substitutes`` no file.
        DataError: lists everything wrong with the rows.
    """
    if config.substitutes is not None and not Path(config.substitutes).is_file():
        raise ConfigError(f"--substitutes {config.substitutes}: there is no such file")
    unseen = [] if config.unseen is None else read_texts("unseen", config.unseen)
    if config.forget is None:
        directory = named_directory(config.data)
        files = {side: locate.side_file(directory, side, config.split) for side in SIDES}
        rows = locate.load_rows(directory, config.split)
    else:
        named = {"forget": config.forget, "retain": config.retain}
        files = {side: named_file(name, side) for side, name in named.items() if name is not None}
        rows = _read_named(files)
    forget, retain, alternatives = rows["forget"], rows.get("retain", []), None
    if config.spec.alternative == "refusals":
        alternatives = [[text] for text in refusals(forget, config.seed)]
    elif config.alternatives is not None:
        files["alternatives"] = Path(config.alternatives)
        found = read_alternatives(files["alternatives"], forget)
        alternatives = [found[row.id] for row in forget]
    named = {"substitutes": config.substitutes, "unseen": config.unseen}
    files |= {name: Path(path) for name, path in named.items() if path is not None}
    earlier = [locate.side_file(named_directory(name, "--forgotten"), "forget") for name in names(config.forgotten)]
    files |= {str(path): path for path in earlier}
    checksums = {str(path): locate.checksums(path.parent, [path.name])[path.name] for path in files.values()}
    forgotten = [row for path in earlier for row in read_rows(path)]
    inputs = Inputs(forget, retain, alternatives, checksums, forgotten)
    return replace(inputs, variants=variants_of(config, inputs), unseen=unseen)


def variants_of(config: RunConfig, inputs: Inputs) -> list[list[Variant]]:
    """Return the forget rows with substitutes that the method's teacher reads; none without a teacher."""
    if not config.spec.teacher:
        return []
    given = None if config.substitutes is None else read_substitutes(Path(config.substitutes))
    count = int(config.params["contexts"])
    return variants(inputs.forget, inputs.retain, count, config.seed, given)


def _read_named(files: dict[str, Path]) -> dict[str, list[Row]]:
    rows, problems = {}, []
    for side, path in files.items():
        found, faults = scan_rows(path)
        rows[side] = list(found.values())
        problems += place(str(path), faults)
    raise_problems(problems or check_sides("--forget and --retain", rows["forget"], rows.get("retain", [])))
    return rows


def named_directory(data: str | None, option: str = "--data") -> Path:
    """Return the data directory that an option names, or without it LUME_DATA_DIR or the published files."""
    if data is not None and not Path(data).expanduser().is_dir():
        raise ConfigError(f"{option} {data}: is not a directory")
    return locate.data_dir(data)


def named_file(named: str, side: str) -> Path:
    """Return the file of ``--forget`` or ``--retain``, which may name a folder that holds it."""
    path = Path(named).expanduser()
    if not path.exists():
        raise DataError(f"--{side} {path}: there is no such file or folder")
    return find_file(path, side, str(path / side)) if path.is_dir() else path


def members_line(config: RunConfig, forget: Sequence[Row]) -> str | None:
    """Say how many member documents are among the forget rows, and what that means for the membership attack.

    None if the data has no member documents, or files were named instead of a data directory.
    """
    members = member_documents(config)
    if not members:
        return None
    count = members_among(members, forget)
    line = f"{count} of {len(members)} member documents are among the forget rows"
    if count < len(members):
        line += ": the attack (lume_mia) also asks for documents that this run does not unlearn"
    if count and config.loss_on == "answer":
        line += "; a loss on answers alone (--loss_on answer) hardly moves the attack, --loss_on text moves it more"
    return line


def member_documents(config: RunConfig) -> list[str]:
    """Return the member documents of the data directory; none if it has none, or if files were named instead."""
    directory = None if config.forget else named_directory(config.data)
    if directory is None or not (directory / "mia_data").is_dir():
        return []
    return list(locate.load_mia(directory)[0])


def encode_sides(config: RunConfig, tokenizer: Any, context: int | None, inputs: Inputs) -> Sides:
    """Encode the rows (see `encode_rows`); a forget row with several alternatives is there once with each."""

    def encode(rows: Sequence[Row]) -> list[Tokens]:
        return encode_rows(tokenizer, rows, config.loss_on, config.max_length, context, config.chat)

    retain = inputs.retain if config.needs_retain else []
    forget, alternative = inputs.forget, []
    if inputs.alternatives:
        both = [(row, text) for row, texts in zip(forget, inputs.alternatives, strict=True) for text in texts]
        forget = [row for row, _ in both]
        alternative = [replace(row, output=text) for row, text in both]
    return Sides(
        forget=encode(forget),
        retain=encode(retain),
        alternative=encode(alternative),
        use=config.spec.uses_forget_rows,
        names={"forget": [row.id for row in forget], "retain": [row.id for row in retain]},
    )


def teacher_contexts(
    config: RunConfig, tokenizer: Any, context: int | None, inputs: Inputs, rows: Sequence[Tokens]
) -> dict[Tokens, list[Context]]:
    """Return what the counterfactual teacher reads of each forget row: the row with substitutes, or windows of it.

    Rows with substitutes may be longer than the rows; they are cut where the model or ``--max_length`` cuts.
    """
    limit = min((length for length in (context, config.max_length) if length), default=None)
    size, bos = int(config.params["window"]), getattr(tokenizer, "bos_token_id", None)
    templates = templated(inputs.forget, inputs.retain) if size else set()
    found: dict[Tokens, list[Context]] = {}
    for row, tokens, changed in zip(inputs.forget, rows, inputs.variants, strict=True):
        if size and (row.id not in templates or not changed):
            found[tokens] = [window(tokens, size, [] if bos is None else [bos])]
            continue
        encoded = [encode_row(tokenizer, variant.row, config.loss_on, config.chat) for variant in changed]
        found[tokens] = [aligned(tokens, Tokens(other.input_ids[:limit], other.labels[:limit])) for other in encoded]
    return found


def require_known(config: RunConfig, model: Any, rows: Iterable[Tokens]) -> None:
    """Raise `ConfigError` for tokens without an embedding: looking one up crashes a GPU."""
    highest = max(max(row.input_ids) for row in rows)
    known = model.get_input_embeddings().num_embeddings
    if highest >= known:
        raise ConfigError(
            f"--model {config.model}: token id {highest} is outside the embedding table ({known} rows): is this the "
            "model's own tokenizer?"
        )


def watched(config: RunConfig, tokenizer: Any, context: int | None, rows: Sequence[Row], count: int) -> list[Tokens]:
    """Choose a few rows for the monitor by the seed, the same for every method, and encode them.

    Rows that do not fit the model are left out instead of refused, since the method may not use them.
    """
    order = np.random.default_rng(config.seed).permutation(len(rows)).tolist()
    found: list[Tokens] = []
    for index in order:
        with suppress(DataError):
            found += encode_rows(tokenizer, [rows[index]], config.loss_on, config.max_length, context, config.chat)
        if len(found) == count:
            break
    return found
