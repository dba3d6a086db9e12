"""Make the harness find the LUME tasks and model classes without a flag.

`lume_tasks_autoload.pth` calls `install` at the start of every interpreter of the environment. So this module imports
only modules that every interpreter loads anyway, and all others once the harness is loaded.
"""

import os
import sys

TYPE_CHECKING = False  # as in typing, which is too slow to import here
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

MODELS = {"lume-hf": "lume_tasks.models.hf:LumeHF", "lume-vllm": "lume_tasks.models.vllm:LumeVLLM"}


def install() -> None:
    """Patch the harness's TaskManager and model registry: now if they are loaded, else right after their import."""
    # The finder is never removed: removing it could make an import in another thread skip a finder.
    sys.meta_path.insert(0, HarnessFinder())
    for name in PATCHES:
        if name in sys.modules:
            patch(sys.modules[name])


class HarnessFinder:
    """Meta path finder that finds the modules to patch, and patches them once executed."""

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Return the spec of a module to patch, a file in the harness's folder; None for all other modules."""
        if fullname not in PATCHES:
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            _patch_after_execution(spec.loader)
        return spec


def _patch_after_execution(loader: "Any") -> None:
    execute = loader.exec_module

    def exec_module(module: "ModuleType") -> None:
        del loader.exec_module  # restores the loader's own method
        execute(module)
        patch(module)

    loader.exec_module = exec_module


def patch(module: "ModuleType") -> None:
    """Add the LUME tasks or models to a loaded module of the harness; log a warning if that fails.

    LUME_TASKS_AUTOLOAD=0 (or false, off, no) switches this off.
    """
    if os.environ.get("LUME_TASKS_AUTOLOAD", "").strip().lower() in ("0", "false", "off", "no"):
        return
    add, advice = PATCHES[module.__name__]
    try:
        add(module)
    except Exception as error:
        import logging

        logging.getLogger("lume_tasks").warning("%s (%s: %s)", advice, type(error).__name__, error)


def _add_models(_: "ModuleType") -> None:
    """Register the model classes by name, without importing them.

    This must happen after `lm_eval.models` has run: the harness skips its own classes if the registry is not empty.
    """
    from lm_eval.api.registry import model_registry

    for name, target in MODELS.items():
        if name not in model_registry:
            model_registry.register(name, target=target)


def _add_tasks(tasks: "Any") -> None:
    """Make `tasks.TaskManager` search the LUME task folder too."""
    import functools
    import inspect

    from lume_tasks.paths import task_dir

    manager_class = tasks.TaskManager
    original = manager_class.__init__
    if hasattr(original, "lume_task_dir"):
        return
    signature = inspect.signature(original)
    if not {"include_path", "include_defaults"} <= set(signature.parameters):
        raise TypeError("TaskManager no longer takes include_path and include_defaults")
    folder = task_dir()

    @functools.wraps(original)
    def init(self: "Any", *args: "Any", **kwargs: "Any") -> None:
        call = signature.bind(self, *args, **kwargs)
        given = call.arguments.get("include_path")
        paths = list(given) if isinstance(given, (list, tuple)) else [given] if given else []
        searched = any(folder.is_relative_to(os.path.realpath(path)) for path in paths)
        if call.arguments.get("include_defaults", True) and not searched:
            call.arguments["include_path"] = [str(folder), *paths]  # ours first, so that the user's folders win
        original(*call.args, **call.kwargs)

    init.lume_task_dir = str(folder)  # type: ignore[attr-defined]
    manager_class.__init__ = init


# Harness module -> the function that patches it, and the warning if that fails.
PATCHES: "dict[str, tuple[Callable[[ModuleType], None], str]]" = {
    "lm_eval.tasks": (
        _add_tasks,
        'the LUME tasks were not added to lm_eval; use --include_path "$(lume-tasks path)"',
    ),
    "lm_eval.models": (
        _add_models,
        "the models lume-hf and lume-vllm were not added to lm_eval; pass a lume_tasks.models.hf.LumeHF from Python",
    ),
}
