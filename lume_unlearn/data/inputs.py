"""The rows of a run: found, checked, with their alternatives, and as tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from lume_tasks.data import locate
from lume_tasks.data.checks import check_sides
from lume_tasks.data.files import read_rows
from lume_tasks.data.rows import SIDES, Row, members_among
from lume_tasks.errors import DataError
from lume_unlearn.config import ConfigError, RunConfig
from lume_unlearn.data.alternatives import read_alternatives
from lume_unlearn.data.dataset import Sides
from lume_unlearn.data.encode import Tokens, encode_rows
from lume_unlearn.data.sources import named_directory, named_file
from lume_unlearn.methods.refusals import refusals


@dataclass(frozen=True)
class Inputs:
    """What a run reads beside the model."""

    forget: list[Row]
    retain: list[Row]
    """Empty where none were named; a method without retain term has them for watching only."""
    alternatives: list[list[str]] | None
    """Other answers to each forget row, where the method wants them."""
    checksums: dict[str, str]
    """SHA-256 of each file read."""


def load_inputs(config: RunConfig) -> Inputs:
    """Read and check every file of the run.

    Raises:
        ConfigError: ``--data`` is no directory.
        DataError: anything wrong with the rows, all at once.
    """
    forget, retain, checksums = load_sides(config)
    if config.alternatives is not None:
        checksums |= _checksum(Path(config.alternatives))
    return Inputs(forget, retain, _alternatives(config, forget), checksums)


def load_sides(config: RunConfig) -> tuple[list[Row], list[Row], dict[str, str]]:
    """Forget rows, retain rows (none where only --forget is named) and the SHA-256 of each file read.

    Raises:
        ConfigError: ``--data`` is no directory.
        DataError: anything wrong with the rows, all at once.
    """
    if config.forget is not None:
        files, sides = _named_sides(config)
    else:
        directory = named_directory(config.data)
        files = {side: locate.side_file(directory, side, config.split) for side in SIDES}
        sides = locate.load_rows(directory, config.split)
    checksums = {name: value for path in files.values() for name, value in _checksum(path).items()}
    return sides["forget"], sides.get("retain", []), checksums


def _named_sides(config: RunConfig) -> tuple[dict[str, Path], dict[str, list[Row]]]:
    """The files of ``--forget`` and ``--retain`` and their rows, by side."""
    files: dict[str, Path] = {}
    sides: dict[str, list[Row]] = {}
    faults: list[str] = []
    for side in SIDES:
        if (named := getattr(config, side)) is None:
            continue
        try:
            files[side] = named_file(named, side)
            sides[side] = read_rows(files[side])
        except DataError as error:
            faults.append(str(error))
    faults = faults or check_sides("--forget and --retain", sides["forget"], sides.get("retain", []))
    if faults:
        raise DataError("\n".join(faults))
    return files, sides


def members_line(config: RunConfig, forget: Sequence[Row]) -> str | None:
    """Say how many member documents the forget rows hold, and what the membership attack will show of the run.

    Returns:
        One line; None where the data has no member documents, or files were named instead of a data directory.

    Raises:
        DataError: the documents have faults.
    """
    directory = None if config.forget else named_directory(config.data)
    if directory is None or not (directory / "mia_data").is_dir():
        return None
    members, _ = locate.load_mia(directory)
    count = members_among(members, forget)
    line = f"{count} of {len(members)} member documents are among the forget rows"
    if count < len(members):
        line += ": the attack (lume_mia) also asks for documents that this run does not unlearn"
    if count and config.loss_on == "answer":
        line += "; a loss on answers alone (--loss_on answer) hardly moves the attack, --loss_on text moves it more"
    return line


def _alternatives(config: RunConfig, forget: list[Row]) -> list[list[str]] | None:
    """Other answers to each forget row, where the method wants them."""
    if config.spec.alternative == "refusals":
        return [[text] for text in refusals(forget, config.seed)]
    if config.spec.alternative == "file":
        found = read_alternatives(Path(cast(str, config.alternatives)), forget)
        return [found[row.id] for row in forget]
    return None


def _checksum(path: Path) -> dict[str, str]:
    return {str(path): locate.checksums(path.parent, [path.name])[path.name]}


def encode_sides(config: RunConfig, tokenizer: Any, context: int | None, inputs: Inputs) -> Sides:
    """The rows as tokens; a forget row with several alternatives stands there once with each.

    Args:
        config: of the run.
        tokenizer: of the model.
        context: longest sequence that the model takes.
        inputs: of the run.

    Raises:
        DataError: rows that do not fit.
    """
    encode = partial(encode_rows, tokenizer, loss_on=config.loss_on, max_length=config.max_length, context=context)
    forget, retain = inputs.forget, inputs.retain if config.needs_retain else []
    others = inputs.alternatives or [[row.output] for row in forget]
    pairs = [(number, replace(row, output=text)) for number, row in enumerate(forget) for text in others[number]]
    encoded = encode(forget)
    return Sides(
        forget=[encoded[number] for number, _ in pairs],
        retain=encode(retain),
        alternative=encode([row for _, row in pairs]) if inputs.alternatives else (),
        use=config.spec.uses_forget_rows,
        names={"forget": [row.id for _, row in pairs], "retain": [row.id for row in retain]},
    )


def require_known(config: RunConfig, model: Any, rows: Iterable[Tokens]) -> None:
    """Refuse tokens that the model has no embedding for: looking one up ends in an obscure error, on a GPU in a crash.

    Raises:
        ConfigError: the tokenizer is not that of the model.
    """
    highest = max(max(row.input_ids) for row in rows)
    known = model.get_input_embeddings().num_embeddings
    if highest >= known:
        raise ConfigError(
            f"--model {config.model}: its tokenizer gives tokens up to {highest}, its weights know {known} of them"
        )


def watched(config: RunConfig, tokenizer: Any, context: int | None, rows: Sequence[Row], count: int) -> list[Tokens]:
    """A few rows to watch while training: drawn by the seed, the same for every method.

    Rows that do not fit the model are left out rather than refused: a method may have no other use for them.
    """
    order = np.random.default_rng(config.seed).permutation(len(rows)).tolist()
    found: list[Tokens] = []
    for index in order:
        try:
            found += encode_rows(tokenizer, [rows[index]], config.loss_on, config.max_length, context)
        except DataError:
            continue
        if len(found) == count:
            break
    return found
