"""The page of a comparison: the table, the curves over epochs, the audits, and what was tried."""

from collections.abc import Mapping, Sequence
from typing import Any

from lume_unlearn.compare.contents import MODELS
from lume_unlearn.report import plots, template

HEADINGS = {
    "distance": ("distance to retrained", "0"),
    "forget_regurgitation": ("forget: text repeated", "low"),
    "forget_knowledge": ("forget: facts known", "low"),
    "retain_regurgitation": ("retain: text repeated", "high"),
    "retain_knowledge": ("retain: facts known", "high"),
    "task_aggregate": ("task aggregate", "high"),
    "loss_auc": ("loss AUC", "0.5"),
    "min_k_plus_plus_auc": ("Min-K%++ AUC", "0.5"),
    "depth": ("unlearning depth", "1"),
    "mmlu": ("MMLU", "unchanged"),
    "seconds": ("training, seconds", "low"),
}
"""Column of the table to its heading and which values are good."""
CURVES = {
    "Forgetting": ("forget_probability", "mean token probability, forget rows"),
    "Retention": ("retain_probability", "mean token probability, retain rows"),
    "Membership attack": ("loss_auc", "AUC of the loss attack"),
    "Utility": ("mmlu", "MMLU accuracy"),
}
"""Figure to the judged number that it shows, and the label of its axis."""
AUDITED = {
    "forget_exact_memorization": "forget: tokens ranked first",
    "forget_extraction_strength": "forget: extraction strength",
    "retain_exact_memorization": "retain: tokens ranked first",
    "loss_auc": "loss AUC",
    "min_k_plus_plus_auc": "Min-K%++ AUC",
}
"""Judged number to its heading in the table of audits."""


def page(content: Mapping[str, Any]) -> str:
    """Return the page as HTML, from what `contents` gathered."""
    headings = dict(HEADINGS)
    if not content["options"]["retrained"]:
        headings["distance"] = ("objective", "0")
    table = content["table"]
    columns = [name for name in headings if any(name in row for row in table.values())]
    order = sorted(table, key=lambda name: (name not in MODELS, table[name]["distance"][0]))
    return template("compare.html.j2", autoescape=True).render(
        content=content,
        columns=[headings[name] for name in columns],
        rows=[(name, [cell(table[name].get(column), column) for column in columns]) for name in order],
        curves=curves(content["curves"], content["judged"].get("retrained", {})),
        audited=AUDITED,
        audits=audit_rows(content, order),
    )


def cell(values: Sequence[float] | None, column: str) -> tuple[str, str]:
    """Return a mean over the seeds, and the range where there is one."""
    if values is None:
        return "-", ""
    digits = 0 if column == "seconds" else 3
    mean, low, high = (f"{value:.{digits}f}" for value in values)
    return mean, "" if low == high else f"{low}\u2013{high}"


def audit_rows(content: Mapping[str, Any], order: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """Return (model, audit, numbers), for each model the unchanged weights first."""
    rows = []
    for name in order:
        for audit, numbers in {"unchanged": content["judged"][name], **content["audits"].get(name, {})}.items():
            cells = [f"{numbers[key]:.3f}" if key in numbers else "-" for key in AUDITED]
            rows.append((name, audit, cells))
    return rows if content["audits"] else []


def curves(found: Mapping[str, Sequence[Mapping[str, float]]], retrained: Mapping[str, float]) -> list[plots.Picture]:
    """Return the figures of `CURVES` for which there are numbers: one line for each method and tuning, seed 0."""
    figures = []
    for title, (number, label) in CURVES.items():
        lines = {
            name: [(point["epoch"], point[number]) for point in points if number in point]
            for name, points in found.items()
        }
        lines = {name: points for name, points in lines.items() if points}
        if lines:
            figures.append(plots.over_epochs(lines, number, title, label, retrained.get(number)))
    return figures
