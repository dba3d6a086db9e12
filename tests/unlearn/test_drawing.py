"""Drawing alternatives: from the right distribution, each by its own numbers, and only usable ones."""

import copy
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lume_tasks.rows import DataError, Row
from lume_unlearn import drawing
from lume_unlearn.drawing import DRAWS, Draw, GumbelNoise, Sampler, generate, left_padded

ROWS = [
    Row("a-qa0", "Which colour is {it}?", "Green", "Task1"),
    Row("b-sc1", "The quick brown fox jumps over the lazy dog, and then", "the bell\nrang.", "Task3"),
    Row("c-qa1", "Where?", "Near the river", "Task2"),
]
CHAT = "{{ bos_token or '' }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<reply>"


def drawn(model: Any, tokenizer: Any, rows: list[Row] = ROWS, **options: Any) -> list[tuple[str, str]]:
    settings = {"samples": 3, "temperature": 1.0, "max_new_tokens": 8, "batch_size": 4, "seed": 0}
    return list(generate(model, tokenizer, rows, **(settings | options)))


def test_each_row_gets_its_samples_in_order_and_they_differ(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    pairs = drawn(model, tokenizer)
    assert [row_id for row_id, _ in pairs] == [row.id for row in ROWS for _ in range(3)]
    assert len({text for _, text in pairs}) == 9
    assert all(text and text == text.strip() for _, text in pairs)


def test_neither_batches_nor_other_rows_matter_but_the_seed_does(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    pairs = drawn(model, tokenizer)
    torch.manual_seed(123)  # nor does the state of the global source
    assert drawn(model, tokenizer, batch_size=1) == pairs
    assert drawn(model, tokenizer, batch_size=9) == pairs
    assert drawn(model, tokenizer, rows=ROWS[:0:-1], samples=2) == pairs[6:8] + pairs[3:5]
    assert not set(drawn(model, tokenizer, seed=1)) & set(pairs)


def test_a_low_temperature_is_greedy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    sampler = Sampler(model, tokenizer, 1e-6, 8, seed=0)
    prompt = tokenizer.encode("The quick brown fox")
    greedy = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :]
    expected = tokenizer.decode(greedy, skip_special_tokens=True).strip()
    assert sampler.sample([Draw(ROWS[1], i, prompt) for i in range(2)], 0) == [expected, expected]


def test_noise_draws_from_the_softmax_at_the_temperature() -> None:
    logits = torch.tensor([[4.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, -float("inf")]])
    noise = GumbelNoise(2.0, [torch.Generator().manual_seed(0)])
    count = 10000
    draws = Counter(int(noise(None, logits).argmax()) for _ in range(count))
    for token, share in enumerate((logits[0] / 2).softmax(-1).tolist()):
        assert draws[token] / count == pytest.approx(share, abs=4 * (share * (1 - share) / count) ** 0.5)


def test_padding_stands_in_front() -> None:
    ids, mask = left_padded([[5, 6, 7], [8]], pad=0)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_a_tokenizer_without_padding_draws_the_same(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None
    assert drawn(model, bare) == drawn(model, tokenizer)
    assert bare.pad_token is None


def scripted(monkeypatch: pytest.MonkeyPatch, *texts: str) -> list[list[Draw]]:
    """Let attempt number i give the i-th text (the last one again and again); returns the draws of each attempt."""
    asked: list[list[Draw]] = []

    def sample(self: Sampler, draws: list[Draw], attempt: int) -> list[str]:
        asked.append(draws)
        return [texts[min(attempt, len(texts) - 1)]] * len(draws)

    monkeypatch.setattr(drawing.Sampler, "sample", sample)
    return asked


def test_a_text_without_words_and_the_true_answer_are_drawn_again(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = scripted(monkeypatch, "...", "green.", "Red")
    assert drawn(model, tokenizer, samples=1, batch_size=2) == [
        ("a-qa0", "Red"),
        ("b-sc1", "green."),
        ("c-qa1", "green."),
    ]
    assert [[draw.row.id for draw in draws] for draws in asked] == [
        ["a-qa0", "b-sc1"],
        ["a-qa0", "b-sc1"],
        ["a-qa0"],
        ["c-qa1"],
        ["c-qa1"],
    ]


def test_a_row_is_given_up_by_name_after_some_draws(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = scripted(monkeypatch, " GREEN ")
    pairs = generate(model, tokenizer, ROWS, 2, 1.0, 8, 2, 0)
    assert [row_id for row_id, _ in (next(pairs) for _ in range(4))] == ["b-sc1", "b-sc1", "c-qa1", "c-qa1"]
    with pytest.raises(DataError, match=r"(?s)^1 rows have too few alternatives.*\n  a-qa0\n.*--temperature"):
        next(pairs)
    assert len(asked) == DRAWS + 2


@pytest.mark.parametrize("text", ["", "Red\0", "\ud800", " ? "])
def test_a_text_that_the_file_could_not_hold_is_never_given(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    scripted(monkeypatch, text, "Red")
    assert drawn(model, tokenizer, samples=1) == [(row.id, "Red") for row in ROWS]


def test_the_chat_template_frames_the_row(
    model: LlamaForCausalLM, bos_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = scripted(monkeypatch, "other")
    tokenizer = copy.deepcopy(bos_tokenizer)
    tokenizer.chat_template = CHAT
    drawn(model, tokenizer, samples=1)
    for draw in asked[0]:
        text = tokenizer.decode(draw.prompt)
        assert text.startswith("<bos><user>")
        assert text.count("<bos>") == 1
        assert text.endswith("<reply>")
        assert draw.row.input in text
        assert draw.row.output in text


def test_without_a_chat_template_the_row_is_framed_plainly(
    model: LlamaForCausalLM, bos_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = scripted(monkeypatch, "other")
    drawn(model, bos_tokenizer, samples=1)
    question = bos_tokenizer.decode(asked[0][0].prompt)
    assert question.startswith("<bos>Question: Which colour is {it}?\nTrue answer: Green\n")
    assert question.endswith(":")  # no EOS, no space: the model goes on from here
    assert bos_tokenizer.decode(asked[0][1].prompt).startswith("<bos>Beginning: The quick brown fox")


def test_an_eos_that_the_tokenizer_puts_behind_the_prompt_is_taken_off(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = scripted(monkeypatch, "other")
    ending = copy.deepcopy(tokenizer)
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", tokenizer.eos_token_id)]
    )
    assert ending.encode("a")[-1] == tokenizer.eos_token_id
    drawn(model, ending, samples=1)
    drawn(model, tokenizer, samples=1)
    assert asked[0] == asked[1]


@pytest.mark.parametrize(
    ("row", "template", "text"),
    [(ROWS[0], None, "Red"), (ROWS[1], None, "Red\nand"), (ROWS[0], CHAT, "Red\nand\nblue")],
)
def test_a_text_ends_at_eos_or_with_the_answers_lines(
    tokenizer: PreTrainedTokenizerFast, row: Row, template: str | None, text: str
) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    stop = 7  # named by the model alone, as chat models name their end of turn
    written = [*tokenizer.encode(" \nRed\nand\nblue"), stop, *tokenizer.encode("more"), tokenizer.eos_token_id]
    seen: dict[str, Any] = {}

    def reply(input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.update(options)
        return torch.cat([input_ids, torch.tensor([written])], dim=1)

    model = SimpleNamespace(
        device=torch.device("cpu"), generation_config=SimpleNamespace(eos_token_id=[stop]), generate=reply
    )
    assert Sampler(model, tokenizer, 1.0, 8, 0).sample([Draw(row, 0, [3, 4])], 0) == [text]
    assert seen["generation_config"].eos_token_id == [tokenizer.eos_token_id, stop]


def test_a_prompt_that_does_not_fit_is_named_before_anything_is_drawn(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [*ROWS, Row("long-sc1", "word " * 400, "end", "Task1")]
    with pytest.raises(
        DataError, match=r"(?s)^1 of 4 rows .* 8 new tokens must fit into 512.*\n  long-sc1: \d+ tokens$"
    ):
        generate(model, tokenizer, rows, 1, 1.0, 8, 4, 0)
    prompt = len(tokenizer.encode("Question: Where?\nTrue answer: Near the river\nMade-up answer of the same form:"))
    generate(model, tokenizer, ROWS[2:], 1, 1.0, 512 - prompt, 4, 0)  # just fits
    with pytest.raises(DataError, match="c-qa1"):
        generate(model, tokenizer, ROWS[2:], 1, 1.0, 513 - prompt, 4, 0)
