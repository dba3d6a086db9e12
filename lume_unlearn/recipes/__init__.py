"""Recipes: YAML files with options of `lume-unlearn run`; this folder has the shipped ones."""

from pathlib import Path

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
