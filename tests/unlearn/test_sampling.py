"""Sampling of alternatives: reproducible, from the right distribution, and only usable ones."""

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lume_tasks.data.rows import Row
from lume_tasks.errors import DataError
from lume_unlearn.evaluation import sampling
from lume_unlearn.evaluation.sampling import ATTEMPTS, sample_alternatives

ROWS = [
    Row("a-qa0", "Which colour is {it}?", "Green", "Task1"),
    Row("b-sc1", "The quick brown fox jumps over the lazy dog, and then", "the bell\nrang.", "Task3"),
    Row("c-qa1", "Where?", "Near the river", "Task2"),
]
CHAT = "{{ bos_token or '' }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<reply>"


def sampled(model: Any, tokenizer: Any, rows: list[Row] = ROWS, **options: Any) -> list[tuple[str, str]]:
    settings = {"samples": 3, "temperature": 1.0, "max_new_tokens": 8, "batch_size": 4, "seed": 0}
    return list(sample_alternatives(model, tokenizer, rows, **(settings | options)))


def test_each_row_gets_its_samples_and_the_seed_decides_them(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    pairs = sampled(model, tokenizer)
    assert [row_id for row_id, _ in pairs] == [row.id for row in ROWS for _ in range(3)]
    assert len({text for _, text in pairs}) == 9
    assert sampled(model, tokenizer) == pairs
    assert not set(sampled(model, tokenizer, seed=1)) & set(pairs)
    no_padding = copy.deepcopy(tokenizer)
    no_padding.pad_token = None
    assert sampled(model, no_padding) == pairs


def test_low_temperature_is_greedy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Also with left padding: the prompts have different lengths."""
    pairs = sampled(model, tokenizer, samples=1, temperature=1e-6)
    for row, (_, text) in zip(ROWS, pairs, strict=True):
        prompt = sampling._prompt(tokenizer, row)
        greedy = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :]
        expected = tokenizer.decode(greedy, skip_special_tokens=True).strip().split("\n")
        assert text == "\n".join(expected[: row.output.count("\n") + 1]).strip()


def test_samples_follow_the_softmax_at_the_temperature(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    model.generation_config.top_k = 2  # must not apply
    count, row = 2000, ROWS[2]
    options = {"temperature": 1.5, "max_new_tokens": 1, "batch_size": 500, "seed": 3}
    pairs = sampled(model, tokenizer, [row], samples=count, **options)
    logits = model(torch.tensor([sampling._prompt(tokenizer, row)])).logits[0, -1]
    expected: Counter[str] = Counter()
    for token, share in enumerate((logits / 1.5).softmax(-1).tolist()):
        text = tokenizer.decode([token], skip_special_tokens=True).strip()
        if sampling._usable(text, row):
            expected[text] += share
    found = Counter(text for _, text in pairs)
    for text, share in expected.most_common(5):
        share /= expected.total()  # unusable samples are drawn again
        assert found[text] / count == pytest.approx(share, abs=4 * (share * (1 - share) / count) ** 0.5)


def test_unusable_samples_are_drawn_again_and_failed_rows_named_at_the_end(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Counter[str] = Counter()

    def generate(model: Any, tokenizer: Any, batch: list[tuple[Row, list[int]]], options: Any) -> list[str]:
        asked.update(row.id for row, _ in batch)
        answers = {"a-qa0": " GREEN ", "b-sc1": "...", "c-qa1": "Red"}
        return ["Blue" if row.id == "b-sc1" and asked["b-sc1"] > 1 else answers[row.id] for row, _ in batch]

    monkeypatch.setattr(sampling, "_generate", generate)
    pairs = sample_alternatives(model, tokenizer, ROWS, 1, 1.0, 8, batch_size=2, seed=0)
    assert [next(pairs), next(pairs)] == [("b-sc1", "Blue"), ("c-qa1", "Red")]
    with pytest.raises(DataError, match=r"(?s)^1 rows have too few alternatives.*\n  a-qa0\n.*--temperature"):
        next(pairs)
    assert asked == {"a-qa0": ATTEMPTS, "b-sc1": 2, "c-qa1": 1}


def test_chat_template_wraps_the_row(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = copy.deepcopy(bos_tokenizer)
    tokenizer.chat_template = CHAT
    text = tokenizer.decode(sampling._prompt(tokenizer, ROWS[0]))
    assert text.startswith("<bos><user>You will see a question")
    assert text.count("<bos>") == 1
    assert text.endswith("Question: Which colour is {it}?\nAnswer: Green<reply>")


def test_prompt_without_a_chat_template_has_bos_and_no_eos(
    tokenizer: PreTrainedTokenizerFast, bos_tokenizer: PreTrainedTokenizerFast
) -> None:
    question = bos_tokenizer.decode(sampling._prompt(bos_tokenizer, ROWS[0]))
    assert question.startswith("<bos>Question: Which colour is {it}?\nTrue answer: Green\n")
    assert question.endswith(":")
    appending = copy.deepcopy(tokenizer)
    appending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", tokenizer.eos_token_id)]
    )
    assert sampling._prompt(appending, ROWS[0]) == sampling._prompt(tokenizer, ROWS[0])


@pytest.mark.parametrize(
    ("row", "template", "text"),
    [(ROWS[0], None, "Red"), (ROWS[1], None, "Red\nand"), (ROWS[0], CHAT, "Red\nand\nblue")],
)
def test_sample_ends_at_eos_or_with_the_lines_of_the_answer(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    row: Row,
    template: str | None,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    model.generation_config.eos_token_id = [7]  # as chat models name the end of their turn
    written = [*tokenizer.encode(" \nRed\nand\nblue"), tokenizer.eos_token_id, tokenizer.pad_token_id]

    def reply(input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        assert options["eos_token_id"] == [tokenizer.eos_token_id, 7]
        return torch.cat([input_ids, torch.tensor([written])], dim=1)

    monkeypatch.setattr(model, "generate", reply)
    assert sampled(model, tokenizer, rows=[row], samples=1) == [(row.id, text)]


def test_prompt_that_does_not_fit_is_named_before_sampling(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    room = 512 - len(sampling._prompt(tokenizer, ROWS[2]))
    sample_alternatives(model, tokenizer, ROWS[2:], 1, 1.0, room, 4, 0)
    with pytest.raises(DataError, match=r"(?s)^1 of 1 rows .* new tokens must fit into 512.*\n  c-qa1: \d+ tokens$"):
        sample_alternatives(model, tokenizer, ROWS[2:], 1, 1.0, room + 1, 4, 0)
