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
        if option == "--methods":
            raise ConfigError(f"--methods {name}: no such method, recipe or file (`lume-unlearn methods` lists them)")
        raise ConfigError(
            f"{option} {name}: neither a file nor a shipped recipe (`lume-unlearn methods` lists them); "
            "to use the defaults of a method, give --method M --tuning T instead"
        )
    return path
