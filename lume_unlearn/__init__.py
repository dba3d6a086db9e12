"""Unlearning for causal language models: trainers, scores and audits, from Python and by `lume-unlearn`.

    from lume_unlearn import NPO, UnlearningArguments, UnlearningTrainer, score, verdict

Every public name is imported on first use, so that importing the package imports neither torch nor transformers. The
method classes are public names, too.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lume_unlearn.audit.probes import audit
    from lume_unlearn.audit.verdict import verdict
    from lume_unlearn.compare.run import compare
    from lume_unlearn.errors import ConfigError, Diverged
    from lume_unlearn.forget.forget import forget
    from lume_unlearn.methods.base import Method, Needs, param
    from lume_unlearn.scoring.score import score
    from lume_unlearn.training.arguments import UnlearningArguments
    from lume_unlearn.training.finetune import finetune
    from lume_unlearn.training.merge import merge
    from lume_unlearn.training.run import unlearn
    from lume_unlearn.training.trainer import UnlearningTrainer

_MODULES = {
    **dict.fromkeys(("ConfigError", "Diverged"), "errors"),
    **dict.fromkeys(("Method", "Needs", "param"), "methods.base"),
    "UnlearningArguments": "training.arguments",
    "UnlearningTrainer": "training.trainer",
    "audit": "audit.probes",
    "compare": "compare.run",
    "finetune": "training.finetune",
    "forget": "forget.forget",
    "merge": "training.merge",
    "score": "scoring.score",
    "unlearn": "training.run",
    "verdict": "audit.verdict",
}
__all__ = ["ConfigError", "Diverged", "Method", "Needs", "UnlearningArguments", "UnlearningTrainer", "audit", "compare"]
__all__ += ["finetune", "forget", "merge", "param", "score", "unlearn", "verdict"]


def __getattr__(name: str) -> Any:
    """Import a public name, or the class of a method, on first use."""
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    from lume_unlearn.methods.registry import METHODS

    for method in METHODS.values():
        if method.__name__ == name:
            return method
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Package(ModuleType):
    """Keeps public functions that share their name with a folder, which importing the folder would replace."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
