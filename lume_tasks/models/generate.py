"""Sample retain rows from the model itself, for users who have none, so that a run can keep what the rows show."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lume_tasks.data.chat import chat_prompt
from lume_tasks.data.text import UNSPACED, WORD
from lume_tasks.data.texts import cut
from lume_tasks.errors import DataError, first_line
from lume_tasks.models.sampling import generated

NGRAM = 5
"""A generated text that shares this many words in a row with a forget row is left out."""
CHARACTERS = 15
"""The same for the characters of scripts without spaces."""
NEW_TOKENS = 128
BATCH = 16
ROUNDS = 20
"""Sampling stops after this many batches in a row without a usable text."""
TOP_P = 0.9
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}"


def ngrams(text: str) -> set[tuple[str, ...]]:
    """Return the runs of `NGRAM` words of a text, in lower case, and of `CHARACTERS` in scripts without spaces."""
    words = WORD.findall(text.lower())
    unspaced = re.findall(rf"(?=([{UNSPACED}]{{{CHARACTERS}}}))", text)
    return {tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)} | {(run,) for run in unspaced}


def write_generated(model: str, forget: Iterable[str], names: Sequence[str], count: int, seed: int, path: Path) -> None:
    """Sample retain rows from a model and write them as JSONL: question and answer with a chat template, else texts.

    A chat model writes the questions too, from the empty user turn of its template (Xu et al. 2024, "Magpie", arXiv
    2406.08464). The first rows are about ``names``, one each.

    Args:
        model: folder or hub name.
        forget: texts of the forget rows; a text that shares `NGRAM` words in a row with them is left out.
        names: people or things similar to those of the forget rows.
        count: rows to write.
        seed: of the sampling.
        path: file to write.

    Raises:
        DataError: the model cannot be loaded, or generates too few usable texts.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
        loaded: Any = AutoModelForCausalLM.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise DataError(f"--model {model}: cannot be loaded: {first_line(error)}") from error
    loaded.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    rows = chats(loaded, tokenizer, names) if tokenizer.chat_template else texts(loaded, tokenizer, names)
    found = usable(rows, set().union(*map(ngrams, forget)), count)
    if len(found) < count:
        raise DataError(f"--model {model}: generated {len(found)} usable texts, not {count}; lower --samples")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found), encoding="utf-8")


def usable(rows: Iterable[dict[str, str]], known: set[tuple[str, ...]], count: int) -> list[dict[str, str]]:
    """Return the first ``count`` different rows that have several words and no n-gram of ``known``.

    It returns fewer if `ROUNDS` batches in a row held no usable row.
    """
    found: dict[str, dict[str, str]] = {}
    useless = 0
    for row in rows:
        text = " ".join(row.values())
        if all(row.values()) and cut(text) and not ngrams(text) & known and text not in found:
            found[text], useless = row, 0
        else:
            useless += 1
        if len(found) == count or useless == ROUNDS * BATCH:
            break
    return list(found.values())


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
        for prompt, text in zip(prompts, sampled(model, tokenizer, prompts, strip=False), strict=True):
            yield {"text": f"{'' if prompt == start else prompt}{text}".strip()}


def sampled(model: Any, tokenizer: Any, prompts: Sequence[str], strip: bool = True, greedy: bool = False) -> list[str]:
    """Generate one continuation of each prompt: greedily, or at temperature 1 with ``top_p`` `TOP_P`."""
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    temperature, top_p = (0.0, 1.0) if greedy else (1.0, TOP_P)
    found = generated(model, tokenizer, ids, max_new_tokens=NEW_TOKENS, temperature=temperature, top_p=top_p)
    return [text.strip() for text in found] if strip else found
