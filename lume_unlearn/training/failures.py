"""What a run says when its numbers or its memory run out."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lume_unlearn.config import ConfigError, RunConfig
from lume_unlearn.model.distributed import by_deepspeed
from lume_unlearn.model.load import is_out_of_memory, use_bfloat16
from lume_unlearn.training.checkpoints import PREFIX, whole_checkpoints, withdraw


def require_finite(config: RunConfig, model: nn.Module, loss: Tensor, step: int, rows: Sequence[str]) -> None:
    """Refuse a step that would put infinities into the weights.

    Before gradients are clipped: clipping turns a norm that overflows into gradients of 0, which look harmless.
    DeepSpeed takes the step within the backward pass and leaves no gradients: there only the loss can be looked at, and
    afterwards.

    Args:
        config: of the run.
        model: with the gradients of the whole step.
        loss: of the step.
        step: counted from 1.
        rows: names of the step's rows.

    Raises:
        ConfigError: the loss or the norm of all gradients is infinite or not a number.
    """
    if not math.isfinite(loss):
        raise diverged(config, "the loss", loss.item(), step, rows)
    norm = total_norm([weight.grad for weight in model.parameters()])
    if not math.isfinite(norm):
        raise diverged(config, "the gradient norm", norm, step, rows)


def total_norm(gradients: Sequence[Tensor | None]) -> float:
    """L2 norm over all tensors that there are, sharded ones too."""
    norm: Any = get_total_norm([gradient for gradient in gradients if gradient is not None])
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def diverged(config: RunConfig, what: str, value: float, step: int, rows: Sequence[str]) -> ConfigError:
    """The error for a value that no step can be made from; it names what to do.

    A checkpoint of the step before is withdrawn where there is an older one: its weights would most likely come to the
    same value again, at any rate.
    """
    output = Path(config.output)
    newest = f"{PREFIX}{step - 1}"
    whole = [path.name for path in whole_checkpoints(output)]
    if newest in whole and len(whole) > 1:
        withdraw(output, step - 1)
        whole.remove(newest)
    shown = ", ".join(rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
    how = f"the same command with --resume --learning_rate {config.learning_rate / 2:g}"
    if not whole:
        advice = f"{how} begins anew, as no checkpoint was made before this went wrong (--save_steps N makes them)"
    elif whole[0] == newest:
        advice = (
            f"{newest}, of the step just before, is kept, as there is no other: {how} goes on from it; should it "
            "diverge at once again, begin anew at the lower rate in another folder"
        )
    else:
        advice = f"{whole[0]} is kept: {how} goes on from it"
    taken = "DeepSpeed had taken the step by then, in memory only" if by_deepspeed() else "the step was not taken"
    return ConfigError(
        f"--learning_rate {config.learning_rate:g}: {config.method} diverged at step {step} ({what} is {value}; rows "
        f"{shown}); {taken}; {advice}"
    )


class LowerRate(TrainerCallback):
    """Goes on from a checkpoint with another learning rate than it was made with."""

    def __init__(self, ratio: float) -> None:
        """``ratio``: new rate to the checkpoint's."""
        self.ratio = ratio

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **kwargs: Any,
    ) -> None:
        """Scale what the checkpoint brought."""
        for group in optimizer.param_groups:
            group["lr"] *= self.ratio
        scheduler = getattr(lr_scheduler, "scheduler", lr_scheduler)
        scheduler.base_lrs = [rate * self.ratio for rate in scheduler.base_lrs]
        scheduler._last_lr = [rate * self.ratio for rate in scheduler._last_lr]  # what the log shows


@contextmanager
def memory_advice(config: RunConfig, model: nn.Module | None = None) -> Iterator[None]:
    """Say which settings would help where memory runs out; without a model, while one is loaded.

    Raises:
        ConfigError: instead of torch's error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not is_out_of_memory(error):
            raise
        raise ConfigError(_advice(config, model) if model else _loading_advice(config)) from error


def _loading_advice(config: RunConfig) -> str:
    smaller = "--tuning lora: a GPU that computes in bfloat16 then holds the model in that, at half the size"
    if config.tuning != "lora" and config.weights == "float32":
        smaller += "\n--weights bfloat16: half the size for any tuning"
    return f"out of memory while loading --model {config.model}; what helps, beside a smaller model:\n{smaller}"


def _advice(config: RunConfig, model: nn.Module) -> str:
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    plain, checkpointed = _activations(config, model)
    states = trained * 12  # float32 gradient and the two moments of Adam
    settings = [
        f"--max_tokens {max(config.max_tokens // 2, 1)}: a pass holds up to {config.max_tokens} tokens now",
        "--gradient_checkpointing true: "
        + (
            "is on already"
            if config.gradient_checkpointing
            else f"the layers of a full pass hold roughly {_size(plain)} now, then {_size(checkpointed)}"
        ),
    ]
    if config.tuning == "lora":
        settings.append(
            f"--lora_rank {max(config.lora_rank // 2, 1)}: gradients and optimiser take {_size(states)} now"
        )
    else:
        settings.append(
            f"--tuning lora, or --optimizer adamw8bit: gradients and optimiser take {_size(states)} now, with 8 bits "
            f"{_size(trained * 6)}, with an adapter next to nothing"
        )
    if config.tuning != "lora" and config.reference_copy == "same" and config.needs_reference_forward:
        copied = sum(w.numel() * w.element_size() for w in model.parameters() if w.requires_grad)
        settings.append(
            f"--reference_copy bfloat16, int8 or cpu: the copy of the model before unlearning takes {_size(copied)} now"
        )
    return "\n".join(
        [f"out of memory (the weights alone take {_size(size)}); what helps, first things first:", *settings]
    )


def _activations(config: RunConfig, model: nn.Module) -> tuple[float, float]:
    """Bytes that the layers of a full pass keep for its backward pass, without and with gradient checkpointing.

    Counted for a Llama: 9 values of the model's width and 4 of the MLP's, of each token in each layer.
    """
    shape = model.config.get_text_config()  # type: ignore[union-attr, operator]
    width, layers = getattr(shape, "hidden_size", 0), getattr(shape, "num_hidden_layers", 1)
    layer = 9 * width + 4 * (getattr(shape, "intermediate_size", None) or 4 * width)
    size = config.max_tokens * (2 if use_bfloat16(config) else 4)
    return size * layers * layer, size * (layers * width + layer)


def _size(size: float) -> str:
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size / 2**20:.1f} MB"
