"""Drawing alternatives: the model before unlearning makes up other answers to the forget rows (AltPO's data step)."""

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from lume_tasks.rows import DataError, Row, text_problem
from lume_unlearn.modeling import context_length
from lume_unlearn.refusals import stable_number

DRAWS = 10  # of one alternative before its row is given up
SHOWN = 10  # faults of one message

# For models with a chat template, by kind of row.
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
# For models without one, which go on writing rather than follow an instruction.
FRAMES = {
    "qa": "Question: {input}\nTrue answer: {output}\nMade-up answer of the same form:",
    "sc": "Beginning: {input}\nTrue continuation: {output}\nMade-up continuation of the same length:",
}


class Draw(NamedTuple):
    """One alternative to be drawn."""

    row: Row
    number: int  # among the alternatives of its row
    prompt: list[int]


def generate(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    samples: int,
    temperature: float,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
) -> Iterator[tuple[str, str]]:
    """Draw alternatives from the model before unlearning (the data step of AltPO, Mekala et al. 2024, 2409.13474).

    The model is shown the row with its answer and asked for another plausible answer with other facts: through its
    chat template where its tokenizer has one, else in a plain frame (the text is then cut to as many lines as the true
    answer has, since such a model does not stop by itself). A text ends at EOS and is stripped. One without
    letters and digits, or that equals the true answer (see `bare`), is drawn again, up to `DRAWS` times in all.

    Each alternative has random numbers of its own, seeded by ``seed``, the row's id and its number: neither the batch
    size nor the other rows matter, up to the rounding of sums over a batch.

    Args:
        model: causal language model in evaluation mode.
        tokenizer: its tokenizer; needs no padding token.
        rows: rows to draw for.
        samples: alternatives of each row.
        temperature: above 0; draws are from ``softmax(logits / temperature)``, without top-k or top-p.
        max_new_tokens: most tokens of one alternative.
        batch_size: alternatives drawn at the same time.
        seed: of the drawing.

    Returns:
        Iterator over (row id, alternative), ``samples`` for each row, in the order of the rows.

    Raises:
        DataError: at once, rows whose prompt does not fit; from the iterator, at its end, rows for which no draw gave
            anything usable.
    """
    prompts = _prompts(tokenizer, rows, context_length(model), max_new_tokens)
    draws = [Draw(row, i, prompt) for row, prompt in zip(rows, prompts, strict=True) for i in range(samples)]
    sampler = Sampler(model, tokenizer, temperature, max_new_tokens, seed)
    return _drawn(sampler, draws, batch_size)


def _prompts(tokenizer: Any, rows: Sequence[Row], context: int | None, max_new_tokens: int) -> list[list[int]]:
    """Token ids of each row's prompt, all short enough to leave room for the alternative."""
    prompts = [_prompt(tokenizer, row) for row in rows]
    faults = [
        f"  {row.id}: {len(prompt)} tokens"
        for row, prompt in zip(rows, prompts, strict=True)
        if context is not None and len(prompt) + max_new_tokens > context
    ]
    if faults:
        head = (
            f"{len(faults)} of {len(rows)} rows are too long: the prompt and {max_new_tokens} new tokens must fit into "
            f"{context}; lower --max_new_tokens, or shorten them:"
        )
        raise DataError("\n".join([head, *first_few(faults)]))
    return prompts


def _prompt(tokenizer: Any, row: Row) -> list[int]:
    if not tokenizer.chat_template:
        ids = list(tokenizer.encode(FRAMES[row.kind].format(input=row.input, output=row.output)))
        return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids  # some tokenizers put an EOS behind every text
    message = {"role": "user", "content": INSTRUCTIONS[row.kind].format(input=row.input, output=row.output)}
    text = tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    return list(tokenizer.encode(text, add_special_tokens=False))  # the template has put them in


def _drawn(sampler: "Sampler", draws: list[Draw], batch_size: int) -> Iterator[tuple[str, str]]:
    given_up: dict[str, None] = {}
    for start in range(0, len(draws), batch_size):
        batch = draws[start : start + batch_size]
        texts = _usable(sampler, batch)
        for draw, text in zip(batch, texts, strict=True):
            if text is None:
                given_up[draw.row.id] = None
            else:
                yield draw.row.id, text
    if given_up:
        head = f"{len(given_up)} rows have too few alternatives: {DRAWS} draws gave no words or the true answer again:"
        advice = "Use a higher --temperature or another --seed, or write alternatives of these rows by hand."
        raise DataError("\n".join([head, *first_few([f"  {row_id}" for row_id in given_up]), advice]))


def _usable(sampler: "Sampler", draws: list[Draw]) -> list[str | None]:
    """A usable text for each draw, or None after `DRAWS` attempts."""
    texts: list[str | None] = [None] * len(draws)
    for attempt in range(DRAWS):
        pending = [i for i, text in enumerate(texts) if text is None]
        if not pending:
            break
        for i, text in zip(pending, sampler.sample([draws[i] for i in pending], attempt), strict=True):
            said = text_problem({"alternative": text}, "alternative") is None and bare(text)
            if said and said != bare(draws[i].row.output):
                texts[i] = text
    return texts


@dataclass(frozen=True)
class Sampler:
    """Draws texts from a model, each with random numbers of its own; see `generate` for the fields."""

    model: Any
    tokenizer: Any
    temperature: float
    max_new_tokens: int
    seed: int

    def sample(self, draws: list[Draw], attempt: int) -> list[str]:
        """One text for each draw; another attempt gives another text."""
        device, stops = self.model.device, self._stops()
        pad = next((i for i in (self.tokenizer.pad_token_id, *stops) if i is not None), 0)  # masked: any token does
        input_ids, mask = (tensor.to(device) for tensor in left_padded([draw.prompt for draw in draws], pad))
        seeds = [stable_number(self.seed, draw.row.id, draw.number, attempt) for draw in draws]
        noise = GumbelNoise(self.temperature, [torch.Generator(device).manual_seed(number) for number in seeds])
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, max_new_tokens=self.max_new_tokens, pad_token_id=pad, eos_token_id=stops, use_cache=True
        )
        output = self.model.generate(
            input_ids, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList([noise])
        )
        new = output[:, input_ids.shape[1] :].tolist()
        return [self._text(draw.row, ids, stops) for draw, ids in zip(draws, new, strict=True)]

    def _stops(self) -> list[int]:
        """Tokens that end a text: the tokenizer's EOS and those that the model names (chat models may have several)."""
        named = self.model.generation_config.eos_token_id
        both = {self.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}
        return sorted(both - {None})

    def _text(self, row: Row, ids: list[int], stops: list[int]) -> str:
        end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
        text = str(self.tokenizer.decode(ids[:end], skip_special_tokens=True)).strip()
        if not self.tokenizer.chat_template:
            text = "\n".join(text.split("\n")[: row.output.count("\n") + 1]).strip()
        return text


def left_padded(prompts: Sequence[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Prompts as ids (B, T) with the padding in front, and the mask (B, T): 1 where a prompt is."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


class GumbelNoise(LogitsProcessor):
    """Makes greedy decoding draw from ``softmax(logits / temperature)``.

    ``argmax(logits / t + g)`` with Gumbel noise ``g = -log e``, ``e ~ Exp(1)``, is such a draw (Gumbel 1954). Unlike
    `generate`'s own sampling, every row has its own source of random numbers.
    """

    def __init__(self, temperature: float, generators: Sequence[torch.Generator]) -> None:
        """``generators``: one for each row of the batch, on the model's device."""
        self.temperature, self.generators = temperature, generators

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Scores (B, V) to scores with noise (B, V), float32."""
        scores = scores.float() / self.temperature
        rows = [torch.empty_like(scores[0]).exponential_(generator=generator) for generator in self.generators]
        return scores - torch.stack(rows).log()


def bare(text: str) -> str:
    """What an answer says: its case, and the marks and white space around it, aside."""
    return text.strip(string.whitespace + string.punctuation).casefold()


def first_few(lines: list[str]) -> list[str]:
    """The first lines of a message, and how many more there are."""
    return lines[:SHOWN] + ([f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])
