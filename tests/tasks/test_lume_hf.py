"""The model class against the stock one and against the plain model."""

import importlib.metadata
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import lm_eval.models
import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model, model_registry
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lume_tasks import _startup
from lume_tasks.errors import DataError
from lume_tasks.metrics.token_scores import TokenScores
from lume_tasks.models.hf import ALIKE, LumeHF
from tests.conftest import make_model
from tests.tasks.conftest import token_values

Make = Callable[..., LumeHF]

REQUESTS = [
    ("The quick", " brown fox jumps over the lazy dog near the river."),
    ("Numbers:", " 0 1 2 3 4"),
    ("", "The river and the café"),
    ("The fox ", "jumps"),
    ("T", "he quick brown fox " + "the river and " * 20),
    *[(f"Question {i}? " + "about the fox " * i + "Answer:", f" {letter}") for i in range(3) for letter in "ABCD"],
    ("The quick", " brown fox jumps over the lazy dog near the river."),  # twice
    ("The quick brown", " fox jumps over the lazy river"),  # up to its last token the next one, cut elsewhere
    ("The quick brown fox", " jumps over the lazy dog"),
]


def encode(tokenizer: PreTrainedTokenizerFast, context: str, continuation: str) -> tuple[list[int], int]:
    """The tokens that the harness scores, and where the continuation begins."""
    start = tokenizer.encode(context.rstrip())
    return start + tokenizer.encode(context + continuation)[len(start) :], len(start)


def score(lm: HFLM, requests: list[tuple[str, str]] = REQUESTS, task: str = "some_task") -> list[Any]:
    instances = [Instance("loglikelihood", {}, args, 0, (task, i, 1)) for i, args in enumerate(requests)]
    return lm.loglikelihood(instances, disable_tqdm=True)


def assert_sums_of_stock_class(ours: list[Any], stock: list[Any]) -> None:
    assert [float(sum_) for sum_, _ in ours] == pytest.approx([sum_ for sum_, _ in stock], abs=1e-5, rel=1e-5)


@pytest.fixture
def make(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Make:
    def make(kind: type[HFLM] = LumeHF, **options: Any) -> HFLM:
        return kind(**{"pretrained": model, "tokenizer": tokenizer, "device": "cpu", "batch_size": 4} | options)

    return make  # type: ignore[return-value]


@pytest.fixture
def passes(model: LlamaForCausalLM) -> list[tuple[int, int]]:
    """Shapes of the inputs of all forward passes."""
    shapes: list[tuple[int, int]] = []
    model.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    return shapes


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_sums_and_greedy_are_those_of_the_stock_class(make, bos, batch_size, bos_tokenizer) -> None:
    tokenizer = {"tokenizer": bos_tokenizer} if bos else {}
    # Its cache (0.4.13) takes the wrong positions of the shorter one of two requests that are cut at different places.
    stock = score(make(HFLM, batch_size=1, logits_cache=False, **tokenizer))
    ours = score(make(batch_size=batch_size, **tokenizer))
    assert_sums_of_stock_class(ours, stock)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in stock]
    assert len({round(sum_, 3) for sum_, _ in stock}) == len(REQUESTS) - 1


def test_values_of_each_token_are_those_of_the_plain_model(make, model, tokenizer) -> None:
    requests = [args for args in REQUESTS if args[0]]
    for (context, continuation), (scores, greedy) in zip(requests, score(make(), requests), strict=True):
        assert type(scores) is TokenScores
        expected = token_values(model, *encode(tokenizer, context, continuation))
        for name, values in zip(("logprobs", "mean", "variance", "greedy"), expected, strict=True):
            assert np.allclose(getattr(scores, name), values, rtol=0, atol=1e-5)
        assert greedy == scores.greedy.all()
        assert scores.grad_norm is None


def test_requests_that_read_the_same_tokens_share_a_row(make: Make, passes: list[tuple[int, int]]) -> None:
    score(make(batch_size=1))
    # Less three choices each of three questions, the repeated request, and the one that is cut elsewhere.
    assert len(passes) == len(REQUESTS) - 3 * 3 - 1 - 1
    widths = [width for _, width in passes]
    assert [width // ALIKE for width in widths] == sorted((width // ALIKE for width in widths), reverse=True)
    passes.clear()
    score(make(batch_size=5))
    assert sum(rows for rows, _ in passes) == len(widths)
    assert [rows for rows, _ in passes[:-1]] == [5] * (len(passes) - 1)


@pytest.mark.parametrize(
    ("family", "options", "shared"),
    [
        ("llama", {}, True),
        ("gpt2", {}, True),
        ("olmo", {}, True),
        ("bloom", {}, True),
        ("opt", {"word_embed_proj_dim": 32, "ffn_dim": 64}, True),
        ("mistral", {"sliding_window": 8}, False),
        ("mamba", {"state_size": 4, "num_hidden_layers": 1}, False),
    ],
)
def test_a_beginning_that_rows_share_is_read_once(family: str, options: Any, shared: bool, tokenizer: Any) -> None:
    model = make_model(family=family, **options)
    beginning = "The quick brown fox jumps over the lazy dog near the river. " * 3
    requests = [(beginning + name, f" and the {name} again") for name in ("fox", "dog", "the river", "fox jumps")]
    shapes: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    lm = LumeHF(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=4)
    together = score(lm, requests)
    assert (tuple(rows for rows, _ in shapes) == (1, 4)) == shared
    if shared:
        assert shapes[1][1] < shapes[0][1]
    alone = [score(lm, [request])[0] for request in requests]
    for (scores, greedy), (expected, expected_greedy) in zip(together, alone, strict=True):
        assert scores.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
        assert greedy == expected_greedy


@pytest.fixture
def outputs(model: LlamaForCausalLM) -> list[tuple[int, ...]]:
    """Shapes of what the output layer computes."""
    shapes: list[tuple[int, ...]] = []
    model.lm_head.register_forward_hook(lambda layer, inputs, logits: shapes.append(tuple(logits.shape)))
    return shapes


def test_output_layer_computes_each_scored_position_once(make: Make, outputs: list[Any]) -> None:
    score(make(), [request for request in REQUESTS if request[0].startswith("Question")])
    assert outputs[-1] == (1, 6, 400)  # three questions, whose letters are two tokens


def test_all_logits_are_computed_where_no_output_layer_is_known(make, model, outputs, monkeypatch) -> None:
    picked = score(make())
    outputs.clear()
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    full = score(make())
    assert {shape[0] for shape in outputs[:-1]} == {4}
    for (scores, greedy), (expected, expected_greedy) in zip(full, picked, strict=True):
        assert scores.logprobs == pytest.approx(expected.logprobs, abs=1e-5)
        assert scores.variance == pytest.approx(expected.variance, abs=1e-5)
        assert greedy == expected_greedy


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gemma2", {"final_logit_softcapping": 2.0, "head_dim": 8}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 4.0}),
    ],
)
def test_capped_and_scaled_logits_are_those_of_the_stock_class(make, family, options) -> None:
    changed = make_model(family=family, **options)
    stock = score(make(HFLM, pretrained=changed, batch_size=1, logits_cache=False))
    assert_sums_of_stock_class(score(make(pretrained=changed)), stock)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=["lm_head", "q_proj"], init_lora_weights=False),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ],
)
def test_adapter_of_the_output_layer_and_virtual_tokens_take_part(make, model, outputs, config) -> None:
    requests = REQUESTS[:2]
    plain = score(make(), requests)
    torch.manual_seed(0)
    adapted = get_peft_model(model, config)
    ours = score(make(pretrained=adapted), requests)
    assert {shape[0] for shape in outputs} == {1}
    assert_sums_of_stock_class(ours, score(make(HFLM, pretrained=adapted, batch_size=1, logits_cache=False), requests))
    assert float(ours[0][0]) != pytest.approx(float(plain[0][0]), abs=1e-3)


def test_the_progress_bar_counts_tokens_since_long_rows_come_first(make: Make, passes: list[tuple[int, int]]) -> None:
    with mock.patch("lume_tasks.models.hf.tqdm") as bar:
        score(make())
    steps = [call.args[0] for call in bar.return_value.__enter__.return_value.update.call_args_list]
    assert len(steps) == len(passes)
    assert steps == sorted(steps, reverse=True)
    assert sum(steps) == bar.call_args.kwargs["total"]


def test_rolling_windows_are_those_of_the_stock_class(make: Make) -> None:
    texts = ["The quick brown fox", "the river and the fox " * 12]
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0, ("task", i, 1)) for i, text in enumerate(texts)]
    ours, stock = (make(kind, max_length=20).loglikelihood_rolling(requests, True) for kind in (LumeHF, HFLM))
    assert [float(value) for value in ours] == pytest.approx(stock, abs=1e-4)


@pytest.mark.parametrize("options", [{"backend": "seq2seq"}, {"batch_size": "auto:4"}, {"truncation": True}])
def test_unsupported_arguments_are_refused(make: Make, options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="lume-hf"):
        make(**options)


def test_a_context_is_cut_as_the_stock_class_does_and_a_continuation_never(make, caplog) -> None:
    requests = [("the river and the fox " * 10, " jumps over the lazy dog"), ("The fox", " jumps")]
    with caplog.at_level(logging.WARNING, "lume_tasks"):
        ours = score(make(max_length=20), requests)
    assert_sums_of_stock_class(ours, score(make(HFLM, max_length=20), requests))
    assert "1 of 2 contexts are cut on the left to fit the model's 20 tokens" in caplog.text
    with pytest.raises(DataError, match="a text to score has 21 tokens, but the model reads 20 at once"):
        make(max_length=20)._loglikelihood_tokens([(("a", "b"), [5], [5] * 21)], True)


def plain_gradient_norm(model: LlamaForCausalLM, ids: list[int], start: int) -> float:
    """By ``.backward()`` on transformers' own loss, with the labels before ``start`` masked."""
    model.zero_grad()
    labels = torch.tensor([[-100] * start + ids[start:]])
    model(torch.tensor([ids]), labels=labels).loss.backward()
    norms = [parameter.grad.norm().item() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    return sum(norms) / len(norms)


def test_gradient_norm_is_that_of_the_plain_model(make, model, tokenizer, passes) -> None:
    requests = [("The", " quick brown fox"), ("T", "he river and the fox"), ("The", " quick brown cat")]
    requests.append(requests[0])
    plain = score(make(), requests)
    passes.clear()
    answers = score(make(gradnorm=True), requests, task="lume_mia")
    assert [shape[0] for shape in passes] == [1] * 4  # one forward pass a document gives scores and gradient
    assert score(make(gradnorm=True), requests, task="lume_mmlu_letters")[0][0].grad_norm is None
    for (context, continuation), (scores, greedy), (sum_, same) in zip(requests, answers, plain, strict=True):
        plain_norm = plain_gradient_norm(model, *encode(tokenizer, context, continuation))
        assert scores.grad_norm == pytest.approx(plain_norm, rel=1e-5)
        assert (float(scores), greedy) == (pytest.approx(sum_, abs=1e-5), same)
    assert answers[0][0].grad_norm != answers[2][0].grad_norm


def test_frozen_weights_take_part_in_the_gradient_and_stay_frozen(make, model) -> None:
    norm = score(make(gradnorm=True), REQUESTS[:1], task="lume_mia")[0][0].grad_norm
    frozen = model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)  # as those below an adapter
    assert score(make(gradnorm=True), REQUESTS[:1], task="lume_mia")[0][0].grad_norm == norm
    assert not frozen.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bfloat16_is_scored_in_float32(make: Make, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    model.to(torch.bfloat16)
    stock = score(make(HFLM, batch_size=1, softmax_dtype="float32", logits_cache=False))
    assert_sums_of_stock_class(score(make(batch_size=1)), stock)


@pytest.fixture
def vllm_class(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Our class for vLLM over the harness's, with a stand-in for vLLM itself, which needs a GPU."""
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0" if name == "vllm" else version(name))
    contents = {"vllm": ("LLM", "SamplingParams", "TokensPrompt"), "vllm.lora": ()}
    contents |= {"vllm.lora.request": ("LoRARequest",), "vllm.tokenizers": ("get_tokenizer",)}
    for name, attributes in contents.items():
        module = ModuleType(name)
        vars(module).update(dict.fromkeys(attributes, object))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(model_registry._objs, "vllm", "lm_eval.models.vllm_causallms:VLLM")  # put back afterwards
    from lume_tasks.models.vllm import LumeVLLM

    yield LumeVLLM
    for name in ("lm_eval.models.vllm_causallms", "lume_tasks.models.vllm"):
        sys.modules.pop(name, None)


def test_vllm_answers_carry_their_tokens(vllm_class: Any) -> None:
    positions = [None, {7: -1.0, 9: -0.5}, {8: SimpleNamespace(logprob=-0.25)}, {5: -2.0, 3: -0.125}]
    outputs = SimpleNamespace(prompt_logprobs=positions)
    for tokens in ([1, 7, 8, 5], [1, 9, 8, 3]):
        for start in (1, 2, 3):
            scores, greedy = vllm_class._parse_logprobs(tokens, outputs, start)
            assert (float(scores), greedy) == vllm_class.__base__._parse_logprobs(tokens, outputs, start)
            assert len(scores.logprobs) == 4 - start
            assert (scores.mean, scores.variance, scores.grad_norm) == (None, None, None)
    assert scores.greedy.tolist() == [True]
    assert scores.logprobs.tolist() == [-0.125]
    with pytest.raises(DataError, match="longer than the 2 tokens"):
        vllm_class._parse_logprobs([1, 7], SimpleNamespace(prompt_logprobs=[None, {7: -1.0}]), 0)


def test_the_harness_loads_it_by_name(model_dir: Path) -> None:
    _startup.patch(lm_eval.models)
    lm = get_model("lume-hf").create_from_arg_string(f"pretrained={model_dir},gradnorm=true", {"device": "cpu"})
    assert (type(lm), lm.gradnorm) == (LumeHF, True)
