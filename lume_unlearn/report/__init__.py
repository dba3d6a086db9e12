"""Results of the harness as a page and as a model card."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def template(name: str, **options: Any) -> Template:
    """Load a template of this folder; ``options`` are those of jinja2's ``Environment``."""
    loader = PackageLoader(__name__, "")
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **options)
    return environment.get_template(name)
