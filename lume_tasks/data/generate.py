"""Retain rows for those who have none: texts that the model itself generates, so that a run can keep what they show."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lume_tasks.data.chat import chat_prompt
from lume_tasks.errors import DataError, first_line

NGRAM = 5
"""A generated text that shares this many words in a row with a forget row is left out."""
NEW_TOKENS = 128
BATCH = 16
ROUNDS = 20
"""Batches in a row without a usable text after which sampling gives up."""
TOP_P = 0.9
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}"


def ngrams(text: str, size: int = NGRAM) -> set[tuple[str, ...]]:
    """Return the runs of ``size`` words of a text, in lower case."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


def write_generated(model: str, forget: Iterable[str], names: Sequence[str], count: int, seed: int, path: Path) -> None:
    """Sample retain rows from a model and write them as JSONL: question and answer with a chat template, else texts.

    A chat model writes the questions too, from the empty user turn of its template (Xu et al. 2024, "Magpie", arXiv
    2406.08464). The first rows are about ``names``, one each.

    Args:
        model: folder or hub name.
        forget: texts of the forget rows; what shares `NGRAM` words in a row with them is left out.
        names: people or things similar to those of the forget rows.
        count: rows to write.
        seed: of the sampling.
        path: file to write.

    Raises:
        DataError: the model cannot be loaded, or generates too few usable texts.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
        loaded: Any = AutoModelForCausalLM.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise DataError(f"--model {model}: cannot be loaded: {first_line(error)}") from error
    loaded.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    found, _ = sampled_rows(loaded, tokenizer, forget, names, count, seed)
    if len(found) < count:
        raise DataError(f"--model {model}: generated {len(found)} usable texts, not {count}; lower --samples")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found), encoding="utf-8")


def sampled_rows(
    model: Any, tokenizer: Any, forget: Iterable[str], names: Sequence[str], count: int, seed: int, size: int = NGRAM
) -> tuple[list[dict[str, str]], int]:
    """Sample rows as `write_generated` writes them, without ``size`` words in a row of a forget row; see `usable`."""
    import torch

    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    torch.manual_seed(seed)
    rows = chats(model, tokenizer, names) if tokenizer.chat_template else texts(model, tokenizer, names)
    known: set[tuple[str, ...]] = set().union(*(ngrams(text, size) for text in forget))
    return usable(rows, known, count, size)


def usable(
    rows: Iterable[dict[str, str]], known: set[tuple[str, ...]], count: int, size: int = NGRAM
) -> tuple[list[dict[str, str]], int]:
    """Return the first ``count`` rows, each once, of several words and without an n-gram of ``known``.

    The second value is the number of rows left out because they have an n-gram of ``known``, which are of ``size``
    words. The first value has fewer than ``count`` rows if `ROUNDS` batches in a row held no usable one.
    """
    found: dict[str, dict[str, str]] = {}
    useless = overlapping = 0
    for row in rows:
        text = " ".join(row.values())
        overlaps = bool(ngrams(text, size) & known)
        overlapping += overlaps
        if all(row.values()) and len(text.split()) > 1 and not overlaps and text not in found:
            found[text], useless = row, 0
        else:
            useless += 1
        if len(found) == count or useless == ROUNDS * BATCH:
            break
    return list(found.values()), overlapping


def chats(model: Any, tokenizer: Any, names: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield questions and answers without end; the first questions ask who each of ``names`` is."""
    empty = chat_prompt(tokenizer, _MARK).partition(_MARK)[0]
    questions = [f"Who is {name}?" for name in names]
    while True:
        batch, questions = questions[:BATCH], questions[BATCH:]
        batch = batch or [text.partition("\n")[0].strip() for text in sampled(model, tokenizer, [empty] * BATCH)]
        # Greedy, so that the model still gives these answers when it is scored.
        answers = sampled(model, tokenizer, [chat_prompt(tokenizer, question) for question in batch], greedy=True)
        yield from ({"question": q, "answer": a} for q, a in zip(batch, answers, strict=True))


def texts(model: Any, tokenizer: Any, names: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield texts without end; the first begin with ``names``, the others with BOS (or EOS if there is none)."""
    start = tokenizer.bos_token or tokenizer.eos_token
    waiting = list(names)
    while True:
        batch, waiting = waiting[:BATCH], waiting[BATCH:]
        prompts = batch or [start] * BATCH
        yield from (
            {"text": f"{'' if prompt == start else prompt}{text}".strip()}
            for prompt, text in zip(prompts, sampled(model, tokenizer, prompts, strip=False), strict=True)
        )


def sampled(model: Any, tokenizer: Any, prompts: Sequence[str], strip: bool = True, greedy: bool = False) -> list[str]:
    """Generate one continuation of each prompt: greedily, or at temperature 1 from the most probable `TOP_P`."""
    inputs = tokenizer(list(prompts), return_tensors="pt", padding=True, return_token_type_ids=False).to(model.device)
    output = model.generate(
        **inputs,
        **({"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": TOP_P}),
        max_new_tokens=NEW_TOKENS,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    found = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in found] if strip else list(found)
