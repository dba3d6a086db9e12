"""Find what an option such as ``--model`` names: a folder with a model or a LoRA adapter, or a model of the hub."""

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from lume_unlearn.errors import ConfigError
from lume_unlearn.files import LOCK, PARTIAL, PREFIX

MODEL, ADAPTER, TOKENIZER = "config.json", "adapter_config.json", "tokenizer_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE = "base_model_name_or_path"
"""Field of `adapter_config.json` that names the adapter's model."""
UNFINISHED = "the run there did not finish; continue it with the same command and --resume"
HUB_NAME = r"[\w.-]+(/[\w.-]+)?"
PATH = r"[/~]|\.{1,2}(/|$)|.*/.*/|.*\\"
"""Pattern of the beginning of a name that can only be a path."""


@dataclass(frozen=True)
class Place:
    """Where a model is: in a folder or on the hub, with the adapters that belong to it."""

    name: str
    """As the user named it, with ``~`` expanded."""
    base: str
    """Folder or hub name of the model without adapters."""
    adapters: tuple[str, ...] = ()
    """Folders of the adapters to merge into it, in this order."""

    @property
    def tokenizer(self) -> str:
        """Folder or hub name of the tokenizer: that of the last adapter that has one, else the base model's."""
        own = [folder for folder in reversed(self.adapters) if (Path(folder) / TOKENIZER).is_file()]
        return own[0] if own else self.base

    def subject(self, option: str) -> str:
        """Return the beginning of a message about the base model."""
        return f"{option} {self.name}" + (f": its base model {self.base}" if self.adapters else "")

    @property
    def advice(self) -> str:
        """The end of a message about a base model that cannot be used; empty without adapters."""
        if not self.adapters:
            return ""
        first = self.adapters[0]
        merge = f"lume-unlearn merge --adapter {first} --model MODEL --output MERGED"
        return f"; correct {BASE} in {Path(first) / ADAPTER}, or name the model in `{merge}` and use MERGED"


def find_model(name: str | os.PathLike[str], option: str = "--model") -> Place:
    """Find a model. For the folder of an adapter, find the base model, which may be an adapter, too, and the adapter.

    Args:
        name: folder, or name on the hub. The hub is not asked.
        option: option that names it, for messages.

    Raises:
        ConfigError: there is no such folder, it holds no model or an unfinished one, or an adapter's base is missing.
    """
    name = os.fspath(name)
    if not name.strip():
        raise ConfigError(f"{option}: is empty; name a folder, or a model of the hub")
    place = Place(os.path.expanduser(name), os.path.expanduser(name))
    while _is_adapter(place.base):
        subject = place.subject(option)
        _require_adapter(place.base, subject)
        if any(os.path.samefile(place.base, other) for other in place.adapters):
            raise ConfigError(f"{subject}: is its own base model, directly or through other adapters{place.advice}")
        place = Place(place.name, _base_of(place.base, subject), (place.base, *place.adapters))
    fault = _fault(place.base)
    if fault:
        raise ConfigError(f"{place.subject(option)}: {fault}{place.advice}")
    return place


def with_adapter(place: Place, adapter: str | None, option: str = "--adapter") -> Place:
    """Return the place of a model with an adapter added, if it is not None; see `find_adapter` for other errors.

    Raises:
        ConfigError: the model has this adapter already.
    """
    if adapter is None:
        return place
    folder = find_adapter(adapter, option)
    if any(os.path.samefile(folder, other) for other in place.adapters):
        raise ConfigError(f"{option} {adapter}: --model {place.name} has this adapter already; drop {option}")
    return replace(place, adapters=(*place.adapters, folder))


def find_adapter(name: str, option: str = "--adapter") -> str:
    """Return the folder of an adapter, with ``~`` expanded; the hub is not asked.

    Raises:
        ConfigError: there is no such folder, or it holds no adapter in safetensors.
    """
    folder = os.path.expanduser(name)
    _require_adapter(folder, f"{option} {name}")
    return folder


def _require_adapter(folder: str, subject: str) -> None:
    path = Path(folder)
    if not path.is_dir():
        raise ConfigError(f"{subject}: no such folder")
    named, weights = ((path / name).is_file() for name in (ADAPTER, ADAPTER_WEIGHTS))
    if not (named and weights) and _unfinished(path):
        raise ConfigError(f"{subject}: {UNFINISHED}")
    if not named:
        model = "; it holds a model: give it as --model" if (path / MODEL).is_file() else ""
        raise ConfigError(f"{subject}: not an adapter's folder, there is no {ADAPTER} in it{model}")
    if not weights:
        raise ConfigError(f"{subject}: no {ADAPTER_WEIGHTS} in it; pickles are not loaded")


def _unfinished(folder: Path) -> bool:
    """Return whether a folder has checkpoints or other files of a run, but not its result."""
    if (folder / MODEL).is_file():
        return False
    return any((folder / name).exists() for name in (LOCK, PARTIAL)) or any(folder.glob(f"{PREFIX}[0-9]*"))


def _is_adapter(name: str) -> bool:
    """Return whether a name is that of an adapter's folder."""
    return (Path(name) / ADAPTER).is_file() and not (Path(name) / MODEL).is_file()


def _base_of(adapter: str, subject: str) -> str:
    """Return the folder or hub name of the model that an adapter was trained on.

    A relative path is tried from the working directory, and then from the folders above the adapter, where the run may
    have been started. ``subject`` begins the message.

    Raises:
        ConfigError: the adapter names no model.
    """
    try:
        named = json.loads((Path(adapter) / ADAPTER).read_text(encoding="utf-8")).get(BASE)
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{subject}: its {ADAPTER} cannot be read: {error!r}") from error
    if not isinstance(named, str) or not named:
        merge = f"lume-unlearn merge --adapter {adapter} --model MODEL --output MERGED"
        raise ConfigError(
            f"{subject}: names no base model; add it to {Path(adapter) / ADAPTER} ({BASE}), or use `{merge}`"
        )
    named = os.path.expanduser(named)
    if os.path.isdir(named) or os.path.isabs(named):
        return named
    above = [folder / named for folder in Path(os.path.abspath(adapter)).parents]
    found = [path for path in above if (path / MODEL).is_file() or (path / ADAPTER).is_file()]
    return str(found[0]) if found else named


def _fault(name: str) -> str | None:
    """Return why a name, which is not an adapter's, is no model; None for a model's folder and for a hub name."""
    path = Path(name)
    if (path / MODEL).is_file():
        return None
    if (path / "model" / MODEL).is_file():  # the output of `forget`
        return f"holds no model itself; name {path / 'model'}"
    if path.is_dir():
        return UNFINISHED if _unfinished(path) else f"holds no model: neither {MODEL} nor {ADAPTER}"
    if path.exists():
        return "is a file; name the folder that holds the model"
    if re.match(PATH, name) or os.path.isabs(name) or ("/" in name and path.parent.is_dir()):
        return "no such folder"
    if not re.fullmatch(HUB_NAME, name):
        return "no such folder, and not a hub name (NAME or OWNER/NAME)"
    return None
