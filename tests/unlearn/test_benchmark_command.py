"""The command `lume-unlearn benchmark`: its options, what it writes and prints, scoring both ways."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from lume_unlearn.benchmark import BenchmarkConfig, benchmark, run_config, tokens_of_a_run, training_table
from lume_unlearn.benchmark_scoring import compare_scoring
from lume_unlearn.benchmark_training import Contest
from lume_unlearn.config import ConfigError
from lume_unlearn.data import Tokens

pytestmark = pytest.mark.usefixtures("little_to_collect")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"model": "m", "shape": "small"}, "--model and --shape"),
        ({"shape": "olmo-70b"}, "--shape olmo-70b"),
        ({"methods": "gd,dpo"}, "--methods"),
        ({"methods": ""}, "--methods"),
        ({"tunings": "last:1"}, "--tunings"),
        ({"steps": 0}, "--steps 0"),
        ({"scoring_prompts": -1}, "--scoring_prompts -1"),
        ({"scoring_prompts": 5, "usual_scoring_prompts": 6}, "--usual_scoring_prompts 6"),
        ({"usual_scoring_prompts": 0}, "--usual_scoring_prompts 0"),
        ({"whole": "dpo"}, "--whole dpo"),
        ({"ways": "ours,theirs"}, "--ways"),
        ({"json": "/no/such/folder/x.json"}, "--json"),
        ({"data": "/no/such/folder"}, "--data"),
    ],
)
def test_faults_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        BenchmarkConfig(**options)


def test_a_model_that_is_not_there_is_named(tmp_path: Path, data_dir: Path) -> None:
    config = BenchmarkConfig(model=str(tmp_path / "none"), data=str(data_dir), steps=1)
    with pytest.raises(ConfigError, match=r"--model .*none"):
        benchmark(config)


def test_memory_that_does_not_do_is_said_and_the_others_go_on(
    model_dir: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    take = Contest.take

    def full(self: Contest, way: str, step: Any) -> None:
        if self.config.method == "npo":
            raise torch.OutOfMemoryError("CUDA out of memory")
        take(self, way, step)

    monkeypatch.setattr(Contest, "take", full)
    options = {"methods": "npo,gd", "tunings": "lora", "steps": 1, "batch_size": 2, "scoring_prompts": 0}
    result = benchmark(BenchmarkConfig(model=str(model_dir), data=str(data_dir), **options))
    assert result["training"]["lora_npo"] == {"error": memory_advice()}
    assert "lora_npo_ratio" not in result
    assert result["lora_gd_ratio"] > 0
    assert memory_advice() in " ".join(capsys.readouterr().err.split())


def memory_advice() -> str:
    return "out of memory; --ways ours does without the usual copy, --gradient_checkpointing true needs less"


def test_options_of_run_reach_it(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_tokens": 99, "gradient_checkpointing": True, "weights": "bfloat16"}
    config = BenchmarkConfig(optimizer="adamw8bit", reference_copy="int8", **options)
    full, lora = (run_config(config, "m", tmp_path, "kl", tuning) for tuning in ("full", "lora"))
    assert (full.max_tokens, full.gradient_checkpointing, full.weights) == (99, True, "bfloat16")
    assert (full.optimizer, full.reference_copy) == ("adamw8bit", "int8")
    assert (lora.max_tokens, lora.weights) == (99, "float32")
    assert run_config(BenchmarkConfig(compile=True), "m", tmp_path, "gd", "full").compile


def test_everything_once(model_dir: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = BenchmarkConfig(
        model=str(model_dir),
        data=str(data_dir),
        methods="gd,npo",
        tunings="full",
        steps=1,
        batch_size=4,
        scoring_prompts=6,
        usual_scoring_prompts=3,
        whole="npo",
        json=str(tmp_path / "figures.json"),
        profile=str(tmp_path / "profile.txt"),
    )
    result = benchmark(config)
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written == result
    assert {key for key in written if "ratio" in key} == {"full_gd_ratio", "full_npo_ratio", "scoring_ratio"}
    for method in ("gd", "npo"):
        found = written["training"][f"full_{method}"]
        assert written[f"full_{method}_ratio"] == pytest.approx(
            found["usual"]["seconds"][0] / found["ours"]["seconds"][0]
        )
        for way in ("usual", "ours"):
            rate = found["tokens"][0] / found[way]["seconds"][0]
            useful = 6 * found["matrix_weights"] * rate
            assert found[way]["tokens_per_second"] == pytest.approx(rate)
            assert found[way]["share_of_matmul_peak"] == pytest.approx(useful / written["matmul_tflops"] / 1e12)
            assert found[way]["run_seconds"] == pytest.approx(written["run_tokens"] / rate)
    scoring = written["scoring"]
    assert (scoring["usual"]["prompts"], scoring["ours"]["prompts"]) == (3, 6)
    assert scoring["same_answers"] == 1.0
    rates = [scoring[way]["prompts"] / scoring[way]["seconds"] for way in ("ours", "usual")]
    assert written["scoring_ratio"] == pytest.approx(rates[0] / rates[1])
    whole = written["whole"]
    assert (whole["method"], whole["tuning"], whole["prompts"]) == ("npo", "full", 24)
    assert whole["run_seconds"] > 0
    assert whole["scoring_seconds"] > whole["generation_seconds"] > 0
    assert written["device"].endswith("threads") or torch.cuda.is_available()
    assert written["settings"]["batch_size"] == 4
    profile = (tmp_path / "profile.txt").read_text()
    assert "full npo, usual" in profile
    assert "full npo, ours" in profile
    shown = capsys.readouterr().out
    assert "full gd" in shown
    assert "lume-hf, auto (6)" in shown
    assert "10 epochs over all rows" in shown


def test_one_prompt_at_a_time_against_batches(model_dir: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stock backend sees one prompt in each call of the model, ours all of a kind."""
    sizes: list[int] = []
    own = LlamaForCausalLM.generate

    def noted(self: LlamaForCausalLM, input_ids: Tensor, **kwargs: Any) -> Any:
        sizes.append(len(input_ids))
        return own(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "generate", noted)
    options = {"dtype": "float32", "device": "cpu"}
    prompts = {"usual": 8, "ours": 8}
    found = compare_scoring(str(model_dir), data_dir, ("lume_task1", "lume_task2"), prompts, options)
    assert found["usual"]["prompts"] == found["ours"]["prompts"] == 8
    # both ways begin with one prompt a task that is not timed
    assert sizes[:10] == [1] * 10
    assert sum(sizes[10:]) == 10
    assert max(sizes[10:]) > 1


def test_tokens_of_a_run() -> None:
    forget = [Tokens((1,) * 10, (1,) * 10), Tokens((1,) * 20, (1,) * 20)]
    retain = [Tokens((1,) * 6, (1,) * 6)] * 4
    assert tokens_of_a_run(forget, retain) == 10 * (30 + 12)


def test_table_shows_memory_where_it_was_measured() -> None:
    way = {"tokens_per_second": 5e4, "share_of_matmul_peak": 0.4, "run_seconds": 88.0, "peak_bytes": 25 * 10**9}
    result = {
        "settings": {"model": None, "shape": "olmo-1b"},
        "device": "A card",
        "matmul_tflops": 700.0,
        "run_tokens": 4_400_000,
        "training": {"full_gd": {"usual": way, "ours": way, "ratio": 1.0}},
    }
    assert "GB" in [column.header for column in training_table(result).columns]
    off = way | {"peak_bytes": None}
    result["training"]["full_gd"] = {"usual": off, "ours": off, "ratio": 1.0}  # type: ignore[index]
    assert "GB" not in [column.header for column in training_table(result).columns]
