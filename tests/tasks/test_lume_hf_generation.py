"""What the model class generates, against the stock one, and in what batches."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lume_tasks.errors import DataError
from lume_tasks.models import hf
from lume_tasks.models.hf import LumeHF
from lume_tasks.tasks.generation import NewTokens

Make = Callable[..., Any]

PROMPTS = [
    "The quick brown fox",
    "7",
    "the river and the fox " * 20,
    "Élodie wrote to élan",
    "What is the birth date of Ada?",
    "the river and the fox " * 5,
    "The quick brown fox",
    "Numbers: 0 1 2 3",
]


def instances(*prompts: str, **options: Any) -> list[Instance]:
    options = {"until": [], "do_sample": False, "max_gen_toks": 12} | options
    return [Instance("generate_until", {}, (prompt, dict(options)), i) for i, prompt in enumerate(prompts)]


def texts(lm: HFLM, *prompts: str, **options: Any) -> list[str]:
    answers: list[str] = lm.generate_until(instances(*(prompts or PROMPTS), **options), disable_tqdm=True)
    return answers


@pytest.fixture
def stopping(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """A model that says EOS after some prompts early, after some late and after some not at all."""
    with torch.no_grad():
        model.lm_head.weight[1] *= 3
    return model


@pytest.fixture
def make(stopping: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Make:
    def make(kind: type[HFLM] = LumeHF, **options: Any) -> HFLM:
        return kind(**{"pretrained": stopping, "tokenizer": tokenizer, "device": "cpu", "batch_size": 4} | options)

    return make


@pytest.fixture
def batches(stopping: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The shapes of the inputs of all generations."""
    shapes: list[tuple[int, int]] = []
    generate = stopping.generate

    def record(input_ids: torch.Tensor, **options: Any) -> Any:
        shapes.append(tuple(input_ids.shape))
        return generate(input_ids=input_ids, **options)

    monkeypatch.setattr(stopping, "generate", record)
    return shapes


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 64, "auto"])
def test_texts_are_those_of_the_stock_class(
    make: Make, bos: bool, batch_size: int | str, bos_tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer = {"tokenizer": bos_tokenizer} if bos else {}
    stock = texts(make(HFLM, batch_size=1, **tokenizer))
    assert texts(make(batch_size=batch_size, **tokenizer)) == stock
    assert len({len(text) for text in stock}) > 3  # some stopped by themselves


def middle(text: str) -> str:
    return text[len(text) // 2 :][:3]


def test_stop_texts_are_those_of_the_stock_class(make: Make) -> None:
    plain = texts(make())
    until = [middle(max(plain, key=len)), "never"]
    cut = texts(make(), until=until)
    assert cut == texts(make(HFLM, batch_size=1), until=until) != plain


@pytest.mark.parametrize("as_token", [False, True])
def test_thinking_is_left_out_as_in_the_stock_class(
    make: Make, as_token: bool, tokenizer: PreTrainedTokenizerFast
) -> None:
    plain = texts(make())
    longest = max(plain, key=len)
    ids = tokenizer.encode(longest)
    end = {"think_end_token": ids[len(ids) // 2] if as_token else middle(longest)}
    assert texts(make(**end)) == texts(make(HFLM, batch_size=1, **end)) != plain


def test_prompts_are_cut_on_the_left_with_a_warning_and_as_the_stock_class_does(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    assert texts(make(max_length=30)) == texts(make(HFLM, batch_size=1, max_length=30)) != texts(make())
    messages = [record.message for record in caplog.records if record.name == "lume_tasks"]
    assert messages == ["lume-hf: 2 of 8 prompts are cut on the left to leave room for the new tokens"]


def test_the_end_of_a_prompt_is_never_cut(make: Make) -> None:
    with pytest.raises(DataError, match="truncation=true"):
        make(truncation=True)


def test_new_tokens_need_room(make: Make) -> None:
    texts(make(max_length=13))
    with pytest.raises(DataError, match="12 new tokens leave no room for a prompt, because the model reads 12 at once"):
        texts(make(max_length=12))


def test_rows_of_two_groups_never_share_a_batch(make: Make, batches: list[tuple[int, int]]) -> None:
    requests = instances(*PROMPTS)
    for index, request in enumerate(requests):
        request.args[1]["max_gen_toks"] = NewTokens(12, "long" if index % 3 else "short")
    lm = make(batch_size=64)
    answers = lm.generate_until(requests, disable_tqdm=True)
    assert [rows for rows, _ in batches] == [3, 5]
    assert answers == texts(make(HFLM, batch_size=1))


def test_longest_prompts_come_first(make: Make, batches: list[tuple[int, int]]) -> None:
    lm = make(batch_size=3)
    texts(lm)
    widths = sorted((len(lm.tok_encode(prompt)) for prompt in PROMPTS), reverse=True)
    assert batches == [(3, widths[0]), (3, widths[3]), (2, widths[6])]


def test_only_equal_options_share_a_batch(make: Make, batches: list[tuple[int, int]]) -> None:
    requests = instances(*PROMPTS[:3]) + instances(*PROMPTS[3:], max_gen_toks=5)
    lm = make(batch_size=64)
    answers = lm.generate_until(requests, disable_tqdm=True)
    assert [rows for rows, _ in batches] == [3, 5]
    assert answers == texts(lm)[:3] + texts(lm, max_gen_toks=5)[3:]


def test_each_prompt_is_tokenised_once(
    make: Make, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    encode = type(tokenizer)._encode_plus

    def record(self: Any, text: Any, *args: Any, **options: Any) -> Any:
        seen.extend([text] if isinstance(text, str) else text)
        return encode(self, text, *args, **options)

    monkeypatch.setattr(type(tokenizer), "_encode_plus", record)
    texts(make())
    assert sorted(seen) == sorted(PROMPTS)


@pytest.mark.parametrize(("ends", "wanted_ends"), [(0, [0, 1]), (1, [1]), (7, [1, 7]), ([1, 7], [1, 7]), (None, [1])])
def test_eos_of_the_tokenizer_and_of_the_model_end_a_row(
    make: Make, stopping: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, ends: Any, wanted_ends: list[int]
) -> None:
    stopping.generation_config.eos_token_id = ends
    wanted = texts(make(HFLM, batch_size=1))  # with more, its rows go on until all of them have an end
    stops: list[tuple[list[str], list[int]]] = []
    generate = HFLM._model_generate

    def record(self: HFLM, **options: Any) -> Any:
        stops.append((options["stop"], options["eos_token_id"]))
        return generate(self, **options)

    monkeypatch.setattr(HFLM, "_model_generate", record)
    assert texts(make(batch_size=64)) == wanted
    texts(make(batch_size=64), until=["\n\n"])
    assert stops == [([], wanted_ends), (["\n\n"], wanted_ends)]  # EOS is not looked for in texts


def no_memory(model: LlamaForCausalLM, rows: int, error: type[RuntimeError]) -> Any:
    """Let the model run out of memory with more than so many rows; tells the rows of every call."""
    calls: list[int] = []

    def check(_: Any, args: Any, options: Any) -> None:
        inputs = args[0] if args else options["input_ids"]
        calls.append(len(inputs))
        if len(inputs) > rows:
            raise error("CUDA out of memory. Tried to allocate 20.00 MiB")

    return SimpleNamespace(calls=calls, remove=model.register_forward_pre_hook(check, with_kwargs=True).remove)


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize("batch_size", [8, "auto"])
def test_generation_goes_on_with_half_where_memory_runs_out(
    make: Make, stopping: LlamaForCausalLM, batches: list[tuple[int, int]], batch_size: Any, error: type[RuntimeError]
) -> None:
    wanted = texts(make(batch_size=8))
    cached: list[Any] = []
    no_memory(stopping, 2, error)
    lm = make(batch_size=batch_size)
    lm.set_cache_hook(SimpleNamespace(add_partial=lambda *args: cached.append(args)))
    batches.clear()
    assert texts(lm) == wanted
    assert [rows for rows, _ in batches][:3] == [8, 4, 2]
    assert [(args[0], text) for _, args, text in cached] != list(zip(PROMPTS, wanted, strict=True))  # another order
    assert sorted((args[0], text) for _, args, text in cached) == sorted(zip(PROMPTS, wanted, strict=True))
    batches.clear()
    assert texts(lm, *PROMPTS[:4]) == wanted[:4]
    assert max(rows for rows, _ in batches) <= 4  # what did not fit is not tried again


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize("batch_size", [8, "auto"])
def test_scoring_goes_on_with_half_where_memory_runs_out(
    make: Make, stopping: LlamaForCausalLM, batch_size: Any, error: type[RuntimeError]
) -> None:
    requests = [Instance("loglikelihood", {}, (prompt, " jumps"), i) for i, prompt in enumerate(PROMPTS)]
    wanted = [float(sum_) for sum_, _ in make(batch_size=1).loglikelihood(requests, disable_tqdm=True)]
    memory = no_memory(stopping, 3, error)
    lm = make(batch_size=batch_size)
    for first in (7, 3):  # one of the eight requests stands there twice
        memory.calls.clear()
        answers = lm.loglikelihood(requests, disable_tqdm=True)
        assert [float(sum_) for sum_, _ in answers] == pytest.approx(wanted, abs=1e-5)
        assert memory.calls[0] <= first
        assert sum(rows for rows in memory.calls if rows <= 3) == 7


def test_one_row_that_does_not_fit_is_told(make: Make, stopping: LlamaForCausalLM) -> None:
    no_memory(stopping, 0, torch.cuda.OutOfMemoryError)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        texts(make(batch_size=8))


def test_automatic_batches_are_bounded_on_a_cpu(
    make: Make, batches: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf, "CPU_GENERATION_TOKENS", 100)
    monkeypatch.setattr(hf, "CPU_SCORING_TOKENS", 40)
    lm = make(batch_size="auto")
    assert texts(lm) == texts(make(HFLM, batch_size=1))
    ours = batches[: -len(PROMPTS)]
    assert all(rows == 1 or rows * (width + 12) <= 100 for rows, width in ours)
    assert 1 < max(rows for rows, _ in ours) < len(PROMPTS)
    assert sum(rows for rows, _ in ours) == len(PROMPTS)


def test_automatic_batches_have_a_most_of_rows(make: Make, batches: list[tuple[int, int]]) -> None:
    texts(make(batch_size="auto", max_batch_size=3))
    assert [rows for rows, _ in batches] == [3, 3, 2]
    batches.clear()
    texts(make(batch_size="auto"), *["7"] * 300)
    assert [rows for rows, _ in batches] == [256, 44]
