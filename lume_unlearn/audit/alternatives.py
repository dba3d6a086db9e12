"""Sample other answers to the forget rows from the reference model (the data of AltPO)."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lume_tasks.data.chat import plain_prompt
from lume_tasks.data.rows import Row, text_problems
from lume_tasks.data.text import whole
from lume_tasks.errors import DataError, first_few, raise_problems
from lume_tasks.models.sampling import generated
from lume_unlearn.checks import stable_number
from lume_unlearn.data.alternatives import bare
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.base import in_batches
from lume_unlearn.model.load import context_length

ATTEMPTS = 10  # samples for one alternative, after which its row counts as failed
SHOWN = 10  # rows listed in one message

# Prompts by kind of row, for models with a chat template.
INSTRUCTIONS = {
    "qa": (
        "You will see a question and its answer. Make up a different answer that someone who does not know the "
        "subject would believe. Keep its form and its length, but change the facts: other names, places, dates or "
        "numbers. Reply with the made-up answer and nothing else.\n\nQuestion: {input}\nAnswer: {output}"
    ),
    "sc": (
        "You will see the beginning of a text and how it goes on. Make up a different continuation that would fit the "
        "beginning equally well. Keep its style and its length, but let it tell other facts: other names, places, "
        "dates or events. Reply with the made-up continuation and nothing else.\n\n"
        "Beginning: {input}\n\nContinuation: {output}"
    ),
}
# Prompts for base models, which continue a text rather than follow an instruction.
FRAMES = {
    "qa": "Question: {input}\nTrue answer: {output}\nMade-up answer of the same form:",
    "sc": "Beginning: {input}\nTrue continuation: {output}\nMade-up continuation of the same length:",
}


def write_alternatives(model: Any, tokenizer: Any, rows: Sequence[Row], output: Path, **options: Any) -> None:
    """Sample alternatives (see `sample_alternatives`) and write them to a file, which appears when it is complete.

    If a row has too few usable samples, all usable samples stay in ``<output>.part``.

    Raises:
        ConfigError: the output or its part file exists or cannot be written.
        DataError: rows whose prompt does not fit, or rows with too few alternatives.
    """
    part = unused_part(output)
    samples = sample_alternatives(model, tokenizer, rows, **options)
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("x", encoding="utf-8") as file:
            for row_id, text in tqdm(samples, desc="Sampling alternatives"):
                file.write(json.dumps({"id": row_id, "alternative": text}, ensure_ascii=False) + "\n")
        part.rename(output)
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written: {error}") from error
    except DataError as error:
        advice = f"The samples of the other rows are in {part}: add the missing ones and rename it to {output.name}."
        raise DataError(f"{error}\n{advice}") from error


def unused_part(output: Path) -> Path:
    """Return the path of the part file; ConfigError if it or the output exists."""
    part = output.with_name(f"{output.name}.part")
    for path in (output, part):
        if path.exists():
            raise ConfigError(f"--output {output}: {path} exists; rename or remove it, or name another file")
    return part


def sample_alternatives(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    samples: int = 5,
    temperature: float = 1.0,
    max_new_tokens: int = 200,
    batch_size: int = 16,
    seed: int = 0,
) -> Iterator[tuple[str, str]]:
    """Sample alternatives from the reference model (Mekala et al. 2024, 2409.13474).

    The prompt shows a row with its answer and asks for another plausible answer with other facts: through the chat
    template, or as plain text if the tokenizer has none.

    A sample without letters and digits, or that holds the true answer (see `bare`), is sampled again, `ATTEMPTS` times
    at most. Samples of a base model, which does not stop by itself, are cut to as many lines as the true answer has.

    The same options give the same samples. Another batch size or other rows give other samples.

    Args:
        model: causal language model in evaluation mode.
        tokenizer: its tokenizer; if it has no padding token, its EOS token becomes one.
        rows: rows to sample for.
        samples: alternatives for each row.
        temperature: sampling temperature; top-k and top-p are off.
        max_new_tokens: most tokens of one alternative.
        batch_size: alternatives sampled at the same time.
        seed: sampling seed.

    Yields:
        (row id, alternative), ``samples`` for each row, in the order of the rows.

    Raises:
        DataError: at once, for rows whose prompt does not fit; at the end, for rows with too few alternatives.
    """
    prompts = [_prompt(tokenizer, row) for row in rows]
    _require_room(rows, prompts, context_length(model), max_new_tokens)
    pairs = [pair for pair in zip(rows, prompts, strict=True) for _ in range(samples)]
    failed: dict[str, None] = {}
    for number, batch in enumerate(in_batches(pairs, batch_size)):
        texts: dict[int, str] = {}
        for attempt in range(ATTEMPTS):
            pending = [i for i in range(len(batch)) if i not in texts]
            if pending:
                torch.manual_seed(stable_number(seed, number, attempt))
                ids = [batch[i][1] for i in pending]
                found = generated(model, tokenizer, ids, max_new_tokens=max_new_tokens, temperature=temperature)
                for i, text in zip(pending, found, strict=True):
                    text = _cut(text, batch[i][0], bool(tokenizer.chat_template))
                    if _usable(text, batch[i][0]):
                        texts[i] = text
        for i, (row, _) in enumerate(batch):
            if i in texts:
                yield row.id, texts[i]
            else:
                failed[row.id] = None
    if failed:
        head = f"{len(failed)} rows have too few alternatives: {ATTEMPTS} samples had no words or held the true answer:"
        advice = "Use a higher --temperature or another --seed, or write alternatives of these rows by hand."
        raise DataError("\n".join([head, *first_few([f"  {row_id}" for row_id in failed], SHOWN), advice]))


def _prompt(tokenizer: Any, row: Row) -> list[int]:
    asked = plain_prompt(row.input, row.turns)
    if not tokenizer.chat_template:
        ids = list(tokenizer.encode(FRAMES[row.kind].format(input=asked, output=row.output)))
        return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids  # some tokenizers append an EOS
    message = {"role": "user", "content": INSTRUCTIONS[row.kind].format(input=asked, output=row.output)}
    text = tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    return list(tokenizer.encode(text, add_special_tokens=False))  # the template adds them


def _require_room(rows: Sequence[Row], prompts: list[list[int]], context: int | None, new_tokens: int) -> None:
    """Raise a `DataError` if prompts leave no room for ``new_tokens`` in the context."""
    if context is None:
        return
    lengths = {row.id: len(prompt) for row, prompt in zip(rows, prompts, strict=True)}
    faults = [f"  {row_id}: {count} tokens" for row_id, count in lengths.items() if count + new_tokens > context]
    head = f"{len(faults)} prompts are too long: with {new_tokens} new tokens, each must fit into {context}; "
    raise_problems(faults, f"{head}shorten the rows, or lower --max_new_tokens:", most=SHOWN)


def _cut(text: str, row: Row, chat: bool) -> str:
    """Strip a sample; without a chat template, cut it to as many lines as the true answer has."""
    lines = text.strip().split("\n")
    return text.strip() if chat else "\n".join(lines[: row.output.count("\n") + 1]).strip()


def _usable(text: str, row: Row) -> bool:
    """Return whether a text can be an alternative: valid in a data file, with words, and without the true answer."""
    truth = bare(row.output)
    holds = truth and whole(truth).search(text.casefold())
    return bool(bare(text)) and not holds and not text_problems({"alternative": text}, "alternative")
