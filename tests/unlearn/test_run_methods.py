"""Runs of methods that need more than rows, or do more than train: what they write and refuse."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import lume_unlearn
from lume_tasks.data.files import read_rows
from lume_tasks.data.rows import Row
from lume_tasks.errors import DataError
from lume_unlearn.config import RunConfig
from lume_unlearn.data.encode import Tokens, encode_rows
from lume_unlearn.methods.refusals import refusals
from lume_unlearn.methods.registry import METHODS
from lume_unlearn.model.forward import Passes
from lume_unlearn.model.reference import token_nlls
from lume_unlearn.training.run import run

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


def weights(folder: str | Path) -> dict[str, Tensor]:
    (file,) = Path(folder).glob("*.safetensors")
    return load_file(file)


def record(config: RunConfig) -> dict[str, Any]:
    return json.loads((Path(config.output) / "unlearning.json").read_text())  # type: ignore[no-any-return]


def steps(config: RunConfig) -> list[dict[str, Any]]:
    return [entry for entry in record(config)["history"] if "loss" in entry]


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

    written = record(config)
    assert written["finished"]
    assert written["config"] == vars(config) | {"precision": "float32"}
    assert {"python", "torch", "transformers", "peft", "lume-unlearning"} <= written["versions"].keys()
    names = ["forget.jsonl", "retain.jsonl", *(["other.jsonl"] if options else [])]
    assert [Path(path).name for path in written["data_sha256"]] == names
    assert (written["seed"], written["processes"]) == (0, 1)
    assert 0 < written["seconds"] < 60
    assert [entry["step"] for entry in steps(config)] == list(range(1, len(steps(config)) + 1))
    terms = {"forget_loss"} | ({"retain_loss"} if config.retain_term != "none" else set())
    assert all({name for name in entry if name.endswith("_loss")} == terms for entry in steps(config))
    json.dumps(written, allow_nan=False)


@pytest.mark.parametrize(("tuning", "part"), [("last:1", "layers.1."), (r"modules:layers\.0\.mlp", "layers.0.mlp.")])
def test_weights_that_are_not_trained_are_written_as_they_were(tuning: str, part: str, build: Build) -> None:
    config = build("gd", tuning=tuning)
    run(config)
    before, after = weights(config.model), weights(config.output)
    assert before.keys() == after.keys()
    assert {part in name for name in before if not before[name].equal(after[name])} == {True}


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_task_vector_is_subtracted_scale_times(tuning: str, build: Build) -> None:
    changes = []
    for scale in (1.0, 2.5):
        config = build("task-vector", str(scale), tuning=tuning, params={"scale": scale})
        run(config)
        end = load(config)
        end = end.merge_and_unload() if tuning == "lora" else end
        start = AutoModelForCausalLM.from_pretrained(config.model)
        changes.append({name: end.get_parameter(name) - weight for name, weight in start.named_parameters()})
    assert any(change.abs().max() > 1e-3 for change in changes[0].values())
    for name, change in changes[0].items():
        torch.testing.assert_close(changes[1][name], 2.5 * change, rtol=0, atol=5e-6)


def test_each_alternative_is_trained_once_an_epoch(build: Build, alternatives: Path) -> None:
    config = build("dpo", alternatives=str(alternatives))
    run(config)
    assert len(steps(config)) == 6  # twelve rows, two alternatives each, four a step
    assert steps(config)[0]["forget_loss"] == pytest.approx(2 / 0.1 * 0.693147, rel=1e-4)  # at the reference
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
    first = steps(config)[0]["forget_loss"]
    assert first == pytest.approx(nll(before, side(config, "forget", given)), rel=0.2)  # of refusals, not of answers


def test_an_alternative_longer_than_the_context_is_named(build: Build, alternatives: Path) -> None:
    lines = [json.loads(line) for line in alternatives.read_text().splitlines()]
    lines[3]["alternative"] = "word " * 400
    alternatives.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=rf"{lines[3]['id']}: \d+ tokens, but the model takes 512"):
        run(build("dpo", alternatives=str(alternatives)))
