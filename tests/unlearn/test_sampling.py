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


def test_each_row_gets_its_samples_in_order_and_they_differ(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    pairs = sampled(model, tokenizer)
    assert [row_id for row_id, _ in pairs] == [row.id for row in ROWS for _ in range(3)]
    assert len({text for _, text in pairs}) == 9
    assert all(text and text == text.strip() for _, text in pairs)


def test_same_arguments_give_the_same_samples_and_another_seed_gives_others(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    pairs = sampled(model, tokenizer)
    torch.manual_seed(123)
    assert sampled(model, tokenizer) == pairs
    assert not set(sampled(model, tokenizer, seed=1)) & set(pairs)


def test_low_temperature_is_greedy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Also with left padding: the rows have prompts of different lengths."""
    pairs = sampled(model, tokenizer, samples=1, temperature=1e-6)
    for row, (_, text) in zip(ROWS, pairs, strict=True):
        prompt = sampling._prompt(tokenizer, row)
        greedy = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :]
        expected = tokenizer.decode(greedy, skip_special_tokens=True).strip().split("\n")
        assert text == "\n".join(expected[: row.output.count("\n") + 1]).strip()


def test_samples_follow_the_softmax_at_the_temperature(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Although the model's own settings name a top-k."""
    model.generation_config.top_k = 2
    count, row = 2000, ROWS[2]
    pairs = sampled(
        model, tokenizer, rows=[row], samples=count, temperature=1.5, max_new_tokens=1, batch_size=500, seed=3
    )
    logits = model(torch.tensor([sampling._prompt(tokenizer, row)])).logits[0, -1]
    expected: Counter[str] = Counter()
    for token, share in enumerate((logits / 1.5).softmax(-1).tolist()):
        text = tokenizer.decode([token], skip_special_tokens=True).strip()
        if sampling._usable(text, row):
            expected[text] += share
    found = Counter(text for _, text in pairs)
    for text, share in expected.most_common(5):
        share /= expected.total()  # unusable ones are sampled again
        assert found[text] / count == pytest.approx(share, abs=4 * (share * (1 - share) / count) ** 0.5)


def test_tokenizer_without_padding_token(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None
    assert sampled(model, bare) == sampled(model, tokenizer)


def scripted(monkeypatch: pytest.MonkeyPatch, *texts: str) -> list[list[tuple[Row, list[int]]]]:
    """Let attempt number i at a batch give the i-th text (then the last one); returns what each attempt was asked."""
    asked: list[list[tuple[Row, list[int]]]] = []
    attempts: Counter[str] = Counter()

    def generate(model: Any, tokenizer: Any, batch: list[tuple[Row, list[int]]], options: Any) -> list[str]:
        asked.append(batch)
        number = max(attempts[row.id] for row, _ in batch)
        attempts.update({row.id for row, _ in batch})
        return [texts[min(number, len(texts) - 1)]] * len(batch)

    monkeypatch.setattr(sampling, "_generate", generate)
    return asked


def test_a_sample_without_words_or_equal_to_the_answer_is_sampled_again(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = scripted(monkeypatch, "...", "green.", "Red")
    expected = [("a-qa0", "Red"), ("b-sc1", "green."), ("c-qa1", "green.")]
    assert sampled(model, tokenizer, samples=1, batch_size=2) == expected
    ids = [[row.id for row, _ in batch] for batch in asked]
    assert ids == [["a-qa0", "b-sc1"], ["a-qa0", "b-sc1"], ["a-qa0"], ["c-qa1"], ["c-qa1"]]


def test_rows_without_usable_samples_are_named_at_the_end(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = scripted(monkeypatch, " GREEN ")
    pairs = sample_alternatives(model, tokenizer, ROWS, 2, 1.0, 8, 2, 0)
    assert [row_id for row_id, _ in (next(pairs) for _ in range(4))] == ["b-sc1", "b-sc1", "c-qa1", "c-qa1"]
    with pytest.raises(DataError, match=r"(?s)^1 rows have too few alternatives.*\n  a-qa0\n.*--temperature"):
        next(pairs)
    assert len(asked) == ATTEMPTS + 2


def test_the_chat_template_wraps_the_row(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = copy.deepcopy(bos_tokenizer)
    tokenizer.chat_template = CHAT
    for row in ROWS:
        text = tokenizer.decode(sampling._prompt(tokenizer, row))
        assert text.startswith("<bos><user>")
        assert text.count("<bos>") == 1
        assert text.endswith("<reply>")
        assert row.input in text
        assert row.output in text


def test_plain_prompt_without_a_chat_template(
    tokenizer: PreTrainedTokenizerFast, bos_tokenizer: PreTrainedTokenizerFast
) -> None:
    question = bos_tokenizer.decode(sampling._prompt(bos_tokenizer, ROWS[0]))
    assert question.startswith("<bos>Question: Which colour is {it}?\nTrue answer: Green\n")
    assert question.endswith(":")  # no EOS, no space: the model continues from here
    assert bos_tokenizer.decode(sampling._prompt(bos_tokenizer, ROWS[1])).startswith("<bos>Beginning: The quick brown")
    ending = copy.deepcopy(tokenizer)
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", tokenizer.eos_token_id)]
    )
    assert sampling._prompt(ending, ROWS[0]) == sampling._prompt(tokenizer, ROWS[0])  # an appended EOS is removed


@pytest.mark.parametrize(
    ("row", "template", "text"),
    [(ROWS[0], None, "Red"), (ROWS[1], None, "Red\nand"), (ROWS[0], CHAT, "Red\nand\nblue")],
)
def test_a_sample_ends_at_eos_or_with_the_lines_of_the_answer(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    row: Row,
    template: str | None,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    model.generation_config.eos_token_id = [7]  # chat models name their end of turn here
    written = [*tokenizer.encode(" \nRed\nand\nblue"), tokenizer.eos_token_id, tokenizer.pad_token_id]
    seen: dict[str, Any] = {}

    def reply(input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.update(options)
        return torch.cat([input_ids, torch.tensor([written])], dim=1)

    monkeypatch.setattr(model, "generate", reply)
    assert sampled(model, tokenizer, rows=[row], samples=1) == [(row.id, text)]
    assert seen["eos_token_id"] == [tokenizer.eos_token_id, 7]


def test_a_prompt_that_does_not_fit_is_named_before_sampling(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [*ROWS, Row("long-sc1", "word " * 400, "end", "Task1")]
    with pytest.raises(
        DataError, match=r"(?s)^1 of 4 rows .* 8 new tokens must fit into 512.*\n  long-sc1: \d+ tokens$"
    ):
        sample_alternatives(model, tokenizer, rows, 1, 1.0, 8, 4, 0)
    prompt = len(tokenizer.encode("Question: Where?\nTrue answer: Near the river\nMade-up answer of the same form:"))
    sample_alternatives(model, tokenizer, ROWS[2:], 1, 1.0, 512 - prompt, 4, 0)  # just fits
    with pytest.raises(DataError, match="c-qa1"):
        sample_alternatives(model, tokenizer, ROWS[2:], 1, 1.0, 513 - prompt, 4, 0)
