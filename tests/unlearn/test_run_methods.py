"""Runs of methods that need more than rows, or do more than train: what they write and refuse."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import lume_unlearn
from lume_tasks.data.files import read_rows
from lume_tasks.data.rows import Row
from lume_unlearn.config import RunConfig
from lume_unlearn.data.encode import Tokens, encode_rows
from lume_unlearn.methods.refusals import refusals
from lume_unlearn.methods.registry import METHODS
from lume_unlearn.model.forward import Passes
from lume_unlearn.model.reference import token_nlls
from lume_unlearn.training.run import run
from tests.conftest import logged_steps, read_run

pytestmark = pytest.mark.usefixtures("little_to_collect")
Build = Callable[..., RunConfig]


@pytest.fixture
def build(model_dir: Path, data_dir: Path, tmp_path: Path) -> Build:
    """(method, options) to a run of three optimiser steps over twelve pairs, into a folder of its name."""

    def _build(method: str, name: str = "out", **options: Any) -> RunConfig:
        plain = {"model": str(model_dir), "output": str(tmp_path / name), "data": str(data_dir), "epochs": 1}
        plain |= {"batch_size": 4, "max_tokens": 200, "learning_rate": 3e-3, "warmup": 0.0, "lora_rank": 4}
        return RunConfig(method=method, **(plain | options))  # type: ignore[arg-type]

    return _build


@pytest.fixture
def alternatives(data_dir: Path, tmp_path: Path) -> Path:
    """Two other answers to each forget row."""
    lines = [
        {"id": row.id, "alternative": text}
        for row in read_rows(data_dir / "forget.jsonl")
        for text in ("the river", f"nothing of {row.id}")
    ]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "other.jsonl"


def load(config: RunConfig) -> Any:
    """The result as the harness loads it."""
    if config.tuning != "lora":
        return AutoModelForCausalLM.from_pretrained(config.output)
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(config.model), config.output)


def side(config: RunConfig, name: str, answers: list[str] | None = None) -> list[Tokens]:
    rows = read_rows(Path(str(config.data)) / f"{name}.jsonl")
    if answers is not None:
        rows = [Row(row.id, row.input, answer, row.task) for row, answer in zip(rows, answers, strict=True)]
    return encode_rows(AutoTokenizer.from_pretrained(config.model), rows, "answer", None, None)


def nll(model: Any, rows: list[Tokens]) -> float:
    """Mean over tokens."""
    found = token_nlls(model, Passes(model), rows, 500, torch.device("cpu"))
    return torch.cat(list(found.values())).mean().item()


CASES = [("npo", "lora"), ("kl", "last:1"), ("undial", "modules:mlp"), ("rmu", "full"), ("pdu", "lora")]
CASES += [("agad", "lora"), ("ngdiff", "full"), ("task-vector", "lora"), ("task-vector", "full"), ("idk-dpo", "full")]
CASES += [("altpo", "last:1")]
PARAMS: dict[str, dict[str, float]] = {"rmu": {"layer": 1}, "agad": {"chunk": 5}}


@pytest.mark.parametrize(("method", "tuning"), CASES)
def test_a_run_writes_what_the_harness_loads_and_forgets(
    method: str, tuning: str, build: Build, alternatives: Path
) -> None:
    spec = METHODS[method]
    options = {"alternatives": str(alternatives)} if spec.alternative == "file" else {}
    config = build(method, tuning=tuning, params=PARAMS.get(method, {}), **options)
    output = lume_unlearn.run(config)
    assert output == Path(config.output)
    assert not [path for path in output.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (output, config.model)]
    assert tokenizers[0].encode("fox") == tokenizers[1].encode("fox")
    before, after = AutoModelForCausalLM.from_pretrained(config.model), load(config)
    found, start = nll(after, side(config, "forget")), nll(before, side(config, "forget"))
    # rmu and pdu change hidden states or logits
    assert abs(found / start - 1) > 1e-4 if method in ("rmu", "pdu") else found > start

    written = read_run(output)
    assert written["finished"]
    assert written["config"] == vars(config) | {"precision": "float32"}
    assert {"python", "torch", "transformers", "peft", "lume-unlearning"} <= written["versions"].keys()
    names = ["forget.jsonl", "retain.jsonl", *(["other.jsonl"] if options else [])]
    assert [Path(path).name for path in written["data_sha256"]] == names
    assert (written["seed"], written["processes"]) == (0, 1)
    assert 0 < written["seconds"] < 60
    assert [entry["step"] for entry in logged_steps(output)] == list(range(1, len(logged_steps(output)) + 1))
    terms = {"forget_loss"} | ({"retain_loss"} if config.retain_term != "none" else set())
    assert all({name for name in entry if name.endswith("_loss")} == terms for entry in logged_steps(output))
    json.dumps(written, allow_nan=False)


def test_each_alternative_is_trained_once_an_epoch(build: Build, alternatives: Path) -> None:
    config = build("dpo", alternatives=str(alternatives))
    run(config)
    assert len(logged_steps(config.output)) == 6  # twelve rows, two alternatives each, four a step
    assert logged_steps(config.output)[0]["forget_loss"] == pytest.approx(2 / 0.1 * 0.693147, rel=1e-4)
    texts = [json.loads(line)["alternative"] for line in alternatives.read_text().splitlines()]
    before, after = AutoModelForCausalLM.from_pretrained(config.model), load(config)
    for answers in (texts[::2], texts[1::2]):
        assert nll(after, side(config, "forget", answers)) < nll(before, side(config, "forget", answers))


def test_idk_teaches_the_refusals_of_its_seed(build: Build) -> None:
    config = build("idk", epochs=3, learning_rate=1e-2, seed=5)
    run(config)
    given = refusals(read_rows(Path(str(config.data)) / "forget.jsonl"), 5)
    before, after = AutoModelForCausalLM.from_pretrained(config.model), load(config)
    assert nll(after, side(config, "forget", given)) < nll(before, side(config, "forget", given)) - 0.5
    first = logged_steps(config.output)[0]["forget_loss"]
    assert first == pytest.approx(nll(before, side(config, "forget", given)), rel=0.2)  # of refusals, not of answers
