"""Describe the methods: for `lume-unlearn methods`, the options' help, and the README's table."""

from collections.abc import Iterator
from typing import Any, get_type_hints

from lume_unlearn.methods.base import Method
from lume_unlearn.methods.registry import METHODS
from lume_unlearn.methods.retain import part_needs_reference, retain_parts


def parameters() -> dict[str, tuple[Any, str]]:
    """Return the hyperparameters of all methods by name: type, and help of the option.

    The help describes it for each method, with the defaults: "NPO temperature; ... (npo 0.1, token-npo 0.5)."
    """
    helps: dict[str, dict[str, list[str]]] = {}
    types: dict[str, Any] = {}
    for method in METHODS.values():
        hints = get_type_hints(method)
        for name, field in method.params().items():
            types[name] = hints[name]
            default = f"{method.name} {_shown(field.default)}"
            helps.setdefault(name, {}).setdefault(field.metadata["help"], []).append(default)
    return {
        name: (types[name], " ".join(f"{text[0].upper()}{text[1:]} ({', '.join(own)})." for text, own in texts.items()))
        for name, texts in helps.items()
    }


def listing(recipes: list[str]) -> Iterator[str]:
    """Yield lines about each method; ``recipes`` are the names of the shipped recipes."""
    for method in METHODS.values():
        own = ", ".join(sorted(name for name in recipes if name.rpartition("_")[0] == method.name))
        yield f"{method.name}: {method.title}. {method.source}"
        yield f"    loss on forget rows: {method.formula}"
        yield f"    retain term: {method.retain_term}; needs: {needs(method)}"
        yield f"    parameters: {_defaults(method) or 'none'}; recipes: {own or 'none'}"


def markdown() -> Iterator[str]:
    """Yield the lines of the README's table."""
    yield "| method | loss on forget rows | retain term | parameters | needs | source |"
    yield "|---|---|---|---|---|---|"
    for method in METHODS.values():
        name, retain = f"`{method.name}`", f"`{method.retain_term}`"
        cells = (name, method.formula, retain, _defaults(method) or "-", needs(method), method.source)
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def needs(method: type[Method]) -> str:
    """Describe what a method needs besides the model in training."""
    own, found = method.needs, []
    if own.reference_nll:
        found.append(f"reference NLL of {' and '.join(own.reference_nll)} rows, once")
    if own.reference_logits:
        found.append("reference model on forget rows, each step")
    if own.teacher:
        found.append("counterfactual teacher of forget rows, once")
    if any(map(part_needs_reference, retain_parts(method.retain_term, 1.0))):
        found.append("reference model on retain rows, each step")
    if own.persons:
        found.append("invented persons, whom the reference model is asked about once")
    if own.alternatives:
        found.append({"file": "alternatives", "refusals": "refusals (built in)"}[own.alternatives])
    return "; ".join(found) or "nothing"


def _defaults(method: type[Method]) -> str:
    return ", ".join(f"{name} {_shown(field.default)}" for name, field in method.params().items())


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"
