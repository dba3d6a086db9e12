"""What unlearning does to the rest: predictions on texts that no row holds, and answers to unrelated questions.

python tests/benchmarks/disruption.py --data DATA --before TARGET --models RETRAINED OUT/unlearned

The questions are at most ``QUESTIONS`` of DATA's MMLU, its subjects in turn, asked without the choices. It prints:

- NLL: mean over the questions' tokens, and over those of DATA's non-members, in nats;
- KL: mean over the questions' tokens of the divergence of a model's prediction from that before, in nats. A model that
  learned its rows by heart tells them in any text, so it is no ideal to stay near: try the model before that, too;
- same: share of the answers (greedy, at most ``TOKENS`` tokens) that are word for word as before;
- of rows: share of the answers with a name or number, of ``LONG`` characters or more, from the answers of rows.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from lume_tasks.data.chat import chat_prompt, plain_prompt
from lume_tasks.data.locate import load_mmlu
from lume_tasks.data.rows import Row
from lume_tasks.data.source import load_data
from lume_tasks.data.text import folded
from lume_tasks.models.sampling import generated
from lume_unlearn.data.persons import folded_words, own_words
from lume_unlearn.methods.common import token_nll
from lume_unlearn.methods.retain import kl_tokens
from lume_unlearn.model.load import load_model, load_tokenizer

QUESTIONS, TOKENS, SHOWN, LONG = 50, 32, 6, 4
MOST = 1024
"""Tokens of a text that are read."""


def asked(mmlu: str) -> list[str]:
    """Return the questions, a first one of each subject, then a second one."""
    subjects = load_mmlu(mmlu).values()
    found = (str(one["question"]) for one in chain(*zip(*subjects, strict=False)))
    return list(islice((text for text in found if text.endswith("?")), QUESTIONS))


def outputs(model: Any, texts: Sequence[list[int]]) -> Iterator[Tensor]:
    """Return the logits after each token of a text: (tokens, V)."""
    for ids in texts:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        yield logits


def text_nll(logits: Tensor, ids: list[int]) -> float:
    """Return the mean NLL in nats of a text's tokens but the first."""
    return token_nll(logits[:-1], torch.tensor(ids[1:])).mean().item()


def names_and_numbers(rows: Sequence[Row]) -> set[str]:
    """Return the words with a capital letter or a digit that tell one of the rows' answers from the others, folded."""
    return {
        folded(word)
        for row, own in zip(rows, own_words(rows, rows).values(), strict=True)
        for word in re.findall(r"\w+", row.output)
        if len(word) >= LONG and folded(word) in own and (word[0].isupper() or any(map(str.isdigit, word)))
    }


def invented(answer: str, question: str, known: set[str]) -> bool:
    """Return whether an answer has a name or number of the rows that its question does not have."""
    return bool((folded_words(answer) - folded_words(question)) & known)


def main() -> None:
    """Compare each model with the one before."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--before", required=True)
    parser.add_argument("--models", required=True, nargs="+")
    args = parser.parse_args()
    data, tokenizer = load_data(Path(args.data)), load_tokenizer(args.before)
    rows: list[Row] = [*data.forget, *data.retain]
    known = names_and_numbers(rows)
    questions = asked(str(data.mmlu))
    prompts = [tokenizer.encode(text) for text in questions]
    prompt = partial(chat_prompt, tokenizer) if tokenizer.chat_template else plain_prompt
    chats = [tokenizer.encode(prompt(text)) for text in questions]
    texts = [tokenizer.encode(text)[:MOST] for text in data.nonmembers]
    first: tuple[list[Tensor], list[str]] | None = None
    for name in (args.before, *args.models):
        model = load_model(name, torch.float32).eval()
        logits = list(outputs(model, prompts))
        answers = generated(model, tokenizer, chats, max_new_tokens=TOKENS, temperature=0)
        first = first or (logits, answers)
        nll = fmean(map(text_nll, logits, prompts))
        unseen = fmean(map(text_nll, outputs(model, texts), texts))
        kl = fmean(kl_tokens(after, before).mean().item() for before, after in zip(first[0], logits, strict=True))
        same = fmean(map(str.__eq__, answers, first[1]))
        told = fmean(invented(answer, text, known) for answer, text in zip(answers, questions, strict=True))
        print(f"{name}: NLL {nll:.3f}, {unseen:.3f}, KL {kl:.3f}, same {same:.2f}, of rows {told:.2f}")
        for text, answer in islice(zip(questions, answers, strict=True), SHOWN):
            print(f"    {text[-60:]!r}: {answer[:90]!r}", flush=True)


if __name__ == "__main__":
    main()
