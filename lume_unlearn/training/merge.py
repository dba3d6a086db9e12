"""Weight arithmetic: fold a LoRA adapter into its model, and negate training for task vectors."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from lume_unlearn.errors import ConfigError, require_unused
from lume_unlearn.files import fresh_partial, only_run, publish_result, writing
from lume_unlearn.methods.task_vector import negated
from lume_unlearn.model import load


@torch.no_grad()
def negate(model: Any, start: dict[str, Tensor], scale: float) -> None:
    """Change trained weights to ``start - scale * (trained - start)``, in place.

    Args:
        model: after training. Of a PEFT model, the update B A of each weight becomes -scale * B A.
        start: state dictionary of a fully trained model before training.
        scale: see `methods.task_vector`.
    """
    if not isinstance(model, PeftModel):
        model.load_state_dict(negated(start, model.state_dict(), scale))
        return
    for name, weight in model.named_parameters():
        if ".lora_B." in name or ".lora_embedding_B." in name:
            weight.mul_(-scale)


@torch.no_grad()
def merge(
    model: Any, adapter: str | None = None, output: str | None = None, dtype: torch.dtype = torch.float32
) -> Any:
    """Fold a LoRA adapter into its model and return the model.

    Args:
        model: a PEFT model in memory, or the name of the adapter's model (None: the one that the adapter names).
        adapter: folder of the adapter, unless ``model`` is a PEFT model.
        output: folder to save model and tokenizer to; nothing is saved by default.
        dtype: of the weights: float32 (scores as the adapter does) or bfloat16 (half the size).

    Raises:
        ConfigError: the adapter cannot be loaded or does not fit the model, or the output is in use or cannot be
            written.
    """
    if output is not None:
        require_unused(Path(output))
    if isinstance(model, PeftModel):
        return model.merge_and_unload().to(dtype)
    if adapter is None:
        raise ConfigError("--adapter: name the folder of an adapter, or give a PEFT model")
    named = model or load.adapter_config(adapter).base_model_name_or_path
    if not named:
        raise ConfigError(f"--adapter {adapter}: names no model; name it with --model")
    merged = load.merged_model(str(named), adapter).to(dtype)
    if output is not None:
        has_tokenizer = (Path(adapter) / "tokenizer_config.json").exists()
        tokenizer = load.load_tokenizer(adapter if has_tokenizer else str(named))
        with only_run(Path(output)), writing(Path(output)):
            partial = fresh_partial(Path(output))
            merged.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            publish_result(partial, Path(output))
    return merged
