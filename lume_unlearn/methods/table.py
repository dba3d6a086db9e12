"""Describe the methods: for `lume-unlearn methods`, the options' help, and the README's table."""

from collections.abc import Iterator

from lume_unlearn.methods.registry import METHODS
from lume_unlearn.methods.retain import term_needs_reference
from lume_unlearn.methods.spec import Method


def parameters() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return every parameter of some method: its help with its default in each of those methods, and its choices."""
    defaults: dict[str, list[str]] = {}
    texts: dict[str, tuple[str, tuple[str, ...]]] = {}
    for method in METHODS.values():
        for name, param in method.params.items():
            defaults.setdefault(name, []).append(f"{method.name} {_shown(param.default)}")
            texts[name] = param.help[0].upper() + param.help[1:], param.choices
    return {
        name: (f"{text} (default: {', '.join(defaults[name])}).", choices) for name, (text, choices) in texts.items()
    }


def listing(recipes: list[str]) -> Iterator[str]:
    """Yield lines about each method; ``recipes`` are the names of the shipped ones."""
    for method in METHODS.values():
        own = ", ".join(sorted(name for name in recipes if name.rpartition("_")[0] == method.name))
        yield f"{method.name:<12}{method.title}: {method.citation}"
        yield f"{'':12}loss on forget rows: {method.formula}"
        yield f"{'':12}retain term: {method.retain}; needs: {needs(method)}"
        yield f"{'':12}parameters: {_defaults(method) or 'none'}; recipes: {own or 'none'}"


def markdown() -> Iterator[str]:
    """Yield the lines of the README's table."""
    yield "| method | loss on forget rows | retain term | parameters | needs | source |"
    yield "|---|---|---|---|---|---|"
    for method in METHODS.values():
        name, retain = f"`{method.name}`", f"`{method.retain}`"
        cells = (name, method.formula, retain, _defaults(method) or "-", needs(method), method.citation)
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def needs(method: Method) -> str:
    """Return what a method needs beside the model in training."""
    found = []
    if method.reference_nll:
        found.append(f"reference NLL of {' and '.join(method.reference_nll)} rows, once")
    if method.needs_reference_forward:
        found.append("reference model on forget rows, each step")
    if method.teacher:
        found.append("counterfactual teacher of forget rows, once")
    if term_needs_reference(method.retain):
        found.append("reference model on retain rows, each step")
    if method.alternative:
        found.append({"file": "alternatives", "refusals": "refusals (built in)"}[method.alternative])
    return "; ".join(found) or "nothing"


def _defaults(method: Method) -> str:
    return ", ".join(f"{name} {_shown(param.default)}" for name, param in method.params.items())


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"
