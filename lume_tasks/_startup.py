"""Makes the harness find the LUME tasks and model classes without a flag.

`lume_tasks_autoload.pth` calls `install` at the start of every interpreter of the environment. So this module imports
only what an interpreter has loaded anyway; everything else is imported once the harness is.
"""

import os
import sys
from _thread import get_ident

TYPE_CHECKING = False  # as in typing, which is too slow to import here
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from inspect import BoundArguments, Signature
    from types import ModuleType
    from typing import Any

HARNESS_TASKS = "lm_eval.tasks"  # the harness's entry-point group has the same name
HARNESS_MODELS = "lm_eval.models"
MODELS = {"lume-hf": "lume_tasks.models.hf:LumeHF", "lume-vllm": "lume_tasks.models.vllm:LumeVLLM"}


def switched_off() -> bool:
    """Tell whether LUME_TASKS_AUTOLOAD is 0, false, off or no."""
    return os.environ.get("LUME_TASKS_AUTOLOAD", "").strip().lower() in ("0", "false", "off", "no")


def install() -> None:
    """Patch the harness's TaskManager and its models: now if they are loaded, else as soon as they are."""
    if switched_off():
        return
    # The finder stays for good: taking it out could make an import in another thread skip a finder.
    sys.meta_path.insert(0, HarnessFinder())
    for name in PATCHES:
        if name in sys.modules:
            patch(sys.modules[name])


class HarnessFinder:
    """Meta path finder that lets the other finders find the modules to patch, and has them patched once executed."""

    def __init__(self) -> None:
        """Start with no search under way."""
        # (thread, module); other hooks may ask all finders again, this one included
        self._searching: set[tuple[int, str]] = set()

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Return the other finders' spec of a module to patch, and None for every other module."""
        search = (get_ident(), fullname)
        if fullname not in PATCHES or search in self._searching:
            return None
        self._searching.add(search)
        try:
            spec = self._ask_others(fullname, path, target)
        finally:
            self._searching.discard(search)
        if spec is not None and spec.loader is not None:
            _patch_after_execution(spec.loader, fullname)
        return spec

    def _ask_others(
        self, fullname: str, path: "Sequence[str] | None", target: "ModuleType | None"
    ) -> "ModuleSpec | None":
        for finder in list(sys.meta_path):
            if finder is not self and hasattr(finder, "find_spec"):
                spec = finder.find_spec(fullname, path, target)
                if spec is not None:
                    return spec
        return None


def _patch_after_execution(loader: "Any", name: str) -> None:
    try:
        execute = loader.exec_module

        def exec_module(module: "ModuleType") -> None:
            # Undone first, so that the loader is as it was (a zip's loader is shared by all of its modules).
            getattr(loader, "__dict__", {}).pop("exec_module", None)
            execute(module)
            if module.__name__ == name:
                patch(module)

        loader.exec_module = exec_module
    except Exception as error:
        _warn(name, error)


def patch(module: "ModuleType") -> None:
    """Add what is ours to a loaded module of the harness; a failure is a logged warning, never an exception."""
    try:
        if not switched_off():
            PATCHES[module.__name__][0](module)
    except Exception as error:
        _warn(module.__name__, error)


def _add_models(_: "ModuleType") -> None:
    """Register the model classes, which are imported when they are asked for.

    Not before `lm_eval.models` has run: the harness imports it, and with it its own classes, where the registry is
    empty.
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
    folder = str(task_dir())
    stand_aside = _harness_reads_entry_points()

    @functools.wraps(original)
    def init(self: "Any", *args: "Any", **kwargs: "Any") -> None:
        nonlocal stand_aside
        call = _call_with_folder(signature, folder, (self, *args), kwargs)
        if call is None or stand_aside:
            original(self, *args, **kwargs)
            if call is None or "lume_task1" in getattr(self, "all_tasks", ()):
                return
            stand_aside = False  # the harness did not find the tasks after all
        original(*call.args, **call.kwargs)
        self.include_path = signature.bind(self, *args, **kwargs).arguments.get("include_path")

    init.lume_task_dir = folder  # type: ignore[attr-defined]
    manager_class.__init__ = init


def _call_with_folder(
    signature: "Signature", folder: str, args: "tuple[Any, ...]", kwargs: "dict[str, Any]"
) -> "BoundArguments | None":
    """Put `folder` before the include_path of a call, so that later folders win; None leaves the call as it is."""
    try:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        given = call.arguments["include_path"]
        paths = list(given) if isinstance(given, (list, tuple)) else [given] if given else []
        if not call.arguments["include_defaults"] or any(_contains(path, folder) for path in paths):
            return None
    except TypeError:  # wrong arguments: the harness says so itself
        return None
    call.arguments["include_path"] = [folder, *paths]
    return call


def _contains(parent: "str | os.PathLike[str]", folder: str) -> bool:
    parent = os.path.join(os.path.realpath(parent), "")
    return os.path.join(os.path.realpath(folder), "").startswith(parent)


def _harness_reads_entry_points() -> bool:
    """Tell whether the source of the loaded harness names the entry-point group, in which case it loads our tasks.

    A wrong answer is harmless: a false yes is noticed when the tasks are missing, a false no lists them twice.
    """
    quoted = (f'"{HARNESS_TASKS}"', f"'{HARNESS_TASKS}'")
    sources = [_source(name, module) for name, module in list(sys.modules.items()) if name.startswith("lm_eval.")]
    return any(text in source for source in sources for text in quoted)


def _source(name: str, module: "ModuleType") -> str:
    loader: Any = getattr(module, "__loader__", None)
    try:
        return loader.get_source(name) or ""
    except (AttributeError, ImportError):  # not every loader knows the source
        return ""


def _warn(name: str, error: Exception) -> None:
    import logging

    logging.getLogger("lume_tasks").warning("%s (%s: %s)", PATCHES[name][1], type(error).__name__, error)


# Module of the harness -> how it is patched, and what to say where that fails.
PATCHES: "dict[str, tuple[Callable[[ModuleType], None], str]]" = {
    HARNESS_TASKS: (
        _add_tasks,
        'the LUME tasks were not added to lm_eval; use --include_path "$(lume-tasks path)"',
    ),
    HARNESS_MODELS: (
        _add_models,
        "the models lume-hf and lume-vllm were not added to lm_eval; pass a lume_tasks.models.hf.LumeHF from Python",
    ),
}
