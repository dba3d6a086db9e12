"""Numbers or memory that run out: where the run stops, what the message says, what is kept."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from lume_unlearn.config import RunConfig
from lume_unlearn.errors import ConfigError
from lume_unlearn.model import load
from lume_unlearn.training import merge
from lume_unlearn.training.checkpoints import whole_checkpoints
from lume_unlearn.training.run import run
from lume_unlearn.training.trainer import UnlearningTrainer
from tests.faults.runs import make_config

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("little_to_collect")]


def diverging(config: RunConfig, step: int, value: float = torch.inf) -> None:
    """Run, with a loss that becomes this value in this step."""
    own = UnlearningTrainer.terms

    def terms(trainer: UnlearningTrainer, *args: Any) -> Any:
        found = own(trainer, *args)
        worse = trainer.state.global_step == step - 1
        return {name: term * value for name, term in found.items()} if worse else found

    with mock.patch.object(UnlearningTrainer, "terms", terms):
        run(config)


@pytest.mark.parametrize(("method", "value"), [("gd", torch.inf), ("sugd", torch.inf), ("ngdiff", torch.nan)])
def test_a_run_stops_at_the_step_that_diverges(method: str, value: float, inputs: Path, tmp_path: Path) -> None:
    config = make_config(inputs, tmp_path / "out", method)
    with pytest.raises(ConfigError) as caught:
        diverging(config, 3, value)
    message = str(caught.value)
    assert message.startswith("--learning_rate 0.002: diverged at step 3 (the ")
    assert "rows forget-" in message
    assert message.endswith("start again in another --output with a lower --learning_rate")
    assert [path.name for path in whole_checkpoints(tmp_path / "out")] == ["checkpoint-2", "checkpoint-1"]


@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_an_infinite_gradient_norm_stops_the_run_before_clipping(clip: float, inputs: Path, tmp_path: Path) -> None:
    """Each gradient is finite, as is the loss; clipping would scale all gradients to 0."""
    config = make_config(inputs, tmp_path / "out", "ga", "full", forget_weight=1e30, max_grad_norm=clip)
    with pytest.raises(ConfigError, match=r"diverged at step 1 \(the gradient norm is inf; rows forget-"):
        run(config)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def cuda_says(*args: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def python_says(*args: Any) -> None:
    bytearray(2**62)


@pytest.mark.parametrize(
    ("place", "name", "says"),
    [
        (UnlearningTrainer, "terms", cuda_says),
        (UnlearningTrainer, "terms", python_says),
        (load, "load_model", cuda_says),
        (merge, "subtract_training", cuda_says),
    ],
)
def test_memory_that_runs_out_names_options(place: Any, name: str, says: Any, inputs: Path, tmp_path: Path) -> None:
    config = make_config(inputs, tmp_path / "out", "task-vector", "full", max_tokens=500)
    with mock.patch.object(place, name, says), pytest.raises(ConfigError, match="out of memory") as caught:
        run(config)
    options = [line.split()[0].rstrip(":") for line in str(caught.value).splitlines()[1:]]
    expected = ["max_tokens", "gradient_checkpointing", "reference_copy", "optimizer", "tuning", "weights"]
    assert options == [f"--{name}" for name in expected]
    assert "now 500" in str(caught.value)
