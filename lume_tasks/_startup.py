"""Makes the harness find the LUME tasks without a flag.

`lume_tasks_autoload.pth` calls `install` at the start of every interpreter of the environment. So this module imports
only what an interpreter has loaded anyway; everything else is imported once the harness is.
"""

import os
import sys
from _thread import get_ident

TYPE_CHECKING = False  # as in typing, which is too slow to import here
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from inspect import BoundArguments, Signature
    from types import ModuleType
    from typing import Any

HARNESS_TASKS = "lm_eval.tasks"  # the module to patch; the harness's entry-point group has the same name


def switched_off() -> bool:
    """Tell whether LUME_TASKS_AUTOLOAD is 0, false, off or no."""
    return os.environ.get("LUME_TASKS_AUTOLOAD", "").strip().lower() in ("0", "false", "off", "no")


def install() -> None:
    """Patch the harness's TaskManager: now if it is loaded, else as soon as it is."""
    if switched_off():
        return
    # The finder stays for good: taking it out could make an import in another thread skip a finder.
    sys.meta_path.insert(0, TasksFinder())
    if HARNESS_TASKS in sys.modules:
        patch(sys.modules[HARNESS_TASKS])


class TasksFinder:
    """Meta path finder that lets the other finders find `lm_eval.tasks` and has it patched once it is executed."""

    def __init__(self) -> None:
        """Start with no search under way."""
        self._searching: set[int] = set()  # threads; other hooks may ask all finders again, this one included

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Return the other finders' spec of `lm_eval.tasks`, and None for every other module."""
        if fullname != HARNESS_TASKS or get_ident() in self._searching:
            return None
        self._searching.add(get_ident())
        try:
            spec = self._ask_others(fullname, path, target)
        finally:
            self._searching.discard(get_ident())
        if spec is not None and spec.loader is not None:
            _patch_after_execution(spec.loader)
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


def _patch_after_execution(loader: "Any") -> None:
    try:
        execute = loader.exec_module

        def exec_module(module: "ModuleType") -> None:
            # Undone first, so that the loader is as it was (a zip's loader is shared by all of its modules).
            getattr(loader, "__dict__", {}).pop("exec_module", None)
            execute(module)
            if module.__name__ == HARNESS_TASKS:
                patch(module)

        loader.exec_module = exec_module
    except Exception as error:
        _warn(error)


def patch(tasks: "ModuleType") -> None:
    """Make `tasks.TaskManager` search the LUME task folder too; a failure is a logged warning, never an exception."""
    try:
        if not switched_off():
            _wrap_init(tasks.TaskManager)
    except Exception as error:
        _warn(error)


def _wrap_init(manager_class: "Any") -> None:
    import functools
    import inspect

    from lume_tasks.paths import task_dir

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


def _warn(error: Exception) -> None:
    import logging

    logging.getLogger("lume_tasks").warning(
        'the LUME tasks were not added to lm_eval (%s: %s); use --include_path "$(lume-tasks path)"',
        type(error).__name__,
        error,
    )
