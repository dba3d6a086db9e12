"""Recipes: YAML files with options of `lume-unlearn run`; this folder has the shipped ones."""

from pathlib import Path
from typing import Any

import yaml

from lume_unlearn.errors import ConfigError

FOLDER = Path(__file__).parent


def find_recipe(name: str, option: str = "--config") -> Path:
    """Return the file of a recipe from its path, or from the name of a shipped recipe, such as "sugd_last8".

    Raises:
        ConfigError: there is no such recipe; the message names ``option``.
    """
    shipped = FOLDER / f"{name}.yaml"
    path = shipped if shipped.is_file() and not Path(name).is_file() else Path(name)
    if not path.exists() or path.is_dir():
        raise ConfigError(
            f"{option} {name}: no such recipe or file; `lume-unlearn methods` lists recipes and methods "
            "(a method with its defaults: `run --method M`, `compare --methods M`)"
        )
    return path


def read_recipe(name: str, option: str = "--config") -> dict[str, Any]:
    """Return the options in the file of a recipe (see `find_recipe`).

    Raises:
        ConfigError: there is no such recipe, or the file is not YAML in UTF-8 with one option a line.
    """
    path = find_recipe(name, option)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{option} {name}: cannot be read; it must be YAML in UTF-8 ({reason})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{option} {name}: is no recipe; write one option a line, such as `method: npo`")
    return content
