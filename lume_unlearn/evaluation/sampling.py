"""Sample alternative answers to forget rows from the reference model (the data step of AltPO)."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from lume_tasks.data.rows import Row, text_problem
from lume_tasks.errors import DataError, first_few
from lume_unlearn.data.alternatives import bare
from lume_unlearn.methods.refusals import stable_number
from lume_unlearn.model.load import context_length

ATTEMPTS = 10  # samples drawn for one alternative before its row counts as failed
SHOWN = 10  # rows listed in one message

# By kind of row, for models with a chat template.
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
# For base models, which continue a text rather than follow an instruction.
FRAMES = {
    "qa": "Question: {input}\nTrue answer: {output}\nMade-up answer of the same form:",
    "sc": "Beginning: {input}\nTrue continuation: {output}\nMade-up continuation of the same length:",
}


def sample_alternatives(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    samples: int,
    temperature: float,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
) -> Iterator[tuple[str, str]]:
    """Sample alternatives from the reference model (Mekala et al. 2024, 2409.13474).

    The prompt shows a row with its answer and asks for another plausible answer with other facts: through the chat
    template, or as plain text if the tokenizer has none. In the latter case the sample is cut to as many lines as the
    true answer has, because a base model does not stop by itself. A sample without letters and digits, or equal to the
    true answer (see `bare`), is drawn again, at most `ATTEMPTS` times.

    The same arguments give the same samples. Another batch size or other rows give other samples.

    Args:
        model: causal language model in evaluation mode.
        tokenizer: its tokenizer; if it has no padding token, its EOS token becomes one.
        rows: rows to sample for.
        samples: alternatives of each row.
        temperature: above 0; no top-k or top-p.
        max_new_tokens: most tokens of one alternative.
        batch_size: alternatives sampled at the same time.
        seed: seed of the sampling.

    Returns:
        Iterator over (row id, alternative), ``samples`` for each row, in the order of the rows.

    Raises:
        DataError: at once, for rows whose prompt does not fit; from the iterator, at its end, for rows without an
            alternative.
    """
    prompts = [_prompt(tokenizer, row) for row in rows]
    _require_room(rows, prompts, context_length(model), max_new_tokens)
    pairs = [pair for pair in zip(rows, prompts, strict=True) for _ in range(samples)]
    batches = [pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size)]
    stops = model.generation_config.eos_token_id  # chat models may have several
    stops = {tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])} - {None}
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    options = {"temperature": temperature, "max_new_tokens": max_new_tokens, "eos_token_id": sorted(stops)}
    return _sampled(model, tokenizer, batches, options, seed)


def _sampled(
    model: Any, tokenizer: Any, batches: list[list[tuple[Row, list[int]]]], options: dict[str, Any], seed: int
) -> Iterator[tuple[str, str]]:
    failed: dict[str, None] = {}
    for number, batch in enumerate(batches):
        texts: dict[int, str] = {}
        for attempt in range(ATTEMPTS):
            pending = [i for i in range(len(batch)) if i not in texts]
            if not pending:
                break
            torch.manual_seed(stable_number(seed, number, attempt))
            found = _generate(model, tokenizer, [batch[i] for i in pending], options)
            texts |= {i: text for i, text in zip(pending, found, strict=True) if _usable(text, batch[i][0])}
        for i, (row, _) in enumerate(batch):
            if i in texts:
                yield row.id, texts[i]
            else:
                failed[row.id] = None
    if failed:
        head = f"{len(failed)} rows have too few alternatives: {ATTEMPTS} samples had no words or were the true answer:"
        advice = "Use a higher --temperature or another --seed, or write alternatives of these rows by hand."
        raise DataError("\n".join([head, *first_few([f"  {row_id}" for row_id in failed], SHOWN), advice]))


def _generate(model: Any, tokenizer: Any, batch: Sequence[tuple[Row, list[int]]], options: dict[str, Any]) -> list[str]:
    """Sample one text for each prompt."""
    prompts = {"input_ids": [prompt for _, prompt in batch]}
    inputs = tokenizer.pad(prompts, padding_side="left", return_tensors="pt").to(model.device)
    output = model.generate(
        **inputs, do_sample=True, top_k=0, top_p=1.0, pad_token_id=tokenizer.pad_token_id, **options
    )
    texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    if tokenizer.chat_template:
        return [text.strip() for text in texts]
    lines = [row.output.count("\n") + 1 for row, _ in batch]
    return ["\n".join(text.strip().split("\n")[:count]).strip() for text, count in zip(texts, lines, strict=True)]


def _usable(text: str, row: Row) -> bool:
    """Say whether a text is an alternative: valid in a data file, with words, and not the true answer."""
    return text_problem({"alternative": text}, "alternative") is None and bare(text) not in ("", bare(row.output))


def _require_room(rows: Sequence[Row], prompts: list[list[int]], context: int | None, max_new_tokens: int) -> None:
    """Raise a `DataError` if prompts leave no room for ``max_new_tokens`` in the context."""
    faults = [
        f"  {row.id}: {len(prompt)} tokens"
        for row, prompt in zip(rows, prompts, strict=True)
        if context is not None and len(prompt) + max_new_tokens > context
    ]
    if faults:
        head = (
            f"{len(faults)} of {len(rows)} rows are too long: the prompt and {max_new_tokens} new tokens must fit into "
            f"{context}; lower --max_new_tokens, or shorten these rows:"
        )
        raise DataError("\n".join([head, *first_few(faults, SHOWN)]))


def _prompt(tokenizer: Any, row: Row) -> list[int]:
    if not tokenizer.chat_template:
        ids = list(tokenizer.encode(FRAMES[row.kind].format(input=row.input, output=row.output)))
        return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids  # some tokenizers append an EOS
    message = {"role": "user", "content": INSTRUCTIONS[row.kind].format(input=row.input, output=row.output)}
    text = tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    return list(tokenizer.encode(text, add_special_tokens=False))  # the template adds them
