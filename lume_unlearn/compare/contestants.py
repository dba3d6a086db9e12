"""The contestants: each method, or each recipe, with each tuning, and the options of its runs."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from os import PathLike, fspath
from typing import Any, TypeAlias

import torch
from peft import LoraConfig

from lume_unlearn.checks import RANGES, PositiveInt, Share, listed, raise_faults
from lume_unlearn.data.documents import read_texts
from lume_unlearn.data.substitutes import read_substitutes
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.base import Method
from lume_unlearn.methods.registry import METHODS, method_of
from lume_unlearn.methods.table import parameters
from lume_unlearn.model.fingerprint import weights_sha256
from lume_unlearn.model.load import load_model, lora_config
from lume_unlearn.recipes import read_recipe
from lume_unlearn.training.arguments import UnlearningArguments

MethodLike: TypeAlias = str | PathLike[str] | Mapping[str, Any] | Method | type[Method]
"""A name of `lume-unlearn methods`, a method, its class, or a recipe: a YAML file, or the same as a dictionary.

In a dictionary ``method`` may also be a method or its class, and ``name`` is the name of the recipe."""
READ: dict[str, Callable[[str], Any]] = {
    "substitutes": read_substitutes,
    "unseen": partial(read_texts, "unseen"),
    "base": partial(load_model, dtype=torch.float32, option="base"),
}
"""Options of a recipe that name files or a model, to the functions that read them."""
KINDS: dict[str, Callable[[Any], Any]] = {
    **{"lora_rank": PositiveInt, "lora_alpha": PositiveInt, "lora_dropout": Share},
    **dict.fromkeys(("lora_targets", "tuning", *READ), fspath),
}
"""Options of a recipe that are neither the method's nor in `UnlearningArguments`, to functions that check a value."""
NOT_OURS = (
    *("model", "output", "output_dir", "data", "split", "forget", "retain", "forgotten", "alternatives", "seed"),
    *("resume_from_checkpoint", "trust_remote_code", "config"),
)
"""Options of `run` that are ignored in a recipe, since the comparison sets them."""


@dataclass(frozen=True)
class Contestant:
    """A method with a tuning."""

    method: Method
    tuning: str
    """What is trained: lora, full, last:K or modules:REGEX."""
    options: Mapping[str, Any]
    """Arguments of `UnlearningArguments`: the comparison's, overridden by the recipe's own."""
    recipe: Mapping[str, Any]
    """The recipe's options without its method; empty for a method."""

    @property
    def lora(self) -> LoraConfig:
        """Configuration of the adapter."""
        return lora_config(**{name: value for name, value in self.recipe.items() if name.startswith("lora_")})

    def identity(self) -> dict[str, Any]:
        """Return what trials depend on, as JSON data, so that a storage of a changed recipe can be refused."""
        plain = {"method": asdict(self.method), "options": self.options, "recipe": self.recipe}
        return dict(json.loads(json.dumps(plain, default=str)))

    def contents(self) -> dict[str, str]:
        """Read what the recipe names in `READ`; return the SHA-256 of each content, which trials also depend on."""
        found = {}
        for name in READ.keys() & self.recipe.keys():
            read = READ[name](self.recipe[name])
            digest = weights_sha256(read) if name == "base" else sha256(repr(read).encode()).hexdigest()
            found[f"content of {name}"] = digest
        return found

    @property
    def chat(self) -> bool:
        """Whether questions go through the chat template, in training and in scoring."""
        return bool(self.options.get("chat", True))


def contestants(
    methods: Sequence[MethodLike], tunings: Sequence[str], options: Mapping[str, Any]
) -> dict[str, Contestant]:
    """Return contestants by name: every method with every tuning; a recipe that names a tuning, only with that.

    Args:
        methods: see `MethodLike`.
        tunings: what to train.
        options: arguments of `UnlearningArguments` for all methods; a recipe's own override them.

    Raises:
        ConfigError: names every method that is unknown or given twice, and every option that `run` does not have.
    """
    found: dict[str, Contestant] = {}
    known = UnlearningArguments.__dataclass_fields__.keys() - {*NOT_OURS}
    faults = [f"compare: there is no option {name}" for name in sorted(options.keys() - known)]
    for given in listed(methods):
        label, method, recipe = _read(given)
        own = {name: value for name, value in recipe.items() if name in known}
        for name in sorted(map(str, recipe.keys() - own.keys() - KINDS.keys() - method.params().keys())):
            lacking = f"{method.name} has no parameter" if name in parameters() else "`run` has no option"
            faults.append(f"--methods {label}: {lacking} {name}")
        for tuning in listed(recipe.get("tuning", tunings)):
            name = f"{label} {tuning}"
            faults += [f"--methods {label}: is given twice; give it once"] * (name in found)
            found[name] = Contestant(method, tuning, {**options, **own}, recipe)
    raise_faults(faults if found else ["--methods, --tunings: name at least one of each"])
    return found


def _read(given: MethodLike) -> tuple[str, Method, dict[str, Any]]:
    """Return a label, the method and the options of a recipe."""
    if isinstance(given, (Method, type)) or (isinstance(given, str) and given in METHODS):
        method = method_of(given)
        params = method.params().items()
        changed = [f"{name}={getattr(method, name)}" for name, p in params if getattr(method, name) != p.default]
        return f"{method.name}({', '.join(changed)})" if changed else method.name, method, {}
    label = str(given)
    if isinstance(given, Mapping):
        content, label = dict(given), str(given.get("name", given.get("method")))
        content.pop("name", None)
    else:
        content = read_recipe(label, "--methods")
    if not isinstance(content.get("method"), (str, Method, type)):
        raise ConfigError(f"--methods {label}: must name one method, such as `method: npo`")
    recipe = {name: value for name, value in content.items() if value is not None and name not in NOT_OURS}
    for name, value in recipe.items():
        try:
            recipe[name] = KINDS.get(name, _plain)(value)
        except (TypeError, ValueError) as error:
            wanted = RANGES.get(KINDS[name], "one text")
            raise ConfigError(f"--methods {label}: {name} {value!r}: must be {wanted}") from error
    method = method_of(recipe.pop("method"))
    return label, method_of(method, **{name: recipe[name] for name in method.params() if name in recipe}), recipe


def _plain(value: Any) -> Any:
    """Convert text such as "1e-3", which YAML does not read as a number, to a number."""
    for kind in (int, float) if isinstance(value, str) else ():
        with suppress(ValueError):
            return kind(value)
    return value
