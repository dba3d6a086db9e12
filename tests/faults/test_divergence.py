"""Numbers or memory that run out: where the run stops, what the message says, what is kept."""

import re
from typing import Any
from unittest import mock

import pytest
import torch

from lume_unlearn.errors import ConfigError, Diverged
from lume_unlearn.model import load
from lume_unlearn.training import trainer
from lume_unlearn.training.checkpoints import whole_checkpoints
from lume_unlearn.training.loss import LossTerms
from lume_unlearn.training.trainer import UnlearningTrainer
from tests.faults.runs import Run, make

pytestmark = pytest.mark.faults


def diverging(run: Run, step: int, value: float) -> None:
    """Run, with a loss that becomes this value in this step."""
    own = UnlearningTrainer.add_gradients

    def add_gradients(self: UnlearningTrainer, *args: Any, **kwargs: Any) -> Any:
        return own(self, *args, **kwargs) * (value if self.state.global_step == step - 1 else 1)

    with mock.patch.object(UnlearningTrainer, "add_gradients", add_gradients):
        run()


@pytest.mark.parametrize(("method", "value"), [("gd", torch.inf), ("sugd", torch.nan)])
def test_a_run_stops_at_the_step_that_diverges(method, value, inputs, tmp_path):
    with pytest.raises(Diverged, match=r"^--learning_rate 0.002: diverged at step 3 \(the loss is .*; rows forget-"):
        diverging(make(inputs, tmp_path / "out", method), 3, value)
    assert [path.name for path in whole_checkpoints(tmp_path / "out")] == ["checkpoint-2", "checkpoint-1"]


@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_an_infinite_gradient_norm_stops_the_run_before_clipping(clip, inputs, tmp_path):
    """Each gradient is finite, as is the loss; clipping would scale all gradients to 0."""
    with pytest.raises(Diverged, match=r"diverged at step 1 \(the gradient norm is inf; rows forget-"):
        make(inputs, tmp_path / "out", "ga", "full", forget_weight=1e30, max_grad_norm=clip)()
    assert not (tmp_path / "out" / "model.safetensors").exists()


def cuda_says(*args: Any, **kwargs: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def python_says(*args: Any, **kwargs: Any) -> None:
    bytearray(2**62)


@pytest.mark.parametrize(
    ("place", "name", "says"),
    [
        (LossTerms, "__call__", cuda_says),
        (LossTerms, "__call__", python_says),
        (load, "load_model", cuda_says),
        (trainer, "negate", cuda_says),
    ],
)
def test_memory_that_runs_out_names_options(place, name, says, inputs, tmp_path):
    run = make(inputs, tmp_path / "out", "task-vector", "full", max_tokens=500)
    with mock.patch.object(place, name, says), pytest.raises(ConfigError, match="out of memory") as caught:
        run()
    assert not isinstance(caught.value, Diverged)
    assert "now 500" in str(caught.value)
    options = ["max_tokens", "gradient_checkpointing", "reference_copy", "optim", "tuning", "weights"]
    assert re.findall(r"^--(\w+)", str(caught.value), re.MULTILINE) == options
