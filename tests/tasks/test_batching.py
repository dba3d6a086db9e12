"""Which rows share a batch, in the stock backends and in ours, and what happens where memory runs out."""

import copy
import json
import logging
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from lm_eval.models.utils import Collator, normalize_gen_kwargs
from transformers import LlamaForCausalLM

from lume_tasks.models.batching import Budget, is_out_of_memory, run_in_batches
from lume_tasks.models.hf import LumeHF
from lume_tasks.tasks.generation import NewTokens

OPTIONS = {"until": [], "do_sample": False}
SC, QA = NewTokens(256, "forget sc"), NewTokens(256, "forget qa")


def test_new_tokens_are_the_number() -> None:
    assert SC == 256
    assert SC != 255
    assert {256: "found"}[SC] == "found"
    assert (SC + 1, type(SC + 1), f"{SC}", repr(SC), str(SC)) == (257, int, "256", "256", "256")
    assert json.dumps(OPTIONS | {"max_gen_toks": SC}) == json.dumps(OPTIONS | {"max_gen_toks": 256})


def test_new_tokens_differ_by_group() -> None:
    assert SC != QA
    assert not SC == QA  # noqa: SIM201  (two comparisons of their own)
    assert NewTokens(256, "forget sc") == SC
    assert NewTokens(12, "forget sc") != SC


@pytest.mark.parametrize("remake", [copy.copy, copy.deepcopy, lambda tokens: pickle.loads(pickle.dumps(tokens))])
def test_new_tokens_survive_copies(remake: Any) -> None:
    copied = remake(SC)
    assert (copied, copied.group) == (SC, "forget sc")
    assert copied != QA


def test_collator_keeps_groups_apart() -> None:
    names = ["forget sc", "retain qa", "retain sc"] * 5 + ["retain qa"]
    requests = [(str(i), OPTIONS | {"max_gen_toks": NewTokens(256, name)}) for i, name in enumerate(names)]
    collator = Collator(requests, sort_fn=lambda request: request[0], group_by="gen_kwargs")
    batches = [[options["max_gen_toks"].group for _, options in batch] for batch in collator.get_batched(n=64)]
    assert batches == [["forget sc"] * 5, ["retain qa"] * 6, ["retain sc"] * 5]


def test_backends_see_the_plain_number(caplog: pytest.LogCaptureFixture) -> None:
    for tokens in (SC, QA):
        normal = normalize_gen_kwargs(OPTIONS | {"max_gen_toks": tokens})
        assert (normal["max_gen_toks"], type(normal["max_gen_toks"])) == (256, int)
    for kind in (LocalCompletionsAPI, LocalChatCompletion):
        api = kind.__new__(kind)  # without what it imports for the network
        api.model, api._seed, api._max_gen_toks = "m", 1, 256
        payloads = [
            json.dumps(
                api._create_payload([{"content": "x"}], generate=True, gen_kwargs=OPTIONS | {"max_gen_toks": number})
            )
            for number in (SC, QA, 256)
        ]
        assert len(set(payloads)) == 1
        assert '"max_tokens": 256' in payloads[0]
    assert not [record for record in caplog.records if "max" in record.message.lower()]


@pytest.mark.parametrize("kind", [HFLM, LumeHF])
def test_batches_hold_one_kind_of_one_side(run: Any, model: LlamaForCausalLM, tokenizer: Any, kind: type[HFLM]) -> None:
    lm = kind(pretrained=model, tokenizer=tokenizer, batch_size=16, device="cpu")
    batches = []
    generate = lm._model_generate

    def record(context: torch.Tensor, **options: Any) -> torch.Tensor:
        batches.append(tokenizer.batch_decode(context, skip_special_tokens=True))
        return generate(context, **options)

    lm._model_generate = record  # type: ignore[method-assign]
    tasks = ("lume_task1", "lume_task2", "lume_task3")
    samples = run(lm, *tasks, gen_kwargs={"max_gen_toks": 4})["samples"]
    docs = {sample["doc"]["input"]: sample["doc"] for task in tasks for sample in samples[task]}
    assert sum(map(len, batches)) == len(docs) == 24
    groups = [{(docs[prompt]["side"], docs[prompt]["kind"]) for prompt in batch} for batch in batches]
    assert sorted(groups, key=repr) == [{(side, kind)} for side in ("forget", "retain") for kind in ("qa", "sc")]


def test_gen_kwargs_reach_every_row(run: Any, fake_lm: Any) -> None:
    lm = fake_lm()
    run(lm, "lume_task1", gen_kwargs={"max_gen_toks": 12, "temperature": 0.7, "do_sample": True})
    options = [request.args[1] for request in lm.requests]
    assert all(o == {"until": [], "do_sample": True, "temperature": 0.7, "max_gen_toks": 12} for o in options)
    assert len({o["max_gen_toks"].group for o in options}) == 4


def test_other_names_of_the_option_are_left_alone(run: Any, fake_lm: Any) -> None:
    lm = fake_lm()
    run(lm, "lume_task1", gen_kwargs={"max_gen_toks": None, "max_new_tokens": 5})
    assert {normalize_gen_kwargs(request.args[1])["max_gen_toks"] for request in lm.requests} == {5}


def test_a_budget_counts_rows_and_padded_tokens() -> None:
    assert Budget(3).fit([9, 9, 9, 9]) == 3
    assert Budget(3).fit([9]) == 1
    assert Budget(10, tokens=30).fit([9, 9, 9, 9]) == 3
    assert Budget(10, tokens=30).fit([4, 4, 9, 9]) == 3
    assert Budget(10, tokens=30).fit([4, 4, 16]) == 2
    assert Budget(10, tokens=30).fit([99, 1]) == 1


def errors(limit: int, error: RuntimeError) -> Any:
    """A ``run`` that doubles its rows and keeps its batch sizes, with memory for ``limit`` of them."""

    def run(batch: Sequence[int]) -> list[int]:
        run.sizes.append(len(batch))  # type: ignore[attr-defined]
        if len(batch) > limit:
            raise error
        return [2 * row for row in batch]

    run.sizes = []  # type: ignore[attr-defined]
    return run


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_what_does_not_fit_is_halved_and_no_row_is_lost(error: RuntimeError, caplog: pytest.LogCaptureFixture) -> None:
    run, budget = errors(5, error), Budget(16)
    rows = list(range(20))
    with caplog.at_level(logging.WARNING, "lume_tasks"):
        results = [result for batch in run_in_batches(rows, [10] * 20, budget, run) for result in batch]
    assert results == [2 * row for row in rows]
    assert run.sizes == [16, 8, 4, 4, 4, 4, 4]
    assert len(caplog.records) == 2
    assert "no memory for 8 rows of 10 tokens" in caplog.records[1].message
    run.sizes.clear()
    assert len(list(run_in_batches(rows, [10] * 20, budget, run))) == 5  # not tried again
    assert run.sizes == [4] * 5
    run.sizes.clear()
    assert len(list(run_in_batches(rows, [8] * 20, budget, run))) == 4  # shorter rows, more of them
    assert run.sizes == [5] * 4


def test_a_single_row_that_does_not_fit_is_told() -> None:
    with pytest.raises(torch.cuda.OutOfMemoryError, match="out of memory"):
        list(run_in_batches([1, 2], [10, 10], Budget(2), errors(0, torch.cuda.OutOfMemoryError("out of memory"))))


def test_other_errors_are_told() -> None:
    run = errors(1, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        list(run_in_batches([1, 2], [10, 10], Budget(2), run))
    assert run.sizes == [2]
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
