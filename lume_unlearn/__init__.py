"""Unlearning trainers for causal language models: LoRA or full, scored afterwards by lm-eval's LUME tasks.

`run(RunConfig(...))` is what the command `lume-unlearn run` calls; `unlearn(model_path, output_path, forget_dir,
retain_dir)` is the signature of SemEval-2025 Task 4 submissions. Both are loaded on first use, so that importing the
package stays cheap.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lume_unlearn.config import RunConfig
    from lume_unlearn.errors import ConfigError
    from lume_unlearn.training.run import run, unlearn

__all__ = ["ConfigError", "RunConfig", "run", "unlearn"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first asked for."""
    from importlib import import_module

    if name in ("ConfigError", "RunConfig"):
        return getattr(import_module("lume_unlearn.config"), name)
    if name in ("run", "unlearn"):
        return getattr(import_module("lume_unlearn.training.run"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
