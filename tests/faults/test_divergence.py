"""Numbers or memory that run out: where the run stops, what it says, what is kept."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from lume_unlearn.config import ConfigError, RunConfig
from lume_unlearn.methods.registry import METHODS
from lume_unlearn.model import load, merge
from lume_unlearn.training.checkpoints import whole_checkpoints
from lume_unlearn.training.failures import require_finite
from lume_unlearn.training.run import run
from lume_unlearn.training.trainer import UnlearningTrainer
from tests.faults.runs import assert_equal, broken_off, make_config, record, resumed

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


@pytest.mark.parametrize(
    ("method", "value"), [*((method, torch.inf) for method in METHODS), ("gd", torch.nan), ("ngdiff", torch.nan)]
)
def test_every_method_stops_at_the_step_and_keeps_the_last_good_checkpoint(
    method: str, value: float, inputs: Path, tmp_path: Path
) -> None:
    config = make_config(inputs, tmp_path / "out", method)
    with pytest.raises(ConfigError) as caught:
        diverging(config, 3, value)
    message = str(caught.value)
    assert message.startswith(f"--learning_rate 0.002: {method} diverged at step 3 (the ")
    assert "rows forget-" in message
    assert "the step was not taken; checkpoint-1 is kept" in message
    # A checkpoint of step 2 would come to the same loss at any learning rate.
    assert [path.name for path in whole_checkpoints(tmp_path / "out")] == ["checkpoint-1"]


def test_a_learning_rate_that_is_too_high_and_the_advice_that_is_given(inputs: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"method": "ga", "tuning": "full", "epochs": 4, "warmup": 0.0}
    config = make_config(inputs, tmp_path / "out", learning_rate=1e30, save_steps=0, **options)
    with pytest.raises(ConfigError, match=r"ga diverged at step 2 .* 5e\+29 begins anew, as no checkpoint"):
        run(config)
    lower = make_config(inputs, tmp_path / "out", learning_rate=1e-3, save_steps=0, **options)
    other = make_config(inputs, tmp_path / "other", learning_rate=1e-3, save_steps=0, **options)
    assert_equal(run(other), resumed(lower))


@pytest.mark.parametrize(("step", "options"), [(4, {"save_total_limit": 1}), (2, {})])
def test_the_only_checkpoint_stays_also_where_it_is_of_the_step_before(
    step: int, options: dict[str, Any], inputs: Path, tmp_path: Path
) -> None:
    config = make_config(inputs, tmp_path / "out", **options)
    with pytest.raises(ConfigError) as caught:
        diverging(config, step)
    name = f"checkpoint-{step - 1}"
    assert f"the step was not taken; {name}, of the step just before, is kept, as there is no other" in str(
        caught.value
    )
    assert [path.name for path in whole_checkpoints(tmp_path / "out")] == [name]
    rates = [entry["learning_rate"] for entry in record(resumed(config, learning_rate=1e-3))["history"]]
    assert len(rates) == 4


def test_deepspeed_has_taken_the_step_by_then(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not run here: what is said must not claim more than is known."""
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    config, model = make_config(inputs, tmp_path / "out"), torch.nn.Linear(2, 2)  # its gradients are None
    require_finite(config, model, torch.tensor(1.0), 3, ["forget-0"])
    with pytest.raises(ConfigError, match=r"rows forget-0\); DeepSpeed had taken the step by then, in memory only;"):
        require_finite(config, model, torch.tensor(torch.nan), 3, ["forget-0"])


def test_a_gradient_whose_norm_overflows_is_not_clipped_to_nothing(inputs: Path, tmp_path: Path) -> None:
    """Each gradient is finite, as is the loss; clipping would scale them all to 0, and the run go on in silence."""
    for clip in (1.0, 0.0):
        output = tmp_path / f"clip{clip}"
        config = make_config(inputs, output, "ga", "full", forget_weight=1e30, max_grad_norm=clip)
        with pytest.raises(ConfigError, match=r"ga diverged at step 1 \(the gradient norm is inf; rows forget-"):
            run(config)
        assert not (output / "model.safetensors").exists()


def test_going_on_at_a_lower_rate(inputs: Path, tmp_path: Path) -> None:
    """All later rates are lower by the same factor, once, however often the run is broken off."""
    options: dict[str, Any] = {"epochs": 4}
    high = record(run(make_config(inputs, tmp_path / "high", **options)))["history"]
    config = make_config(inputs, tmp_path / "out", **options)
    with pytest.raises(ConfigError, match=r"checkpoint-3 is kept: .* --learning_rate 0.001 goes on from it"):
        diverging(config, 5)
    lower = make_config(inputs, tmp_path / "out", learning_rate=1e-3, resume=True, **options)
    broken_off(lower, 6)
    (tmp_path / "out" / "unlearning.json").unlink()  # as if the process had died just before it was written
    rates = [entry["learning_rate"] for entry in record(run(lower))["history"]]
    expected = [entry["learning_rate"] / (2 if entry["step"] > 3 else 1) for entry in high]
    assert rates == pytest.approx(expected, rel=1e-12)


def test_the_weights_are_those_before_the_step(inputs: Path, tmp_path: Path) -> None:
    models = []
    own = UnlearningTrainer.__init__

    def init(trainer: UnlearningTrainer, *args: Any, **kwargs: Any) -> None:
        own(trainer, *args, **kwargs)
        models.append(trainer.model)

    config = make_config(inputs, tmp_path / "out", "gd", "full")
    with mock.patch.object(UnlearningTrainer, "__init__", init), pytest.raises(ConfigError):
        diverging(config, 1)
    before = load_file(inputs / "model" / "model.safetensors")
    after = models[0].state_dict()
    assert all(value.equal(after[name]) for name, value in before.items())


def cuda_says(*args: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def cpu_says(*args: Any) -> None:
    torch.empty(10**15)


def python_says(*args: Any) -> None:
    bytearray(2**62)


@pytest.mark.parametrize("says", [cuda_says, cpu_says, python_says])
def test_memory_that_runs_out(says: Any, inputs: Path, tmp_path: Path) -> None:
    def message(**options: Any) -> list[str]:
        config = make_config(inputs, tmp_path / options["tuning"], max_tokens=500, **options)
        with mock.patch.object(UnlearningTrainer, "terms", says), pytest.raises(ConfigError) as caught:
            run(config)
        return str(caught.value).splitlines()

    assert message(tuning="lora") == [
        "out of memory (the weights alone take 0.2 MB); what helps, first things first:",
        "--max_tokens 250: a pass holds up to 500 tokens now",
        # 500 tokens, 4 bytes; 9 * 32 + 4 * 64 values in each of 2 layers, then 32 and those of one layer
        "--gradient_checkpointing true: the layers of a full pass hold roughly 2.1 MB now, then 1.2 MB",
        "--lora_rank 2: gradients and optimiser take 0.0 MB now",
    ]
    full = message(tuning="full", gradient_checkpointing=True)
    assert full[2:] == [
        "--gradient_checkpointing true: is on already",
        "--tuning lora, or --optimizer adamw8bit: gradients and optimiser take 0.5 MB now, with 8 bits 0.3 MB, with an "
        "adapter next to nothing",
    ]
    assert message(tuning="last:1", retain_term="kl")[4:] == [
        "--reference_copy bfloat16, int8 or cpu: the copy of the model before unlearning takes 0.0 MB now"
    ]


@pytest.mark.parametrize(("place", "name"), [(load, "load_model"), (merge, "subtract_training")])
def test_memory_that_runs_out_before_or_after_training(place: Any, name: str, inputs: Path, tmp_path: Path) -> None:
    config = make_config(inputs, tmp_path / "out", "task-vector", "full")
    with mock.patch.object(place, name, cuda_says), pytest.raises(ConfigError, match="out of memory") as caught:
        run(config)
    assert "--tuning lora" in str(caught.value)


def test_other_errors_are_not_taken_for_memory(inputs: Path, tmp_path: Path) -> None:
    fault = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with mock.patch.object(UnlearningTrainer, "terms", side_effect=fault), pytest.raises(RuntimeError, match="shapes"):
        run(make_config(inputs, tmp_path / "out"))
