"""The command `alternatives`: sample other answers to the forget rows from the reference model."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from lume_tasks.data.files import read_rows
from lume_tasks.data.locate import load_side
from lume_tasks.data.rows import Row
from lume_tasks.errors import DataError
from lume_unlearn.data.inputs import named_directory, named_file
from lume_unlearn.errors import ConfigError
from lume_unlearn.evaluation.options import AlternativesConfig
from lume_unlearn.evaluation.sampling import sample_alternatives
from lume_unlearn.model import load


def write_alternatives(config: AlternativesConfig) -> Path:
    """Sample alternatives of the forget rows and write them to ``config.output``, which appears when it is complete.

    If some row has no usable sample, the samples of the others stay in ``<output>.part``.

    Raises:
        ConfigError: the output or its part file exists or cannot be written, or the model cannot be loaded.
        DataError: faulty rows, rows that do not fit, or rows without an alternative.
    """
    output = Path(config.output)
    part = output.with_name(f"{output.name}.part")
    if output.exists():
        raise ConfigError(f"--output {output}: it exists; name another file")
    if part.exists():
        raise ConfigError(
            f"--output {output}: {part} is there, written by a run that failed; add to it and rename it, "
            "remove it, or name another file"
        )
    if config.forget is None:
        rows = load_side(named_directory(config.data), "forget", config.split)
    else:
        rows = read_rows(named_file(config.forget, "forget"))
    samples = _sample(config, rows)
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("x", encoding="utf-8") as file:
            for row_id, text in tqdm(samples, total=len(rows) * config.samples, desc="Sampling alternatives"):
                file.write(json.dumps({"id": row_id, "alternative": text}, ensure_ascii=False) + "\n")
        part.rename(output)
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written: {error}") from error
    except DataError as error:
        raise DataError(f"{error}\nThe samples of the other rows are in {part}: add to it and rename it.") from error
    return output


def _sample(config: AlternativesConfig, rows: list[Row]) -> Iterator[tuple[str, str]]:
    """Load the model, on a GPU if there is one, and sample (row id, alternative) from it."""
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
