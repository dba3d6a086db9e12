"""Whole runs: what they write, that a seed repeats them, and options that save memory."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lume_tasks.data.files import read_rows
from lume_tasks.data.rows import Row
from lume_tasks.errors import DataError
from lume_unlearn import unlearn
from lume_unlearn.data.encode import Encoder
from lume_unlearn.methods.refusals import refusals
from lume_unlearn.methods.registry import METHODS
from lume_unlearn.model.forward import Passes
from lume_unlearn.model.reference import token_nlls
from lume_unlearn.training import arguments
from lume_unlearn.training.arguments import UnlearningArguments, default_max_tokens
from lume_unlearn.training.setup import optimizer_class
from tests.conftest import assert_same_weights, logged_steps, read_run, saved_weights


@pytest.fixture(scope="module")
def rows(data_dir: Path) -> list[Row]:
    """The forget rows."""
    return read_rows(data_dir / "forget.jsonl")


@pytest.fixture
def alternatives(rows: list[Row], tmp_path: Path) -> Path:
    """Two other answers to each forget row."""
    lines = [{"id": row.id, "alternative": text} for row in rows for text in ("the river", f"nothing of {row.id}")]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "other.jsonl"


def nlls(model_dir: Path, output: Path, rows: list[Row], answers: list[str] | None = None) -> tuple[float, float]:
    """Mean NLL of the rows' tokens, or of other answers to them, before and after a run, as the harness loads it."""
    rows = [replace(row, output=answer) for row, answer in zip(rows, answers or [r.output for r in rows], strict=True)]
    tokens = Encoder(AutoTokenizer.from_pretrained(model_dir))(rows)
    before: Any = AutoModelForCausalLM.from_pretrained(model_dir)
    if (output / "adapter_config.json").exists():
        after: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), str(output))
    else:
        after = AutoModelForCausalLM.from_pretrained(output)
    found = [token_nlls(model, Passes(model), tokens, 500) for model in (before, after)]
    first, last = (torch.cat(list(each.values())).mean().item() for each in found)
    return first, last


CASES = [("npo", "lora"), ("undial", "modules:mlp"), ("rmu", "full"), ("pdu", "lora"), ("agad", "lora")]
CASES += [("task-vector", "lora"), ("task-vector", "full"), ("altpo", "last:1")]
PARAMS: dict[str, dict[str, int]] = {"rmu": {"layer": 1}, "agad": {"chunk": 5}}


@pytest.mark.parametrize(("method", "tuning"), CASES)
def test_a_run_writes_what_the_harness_loads_and_forgets(
    method, tuning, make_run, alternatives, model_dir, rows, tmp_path
):
    options = {"alternatives": str(alternatives)} if METHODS[method].needs.alternatives == "file" else {}
    output = make_run(method, tuning=tuning, num_train_epochs=1, **PARAMS.get(method, {}), **options)()
    assert output == tmp_path / "out"
    assert not [path for path in output.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert (output / "tokenizer.json").read_text() == (model_dir / "tokenizer.json").read_text()
    if tuning == "full":  # cache, attention and special tokens as they were
        assert (output / "config.json").read_text() == (model_dir / "config.json").read_text()
        assert saved_weights(output).keys() == saved_weights(model_dir).keys()
    assert {value.dtype for value in saved_weights(output).values()} == {torch.float32}
    before, after = nlls(model_dir, output, rows)
    # rmu and pdu change hidden states or logits
    assert abs(after / before - 1) > 1e-4 if method in ("rmu", "pdu") else after > before

    written, steps = read_run(output), logged_steps(output)
    assert (written["finished"], written["method"], written["seed"], written["processes"]) == (True, method, 0, 1)
    assert PARAMS.get(method, {}).items() <= written["method_options"].items()
    assert {"python", "torch", "transformers", "peft", "lume-unlearning"} <= written["versions"].keys()
    assert written["data_sha256"].keys() == {"forget", "retain", *options}
    assert len(written["model"]["sha256"]) == 64
    terms = {"forget_loss"} | ({"retain_loss"} if METHODS[method].retain_term != "none" else set())
    assert all({name for name in entry if name.endswith("_loss")} == terms for entry in steps)
    json.dumps(written, allow_nan=False)


def test_each_alternative_is_trained_once_an_epoch(make_run, alternatives, model_dir, rows):
    output = make_run("dpo", alternatives=str(alternatives), num_train_epochs=1)()
    steps = logged_steps(output)
    assert len(steps) == 6  # twelve rows, two alternatives each, four a step
    assert steps[0]["forget_loss"] == pytest.approx(2 / 0.1 * 0.693147, rel=1e-4)  # at the reference
    texts = [json.loads(line)["alternative"] for line in alternatives.read_text().splitlines()]
    for answers in (texts[::2], texts[1::2]):
        before, after = nlls(model_dir, output, rows, answers)
        assert after < before


def test_idk_teaches_the_refusals_of_its_seed(make_run, model_dir, rows):
    output = make_run("idk", num_train_epochs=3, learning_rate=1e-2, seed=5)()
    before, after = nlls(model_dir, output, rows, refusals(rows, 5))
    assert after < before - 0.5
    assert logged_steps(output)[0]["forget_loss"] == pytest.approx(before, rel=0.2)  # of refusals, not of answers


def test_the_default_of_max_tokens_goes_by_device_and_memory():
    for gpu, expected in ((False, [2048, 2048, 1024, 512]), (True, [8192, 4096, 1024, 512])):
        for free, tokens in zip((80, 18, 6, 1), expected, strict=True):
            memory = mock.Mock(available=free * 2**30)
            with (
                mock.patch.object(torch.cuda, "is_available", return_value=gpu),
                mock.patch.object(torch.cuda, "mem_get_info", return_value=(free * 2**30, 0)),
                mock.patch.object(psutil, "virtual_memory", return_value=memory),
            ):
                assert default_max_tokens() == tokens


def test_a_resumed_run_keeps_max_tokens(make_run, monkeypatch):
    monkeypatch.setattr(arguments, "default_max_tokens", lambda: 640)
    run = make_run("npo", save_steps=5, max_tokens=None)
    output = run()
    assert read_run(output)["arguments"]["max_tokens"] == 640
    (output / "unlearning.json").unlink()  # broken off after the fifth of six steps
    monkeypatch.setattr(arguments, "default_max_tokens", lambda: 1280)
    assert read_run(run(resume=True))["arguments"]["max_tokens"] == 640


def test_the_seed_decides_everything(make_run):
    first = make_run("npo", lora_dropout=0.2)()
    torch.manual_seed(99)
    again = make_run("npo", "again", lora_dropout=0.2)()
    other = make_run("npo", "other", lora_dropout=0.2, seed=1)()
    assert_same_weights(first, again)
    assert [entry["loss"] for entry in logged_steps(first)] == [entry["loss"] for entry in logged_steps(again)]
    assert logged_steps(first)[0]["retain_loss"] != logged_steps(other)[0]["retain_loss"]


@pytest.mark.parametrize("options", [{}, {"method": "npo", "beta": 0.3, "tuning": "lora"}], ids=["default", "npo"])
def test_the_semeval_function(options, make_run, model_dir, data_dir, tmp_path):
    for side in ("forget", "retain"):
        (tmp_path / side).mkdir()
        Dataset.from_list([vars(row) for row in read_rows(data_dir / f"{side}.jsonl")]).to_parquet(
            tmp_path / side / f"{side}.parquet"
        )
    given = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 3e-3, "seed": 0} | options
    folders = [str(tmp_path / name) for name in ("theirs", "forget", "retain")]
    unlearn(str(model_dir), *folders, **given)
    plain = {"method": "gd", "tuning": "full", "lora_rank": 8, "warmup_steps": 0.1, "max_tokens": None} | given
    assert_same_weights(make_run(**plain)(), tmp_path / "theirs")


def test_all_faults_of_the_rows_are_listed_at_once(make_run, tmp_path):
    (tmp_path / "forget.jsonl").write_text('{"id": "a-sc1"}\n{broken\n')
    (tmp_path / "retain.jsonl").write_text('{"id": "b-xx1", "input": "i", "output": "", "task": "Task1"}\n')
    for named in ({"data": str(tmp_path)}, {"forget": str(tmp_path), "retain": str(tmp_path)}):
        with pytest.raises(DataError) as caught:
            make_run("npo", **named)()
        for fault in ("forget.jsonl:1", "forget.jsonl:2", "retain.jsonl:1", "output", "b-xx1"):
            assert fault in str(caught.value)


@pytest.fixture
def torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchao's optimisers without compilation, which takes half a minute on a CPU."""
    pytest.importorskip("torchao.optim")
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


@pytest.mark.usefixtures("torchao")
def test_a_small_step_of_bfloat16_weights_survives_in_expectation():
    torch.manual_seed(0)
    start = (0.02 * torch.randn(2**17)).bfloat16()

    def mean_step(optimizer, options):
        weight = torch.nn.Parameter(start.clone())
        weight.grad = torch.ones_like(start)
        optimizer([weight], weight_decay=0.0, **options).step()  # Adam's first step is the learning rate
        return (weight.detach().double() - start.double()).mean().item()

    chosen = optimizer_class(UnlearningArguments(output_dir="o", learning_rate=1e-5, weights="bfloat16"))
    assert chosen is not None
    # A weight's rounding error is 3e-5, so that of the mean over all is 1e-7.
    assert mean_step(*chosen) == pytest.approx(-1e-5, abs=6e-7)
    assert abs(mean_step(torch.optim.AdamW, {"lr": 1e-5}) + 1e-5) > 3e-6


FULL: dict[str, Any] = {"tuning": "full", "learning_rate": 1e-3, "warmup_steps": 0.1, "max_tokens": 8192}


@pytest.mark.usefixtures("torchao")
@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"weights": "bfloat16"}, 0.03),
        ({"optim": "adamw_torch_8bit"}, 0.15),
        ({"weights": "bfloat16", "optim": "adamw_torch_8bit", "bf16": True}, 0.15),
    ],
)
def test_training_and_resuming_follow_float32(options, tolerance, make_run, tmp_path):
    other = make_run("gd", "other", save_steps=3, **FULL, **options)()
    plain, found = logged_steps(make_run("gd", "plain", **FULL)()), logged_steps(other)
    assert abs(plain[-1]["loss"] - plain[0]["loss"]) > 0.3
    for expected, entry in zip(plain, found, strict=True):
        assert entry["loss"] == pytest.approx(expected["loss"], abs=tolerance)
    assert {weight.dtype for weight in saved_weights(other).values()} == {
        getattr(torch, options.get("weights", "float32"))
    }
    shutil.copytree(other / "checkpoint-3", tmp_path / "again" / "checkpoint-3")
    again = make_run("gd", "again", save_steps=3, resume=True, **FULL, **options)()
    assert logged_steps(again) == found
    assert_same_weights(again, other)


@pytest.mark.parametrize(
    ("kind", "tuning"), [("cpu", "full"), ("bfloat16", "full"), ("int8", "full"), ("cpu", "last:1")]
)
def test_kinds_of_reference_copies(kind, tuning, make_run):
    if kind == "int8":
        pytest.importorskip("torchao")
    options = FULL | {"tuning": tuning}
    plain = make_run("kl", "plain", **options)()
    small = make_run("kl", "small", reference_copy=kind, **options)()
    found, expected = ([entry["retain_loss"] for entry in logged_steps(output)] for output in (small, plain))
    assert expected[0] == pytest.approx(0.0, abs=1e-7)
    if kind == "cpu":
        assert found == expected
        assert_same_weights(plain, small)
    else:
        assert 1e-6 < found[0] < 1e-3  # rounding of the copy
        assert found[-1] == pytest.approx(expected[-1], abs=2e-3)
    assert {weight.dtype for weight in saved_weights(small).values()} == {torch.float32}
