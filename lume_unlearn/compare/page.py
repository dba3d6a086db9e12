"""What a comparison found, as one JSON object and as a page."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from statistics import fmean
from typing import Any

from lume_tasks.metrics.unlearning import RowScores, difference_interval, distance_interval
from lume_unlearn.compare import judge
from lume_unlearn.compare.final import Result
from lume_unlearn.compare.study import MODELS, Study, row_of
from lume_unlearn.report import plots, template
from lume_unlearn.scoring.score import MEANS

COLUMNS = {
    **{name: f"lume_score {name}" for name in MEANS},
    "task_aggregate": "lume_score task_aggregate",
    "loss_auc": "lume_mia loss_auc",
    "loss_tpr_at_1": "lume_mia loss_tpr_at_1",
    "min_k_plus_plus_auc": "lume_mia min_k_plus_plus_auc",
    "mmlu": "lume_mmlu acc",
}
"""Column of the table to the score that it shows."""
HEADINGS = {
    "distance": ("distance to retrained", "0"),
    "forget_regurgitation": ("forget: text repeated", "low"),
    "forget_knowledge": ("forget: facts known", "low"),
    "retain_regurgitation": ("retain: text repeated", "high"),
    "retain_knowledge": ("retain: facts known", "high"),
    "task_aggregate": ("task aggregate", "high"),
    "loss_auc": ("loss AUC", "0.5"),
    "loss_tpr_at_1": ("loss: TPR at 1 % FPR", "0.01"),
    "min_k_plus_plus_auc": ("Min-K%++ AUC", "0.5"),
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
SHOWN = (
    *("num_train_epochs", "rows_per_step", "loss_on", "chat", "retain_term", "forget_weight", "warmup_steps"),
    *("lr_scheduler_type", "max_grad_norm", "weight_decay", "max_length", "weights", "bf16", "robust"),
)
"""Arguments that the page prints for each contestant, beside what was tuned and the method's hyperparameters."""


def contents(study: Study, options: Mapping[str, Any]) -> dict[str, Any]:
    """Gather everything that the page shows; ``options``: what the comparison was called with."""
    models, chats = _results(study)
    goals = {name: models[row_of("retrained", chat)][0] for name, chat in chats.items()} if options["retrained"] else {}
    entered = [name for name in models if name in study.contestants]
    return {
        "options": {**options, "trials": study.trials, "seeds": study.seeds},
        "objective": judge.words(bool(options["retrained"]), bool(study.comparison.parts.tuning.members)),
        "settings": {name: _setting(study, name) for name in study.contestants},
        "trials": {name: [_trial(*found) for found in q.results().items()] for name, q in study.queues.items()},
        "failures": study.failures(),
        "diverged": study.diverged(),
        "table": {name: row(found, goals.get(name)) for name, found in models.items()},
        "alike": alike({name: models[name] for name in entered}, goals) if options["retrained"] else [],
        "audits": {name: found[0]["audits"] for name, found in models.items() if "audits" in found[0]},
        "judged": {name: found[0]["judged"] for name, found in models.items()},
        "curves": {name: models[name][0]["curve"] for name in entered},
    }


def _results(study: Study) -> tuple[dict[str, list[Result]], dict[str, bool]]:
    """Return row of the table to its results, seed 0 first, and to whether it was scored with the chat template."""
    models: dict[str, list[Result]] = {}
    chats: dict[str, bool] = {}
    for name, queue in study.finals.items():
        for slot, trial in sorted(queue.results().items()):
            if "result" in trial.user_attrs:  # else it diverged
                row_name = slot if name == MODELS else name
                models.setdefault(row_name, []).append(trial.user_attrs["result"])
                task = trial.user_attrs["task"]
                chats[row_name] = task["chat"] if name == MODELS else study.contestants[name].chat
    return models, chats


def row(results: Sequence[Result], retrained: Result | None) -> dict[str, list[float]]:
    """Return each column's mean, lowest and highest value over the seeds; without columns that have no value.

    The first column is the distance to the retrained model with its 95 % interval over documents and seeds
    (`distance_interval`), without such a model the shortfall.
    """
    columns = {name: [r["scores"][where] for r in results if where in r["scores"]] for name, where in COLUMNS.items()}
    columns["seconds"] = [result["seconds"] for result in results if "seconds" in result]
    if retrained is None:
        columns["distance"] = [judge.shortfall(result["judged"]) for result in results]
    found = {name: [fmean(values), min(values), max(values)] for name, values in columns.items() if values}
    if retrained is not None:
        found["distance"] = list(distance_interval(_rows(results), *_rows([retrained])))
    return found


def alike(entered: Mapping[str, Sequence[Result]], retrained: Mapping[str, Result]) -> list[list[str]]:
    """Return the pairs of contestants whose distances cannot be told apart (`difference_interval`)."""
    found = []
    for one, other in combinations(entered, 2):
        if retrained[one] is retrained[other]:  # both with the chat template, or both without
            _, low, high = difference_interval(_rows(entered[one]), _rows(entered[other]), *_rows([retrained[one]]))
            found += [[one, other]] * (low <= 0 <= high)
    return found


def _rows(results: Sequence[Result]) -> list[RowScores]:
    return [RowScores(**result["rows"]) for result in results]


def _setting(study: Study, name: str) -> dict[str, Any]:
    """Return what a contestant ran with: its options, its defaults of what was tuned, and the best of the trials."""
    args, contestant, default = study.args[name], study.contestants[name], study.defaults[name]
    ran = {"tuning": contestant.tuning} | {option: getattr(args, option) for option in SHOWN}
    ran |= asdict(contestant.method)
    ran = {option: value for option, value in ran.items() if value is not None and option not in default}
    return {"ran": ran, "default": default, "best": study.best(name)}


def _trial(slot: int, trial: Any) -> dict[str, Any]:
    """Return one trial: its setting, its state, and its value if it was judged."""
    reason = trial.user_attrs.get("reason")
    state = "diverged" if reason else trial.state.name.lower()
    value = trial.value if state == "complete" else None
    return {"trial": slot + 1, "setting": trial.params, "value": value, "state": state, "reason": reason}


def page(content: Mapping[str, Any]) -> str:
    """Return the page as HTML, from what `contents` gathered."""
    headings = dict(HEADINGS)
    if not content["options"]["retrained"]:
        headings["distance"] = ("objective", "0")
    table = content["table"]
    columns = [name for name in headings if any(name in row for row in table.values())]
    order = sorted(table, key=lambda name: (name in content["settings"], table[name]["distance"][0]))
    return template("compare.html.j2", autoescape=True).render(
        content=content,
        columns=[headings[name] for name in columns],
        rows=[(name, [cell(table[name].get(column), column) for column in columns]) for name in order],
        curves=curves(content["curves"], content["judged"].get("retrained", {})),
        audited=AUDITED.values(),
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
            rows.append((name, audit, [f"{numbers[key]:.3f}" if key in numbers else "-" for key in AUDITED]))
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
