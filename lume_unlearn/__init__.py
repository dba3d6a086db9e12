"""Unlearning trainers for causal language models: LoRA or full, scored afterwards by lm-eval's LUME tasks.

`run(RunConfig(...))` is what the command `lume-unlearn run` calls; `unlearn(model_path, output_path, forget_dir,
retain_dir)` is the signature of SemEval-2025 Task 4 submissions. Each name is imported on first use, so that importing
the package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lume_unlearn.config import RunConfig
    from lume_unlearn.errors import ConfigError
    from lume_unlearn.training.run import run, unlearn

__all__ = ["ConfigError", "RunConfig", "run", "unlearn"]
_MODULES = {"ConfigError": "errors", "RunConfig": "config", "run": "training.run", "unlearn": "training.run"}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
