"""A run that broke off and was resumed leaves what an uninterrupted one leaves, byte for byte."""

import json
import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from lume_unlearn.config import RunConfig
from lume_unlearn.errors import ConfigError
from lume_unlearn.evaluation.callback import Evaluation
from lume_unlearn.methods.registry import METHODS
from lume_unlearn.model import masters
from lume_unlearn.training.checkpoints import MARK, whole_checkpoints
from lume_unlearn.training.run import run
from tests.conftest import saved_weights
from tests.faults.runs import Broken, assert_equal, broken_off, make_config, record, resumed

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("little_to_collect")]


# With these, what a method remembers beside the weights changes within a few steps, and makes a difference.
REMEMBERING: dict[str, dict[str, Any]] = {
    "pdu": {"params": {"dual_warmup": 0.0}},
    "selective": {"forget_weight": 10.0, "learning_rate": 1e-2},
    "ngdiff": {"params": {"rate_every": 1}, "learning_rate": 5e-3, "epochs": 3},
    "sugd": {"params": {"chunk": 3}},
    "agad": {"params": {"chunk": 3}},
}


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_on_as_if_nothing_had_happened(
    method: str, tuning: str, inputs: Path, tmp_path: Path
) -> None:
    options = REMEMBERING.get(method, {})
    whole = run(make_config(inputs, tmp_path / "whole", method, tuning, **options))
    steps = record(whole)["history"][-1]["step"]
    config = make_config(inputs, tmp_path / "broken", method, tuning, **options)
    step = steps // 2 + 1 if options else 2 + [*METHODS].index(method) % (steps - 1)
    broken_off(config, step)
    if options:  # something else at the interruption than at the start and at the end
        start, end = remembered(config), remembered(config, whole / f"checkpoint-{steps}")
        assert start != remembered(config, tmp_path / "broken" / f"checkpoint-{step - 1}") != end
    assert_equal(whole, resumed(config))


@pytest.mark.parametrize(
    "options",
    [{"robust": "sam"}, {"robust": "path", "path_every": 3}, {"protect": "project"}],
    ids=lambda options: next(iter(options.values())),
)
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_wrappers_go_on_as_if_nothing_had_happened(
    tuning: str, options: dict[str, Any], inputs: Path, tmp_path: Path
) -> None:
    whole = run(make_config(inputs, tmp_path / "whole", "npo", tuning, **options))
    config = make_config(inputs, tmp_path / "broken", "npo", tuning, **options)
    broken_off(config, 3)
    assert_equal(whole, resumed(config))


def test_a_followed_level_goes_on(inputs: Path, tmp_path: Path) -> None:
    unseen = tmp_path / "unseen.jsonl"
    unseen.write_text('{"document": "nothing that anybody has ever read"}\n')
    options: dict[str, Any] = {"unseen": str(unseen), "learning_rate": 1e-2}
    whole = run(make_config(inputs, tmp_path / "whole", "level", **options))
    config = make_config(inputs, tmp_path / "broken", "level", **options)
    broken_off(config, 4)  # after the measurement of step 2
    assert_equal(whole, resumed(config))


@pytest.mark.skipif(not masters.AVAILABLE, reason="this torch has no Tensor.grad_dtype")
@pytest.mark.parametrize(("method", "tuning"), [("kl", "full"), ("sugd", "last:1"), ("rmu", "full")])
def test_bfloat16_weights_go_on_from_their_float32_masters(
    method: str, tuning: str, inputs: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"weights": "masters", "precision": "bfloat16"} | REMEMBERING.get(method, {})
    whole = run(make_config(inputs, tmp_path / "whole", method, tuning, **options))
    config = make_config(inputs, tmp_path / "broken", method, tuning, **options)
    broken_off(config, 3)
    assert_equal(whole, resumed(config))
    rounded = {name: weight.bfloat16().float() for name, weight in saved_weights(whole).items()}
    assert any(not weight.equal(rounded[name]) for name, weight in saved_weights(whole).items())
    assert json.loads((whole / "config.json").read_text())["dtype"] == "float32"


def remembered(config: RunConfig, checkpoint: Path | None = None) -> Any:
    """What the method knows beside the weights: retain weight, learning rate, phases begun; at first or later."""
    found = json.loads((checkpoint / "trainer_state.json").read_text()) if checkpoint else {}
    rates = [config.learning_rate, *(entry["learning_rate"] for entry in found.get("log_history", []))]
    if config.spec.adapt:
        saved = found and found["stateful_callbacks"]["Progress"]["attributes"]["values"]
        return saved or {"weight": config.retain_weight}
    return rates[-1] if config.spec.normalised else sum(rate > before for before, rate in pairwise(rates))


def test_terms_between_two_log_entries_are_not_lost(inputs: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"logging_steps": 3, "epochs": 3}
    options |= REMEMBERING["pdu"]
    whole = run(make_config(inputs, tmp_path / "whole", "pdu", **options))
    config = make_config(inputs, tmp_path / "broken", "pdu", **options)
    broken_off(config, 3)
    assert record(whole)["history"] == record(resumed(config))["history"]
    assert [entry["step"] for entry in record(whole)["history"]] == [1, 3, 6]


def test_without_its_mark_or_with_a_short_file_a_checkpoint_does_not_count(inputs: Path, tmp_path: Path) -> None:
    whole = run(make_config(inputs, tmp_path / "whole", save_total_limit=0))
    config = make_config(inputs, tmp_path / "out", save_total_limit=0)
    broken_off(config, 4)
    output = tmp_path / "out"
    assert [path.name for path in whole_checkpoints(output)] == ["checkpoint-3", "checkpoint-2", "checkpoint-1"]
    (output / "checkpoint-3" / MARK).unlink()
    optimizer = output / "checkpoint-2" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-1])
    assert [path.name for path in whole_checkpoints(output)] == ["checkpoint-1"]
    resumed(config)
    assert [path.name for path in whole_checkpoints(output)] == [f"checkpoint-{step}" for step in (4, 3, 2, 1)]
    assert_equal(whole, output)


def test_what_is_left_without_any_checkpoint_is_begun_anew(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(make_config(inputs, tmp_path / "whole"))
    config = make_config(inputs, tmp_path / "out")
    broken_off(config, 1)
    assert whole_checkpoints(tmp_path / "out") == []
    (tmp_path / "out" / ".partial").mkdir()  # a checkpoint that was being written
    with pytest.raises(ConfigError, match="use --resume"):
        run(config)
    assert_equal(whole, resumed(config))
    assert "no complete checkpoint" in caplog.text
    with pytest.raises(ConfigError, match="is finished"):
        resumed(config)


def test_a_checkpoint_is_enough_to_resume_from(inputs: Path, tmp_path: Path) -> None:
    """The process may die between a checkpoint and the record beside it."""
    whole = run(make_config(inputs, tmp_path / "whole"))
    config = make_config(inputs, tmp_path / "out")
    broken_off(config, 3)
    (tmp_path / "out" / "unlearning.json").unlink()
    assert_equal(whole, resumed(config))


def test_other_options_rows_or_processes_are_no_resumption(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(inputs, tmp_path / "out")
    broken_off(config, 3)
    shutil.copytree(inputs / "data", tmp_path / "data")
    lines = (tmp_path / "data" / "forget.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "data" / "forget.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(ConfigError) as caught:
        resumed(config, data=str(tmp_path / "data"), seed=1, learning_rate=1.0)
    assert str(caught.value).splitlines() == [
        "--learning_rate 1.0: the run to resume has 0.002",
        "--seed 1: the run to resume has 0",
        "--data: the rows are not those of the run to resume",
    ]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="--resume: the run to resume has 1 processes, this one 2; start as many"):
        resumed(config)


def test_sides_that_are_swapped_are_no_resumption(inputs: Path, tmp_path: Path) -> None:
    files = [str(inputs / "data" / f"{side}.jsonl") for side in ("forget", "retain")]
    config = make_config(inputs, tmp_path / "out", data=None, forget=files[0], retain=files[1])
    broken_off(config, 3)
    with pytest.raises(ConfigError, match="--data: the rows are not those of the run to resume"):
        resumed(config, forget=files[1], retain=files[0])


@pytest.mark.parametrize("name", ["config", "data_sha256", "seconds", "processes"])
def test_a_damaged_record_is_named(name: str, inputs: Path, tmp_path: Path) -> None:
    config = make_config(inputs, tmp_path / "out", save_steps=3)
    broken_off(config, 4)
    path = tmp_path / "out" / "checkpoint-3" / "unlearning.json"
    path.write_text(path.read_text().replace(f'"{name}"', f'"{name[::-1]}"'))
    with pytest.raises(ConfigError, match=r"--resume: .*checkpoint-3/unlearning.json cannot be read"):
        resumed(config)


def scored(*values: float) -> Any:
    """Give the evaluations these values."""
    scores = [
        {"higher_is_better": {"lume_score": {"task_aggregate": True}}}
        | {"results": {"lume_score": {"task_aggregate,none": value}}}
        for value in values
    ]
    return mock.patch.object(Evaluation, "_score", side_effect=scores)


def test_the_best_weights_survive_while_they_are_replaced(inputs: Path, tmp_path: Path) -> None:
    config = make_config(inputs, tmp_path / "out", epochs=3, evaluate_every="epoch")
    own = os.replace

    def replace_(old: Path, new: Path) -> None:
        if Path(new).name == "best" and (tmp_path / "out" / "scores" / "checkpoint-2").exists():
            raise Broken
        own(old, new)

    with scored(0.5, 0.9, 0.9, 0.8):
        with mock.patch.object(os, "replace", replace_), pytest.raises(Broken):
            run(config)
        resumed(config)
    best = json.loads((tmp_path / "out" / "best" / "best.json").read_text())
    assert (best["value"], best["step"]) == (0.9, 4)
    assert {path.name for path in (tmp_path / "out").iterdir() if path.name.startswith("best")} == {"best"}


def test_scores_while_training_survive(inputs: Path, tmp_path: Path) -> None:
    """The best weights are remembered, and an epoch that ended before it was scored is scored."""
    config = make_config(inputs, tmp_path / "out", epochs=3, evaluate_every="epoch")
    best, scores = tmp_path / "out" / "best" / "best.json", tmp_path / "out" / "scores"
    with scored(0.5, 0.9, 0.8, 0.7) as score:
        broken_off(config, 5)
        shutil.rmtree(scores / "checkpoint-4")
        best.write_text(json.dumps({"metric": "lume_score.task_aggregate", "value": 0.85, "step": 2}))
        resumed(config)
        assert score.call_count == 4
    assert json.loads(best.read_text())["step"] == 2
    assert (scores / "checkpoint-4" / "results_lume.json").is_file()
    assert (scores / "checkpoint-6" / "results_lume.json").is_file()
