"""Memorisation metrics against hand computation, plain PyTorch and each other's backends."""

import math
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from lume_tasks.data.files import read_rows
from lume_tasks.data.rows import SIDES, Row
from lume_tasks.data.source import Data
from lume_tasks.errors import DataError, warn_once
from lume_tasks.metrics.token_scores import TokenScores
from lume_tasks.models.hf import LumeHF
from lume_tasks.paths import task_dir
from lume_tasks.tasks.memorization import (
    SUM_METRICS,
    TOKEN_METRICS,
    extraction_strength,
    memorization_result,
    split_prompt,
)
from tests.conftest import make_model
from tests.tasks.conftest import numbers, token_values

TASKS = [f"lume_memorization_task{number}" for number in (1, 2, 3)]

YES, NO = True, False


def scores_of(probabilities: list[float], greedy: list[bool]) -> TokenScores:
    return TokenScores(np.log(np.float32(probabilities)), None, None, np.array(greedy))


DOCUMENT = {"template_tokens": 0, "id": "a-qa0", "side": "forget", "scored_tokens": 4}


def names(*of: str) -> set[str]:
    return {f"{side}_{name}" for side in SIDES for name in of}


@pytest.mark.parametrize("greedy", list(product([YES, NO], repeat=4)))
def test_extraction_strength_is_the_share_after_the_last_wrong_token(greedy: tuple[bool, ...]) -> None:
    assert extraction_strength(np.array(greedy)) == 1 - min(k for k in range(5) if all(greedy[k:])) / 4


def test_scores_of_one_row_worked_out_by_hand() -> None:
    # Product of the probabilities 1/8 over four tokens: loss (ln 8) / 4, geometric mean 8 ** -(1/4).
    answer = scores_of([1.0, 0.5, 0.25, 1.0], [YES, NO, YES, YES])
    result = memorization_result(DOCUMENT, [(answer, False)])
    assert [result[f"forget_{name}"] for name in SUM_METRICS] == pytest.approx([math.log(8) / 4, 8**-0.25], abs=1e-7)
    assert [result[f"forget_{name}"] for name in TOKEN_METRICS] == pytest.approx([0.75, 0.5, 2.75 / 4], abs=1e-7)
    assert all(result[f"retain_{name}"] is None for name in SUM_METRICS + TOKEN_METRICS)


def test_other_tokens_than_expected_are_refused() -> None:
    with pytest.raises(DataError, match=r'scored 2 tokens of row "a-qa0", the tokenizer makes 4\. Name the model'):
        memorization_result(DOCUMENT, [(scores_of([0.5, 0.5], [YES, YES]), True)])


TEXTS = [
    ("The quick brown fox", "jumps over"),
    ("What is 7?", "8"),
    ("The end ", "of it"),  # the harness moves the space into the continuation
    ("two\n\nlines\n", "\n 'x"),
    ("  naïve café \u2014", "日本語 🙂."),
    ("<eos>The fox", "<eos>"),
]


@pytest.mark.parametrize("folder", ["model_dir", "bos_model_dir"])
def test_tokens_are_those_that_the_harness_scores(folder: str, request: pytest.FixtureRequest) -> None:
    path = str(request.getfixturevalue(folder))
    lm = LumeHF(pretrained=path, device="cpu", batch_size=2)
    requests = [Instance("loglikelihood", {}, (text, f" {answer}"), 0, ("x", 0, 1)) for text, answer in TEXTS]
    scored = [len(answer.logprobs) for answer, _ in lm.loglikelihood(requests, disable_tqdm=True)]
    assert [("", count, 0) for count in scored] == [split_prompt(lm.tokenizer, *request.args) for request in requests]


def test_rows_whose_answer_has_no_tokens_of_its_own_are_counted_and_named(manager: Any) -> None:
    eos_after_each_text = SimpleNamespace(encode=lambda text: [*map(ord, text), 0])
    with pytest.raises(DataError) as error:
        manager({"tokenizer": eos_after_each_text}).load([TASKS[0]])
    lines = str(error.value).splitlines()
    assert "cannot score 8 rows of Task1 exactly" in lines[0]
    assert lines[1].startswith('  row "forget-0-sc1": the tokens')
    assert len(lines) == 1 + 8


def plain_row(model: LlamaForCausalLM, tokenizer: Any, row: dict[str, Any]) -> dict[str, float]:
    """Every number of one row from its definition, in float64."""
    ids = tokenizer.encode(f"{row['input']} {row['output']}")
    own, _, _, right = token_values(model, ids, len(tokenizer.encode(row["input"])))
    return {
        "loss": -own.mean().item(),
        "probability_geometric": math.exp(own.mean().item()),
        "exact_memorization": right.double().mean().item(),
        "extraction_strength": 1 - min(k for k in range(len(own) + 1) if all(right[k:])) / len(own),
        "probability": own.exp().mean().item(),
    }


def knowing_model(folder: Path, tokenizer: Any, data_dir: Path) -> LlamaForCausalLM:
    """The model trained for a moment on the forget rows, so that some of its tokens are right."""
    model = LlamaForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for row in read_rows(data_dir / "forget.jsonl") * 4:
        ids = torch.tensor([tokenizer.encode(f"{row.input} {row.output}")])
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize("folder", ["model_dir", "bos_model_dir"])
def test_numbers_are_those_of_the_plain_model(run, data_dir, folder, request) -> None:
    path = request.getfixturevalue(folder)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = knowing_model(path, tokenizer, data_dir)
    lm = LumeHF(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=3)
    results = run(lm, "lume_memorization", metadata={"tokenizer": tokenizer})
    seen = set()
    for task in TASKS:
        plain: dict[str, list[float]] = {}
        for sample in results["samples"][task]:
            for name, value in plain_row(model, tokenizer, sample["doc"]).items():
                metric = f"{sample['doc']['side']}_{name}"
                assert sample[metric] == pytest.approx(value, abs=1e-5)
                plain.setdefault(metric, []).append(value)
        found = numbers(results, task)
        assert found == pytest.approx({name: sum(of) / len(of) for name, of in plain.items()}, abs=1e-5)
        seen |= {found[f"{side}_extraction_strength"] for side in SIDES}
    assert len(seen) > 2


def test_stock_backend_gives_the_sums_and_lume_hf_gives_the_same_and_more(run, model_dir) -> None:
    lms = (kind(pretrained=str(model_dir), device="cpu", batch_size=3) for kind in (HFLM, LumeHF))
    stock, own = (run(lm, "lume_memorization") for lm in lms)
    for task in TASKS:
        assert set(numbers(stock, task)) == names(*SUM_METRICS)
        assert set(numbers(own, task)) == names(*SUM_METRICS, *TOKEN_METRICS)
        sums = {name: value for name, value in numbers(own, task).items() if name in names(*SUM_METRICS)}
        assert sums == pytest.approx(numbers(stock, task), abs=1e-5)


@pytest.fixture(scope="module")
def merging_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer in which punctuation and the line feeds after it are one token, as in Qwen's and Llama 3's."""
    tokenizer = Tokenizer(models.BPE())
    pattern = Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+")
    parts = [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence(parts), decoders.ByteLevel()
    letters, special = pre_tokenizers.ByteLevel.alphabet(), ["<pad>", "<eos>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=letters)
    tokenizer.train_from_iterator([ALPACA.format("What is Jane Roe's job?")] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


ALPACA = "### Question:\n{}\n\n### Response:\n"


@pytest.mark.parametrize("backend", [HFLM, LumeHF])
def test_prompts_that_end_in_a_merged_line_feed_are_scored_after_it(backend: Any, merging_tokenizer: Any) -> None:
    rows = [
        Row(f"a-qa{number}", ALPACA.format(f"What is Jane Roe's {asked}?"), answer, "own", "Jane Roe")
        for number, (asked, answer) in enumerate({"job": "baker", "age": "41"}.items())
    ]
    assert split_prompt(merging_tokenizer, rows[0].input, " x")[::2] == (":\n", 1)
    model, given = make_model(), {"lume_data": Data(rows, []), "tokenizer": merging_tokenizer}
    manager = TaskManager(include_path=task_dir(), include_defaults=False, metadata=given | {"lume_swap_controls": 39})
    lm = backend(pretrained=model, tokenizer=merging_tokenizer, batch_size=8)
    tasks = ["lume_memorization_rows", "lume_swap"]
    results = simple_evaluate(lm, tasks=tasks, task_manager=manager, bootstrap_iters=0)
    for row, *samples in zip(rows, *(results["samples"][task] for task in tasks), strict=True):
        found = samples[0]["forget_loss"], samples[1]["forget_rank"]
        if backend is HFLM:
            assert found == (None, None)
            continue
        assert found[0] == pytest.approx(plain_row(model, merging_tokenizer, vars(row))["loss"], abs=1e-5)
        ids = [merging_tokenizer.encode(text) for text in (row.input, f"{row.input} {row.output}<eos>")]
        value = samples[1]["forget_factor"][2][0]
        assert value == pytest.approx(float(token_values(model, ids[1], len(ids[0]))[0].sum()), abs=1e-4)


def test_prompts_that_end_in_white_space_have_no_loss_without_token_values(caplog: Any) -> None:
    warn_once.cache_clear()
    doc = DOCUMENT | {"template_tokens": 2, "reference": 1.0}
    for _ in range(2):
        result = memorization_result(doc, [(-3.0, False)])
    assert set(result.values()) == {None}
    assert caplog.text.count("use --model lume-hf") == 1
    assert memorization_result(doc, [(scores_of([0.1, 0.1, 1.0, 1.0], [YES] * 4), True)])["forget_loss"] == 0


def test_real_rows_can_all_be_scored(lume_data: Path, lume_models: Path, manager: Any) -> None:
    metadata = {"lume_data_dir": str(lume_data), "tokenizer": str(lume_models / "lume-retain-13m")}
    tasks = manager(metadata).load(["lume_memorization"])["tasks"]
    assert [len(tasks[name].eval_docs) for name in TASKS] == [978, 3000, 1488]
    assert all(doc["scored_tokens"] > 0 for name in TASKS for doc in tasks[name].eval_docs)
