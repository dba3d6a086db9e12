"""The results of a comparison, as one JSON object and as a page."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from statistics import fmean
from typing import Any

from lume_tasks.metrics.unlearning import RowScores, difference_interval, distance_interval
from lume_unlearn.compare import judge
from lume_unlearn.compare.comparison import MODELS, Comparison, row_of
from lume_unlearn.compare.judge import Result
from lume_unlearn.compare.tuning import default_setting
from lume_unlearn.report import plots, template
from lume_unlearn.scoring.score import MEANS

METRICS = {
    "lume_score": (*MEANS, "task_aggregate"),
    "lume_mia": ("loss_auc", "loss_tpr_at_1", "min_k_plus_plus_auc"),
    "lume_swap": ("forget_rank", "forget_leak_p", "forget_avoided_p", "retain_rank"),
    "lume_mmlu": ("acc",),
    "answers": ("repetition", "other_facts"),
}
"""Task to its metrics in the table."""
CURVES = {
    "Forgetting": ("forget_probability", "mean token probability, forget rows"),
    "Retention": ("retain_probability", "mean token probability, retain rows"),
    "Membership attack": ("loss_auc", "AUC of the loss attack"),
    "Utility": ("mmlu", "MMLU accuracy"),
}
"""Figure to the judged number that it shows, and the label of its axis."""
SHOWN = (
    *("num_train_epochs", "rows_per_step", "loss_on", "chat", "retain_term", "forget_weight", "retain_weight"),
    *("warmup_steps", "lr_scheduler_type", "max_grad_norm", "weight_decay", "max_length", "weights", "bf16", "robust"),
)
"""Arguments that the page prints for each contestant, beside what was tuned and the method's hyperparameters."""


def contents(comparison: Comparison, options: Mapping[str, Any]) -> dict[str, Any]:
    """Gather everything that the page shows; ``options``: the arguments of the comparison to show."""
    models = _results(comparison)
    chats = {row_of(name, chat): chat for name in comparison.models for chat in (True, False)}
    chats |= {name: contestant.chat for name, contestant in comparison.contestants.items()}
    targets = {name: models[row_of("target", chats[name])][0] for name in models}
    with_retrained = "retrained" in comparison.models
    goals = {name: models[row_of("retrained", chats[name])][0] for name in models} if with_retrained else {}
    entered = {name: models[name] for name in comparison.contestants if name in models}
    queues = [*comparison.queues.values(), *comparison.finals.values()]
    results = [(f"{q.name}, {slot}", trial) for q in comparison.finals.values() for slot, trial in q.results().items()]
    return {
        "options": {**options, "trials": comparison.trials, "seeds": comparison.seeds},
        "objective": judge.OBJECTIVE,
        "settings": {name: _setting(comparison, name) for name in comparison.contestants},
        "trials": {name: [_trial(*found) for found in q.results().items()] for name, q in comparison.queues.items()},
        "failures": {f"{queue.name}, {slot}": error for queue in queues for slot, error in queue.errors().items()},
        "diverged": {name: trial.user_attrs["reason"] for name, trial in results if "reason" in trial.user_attrs},
        "table": {name: row(found, targets[name], goals.get(name)) for name, found in models.items()},
        "alike": alike(entered, goals),
        "audits": {name: found[0]["audits"] for name, found in models.items() if "audits" in found[0]},
        "judged": {name: found[0]["judged"] for name, found in models.items()},
        "curves": {name: found[0]["curve"] for name, found in entered.items()},
    }


def _results(comparison: Comparison) -> dict[str, list[Result]]:
    """Return row of the table to its results, seed 0 first."""
    models: dict[str, list[Result]] = {}
    for name, queue in comparison.finals.items():
        for slot, trial in queue.results().items():
            if "result" in trial.user_attrs:  # else it diverged
                models.setdefault(slot if name == MODELS else name, []).append(trial.user_attrs["result"])
    return models


def row(results: Sequence[Result], target: Result, retrained: Result | None) -> dict[str, list[float]]:
    """Return each column's mean, lowest and highest value over the seeds; without columns that have no value.

    ``distance`` is the distance to the retrained model, if there is one, with its 95 % interval over documents and
    seeds (`distance_interval`).
    """
    metrics = {name: f"{task} {name}" for task, names in METRICS.items() for name in names}
    columns = {name: [r["scores"][key] for r in results if key in r["scores"]] for name, key in metrics.items()}
    columns["seconds"] = [result["seconds"] for result in results if "seconds" in result]
    columns["objective"] = [judge.objective(result["judged"], target["judged"]) for result in results]
    found = {name: [fmean(values), min(values), max(values)] for name, values in columns.items() if values}
    if retrained is not None:
        found["distance"] = list(distance_interval(_rows(results), *_rows([retrained])))
    return found


def alike(entered: Mapping[str, Sequence[Result]], retrained: Mapping[str, Result]) -> list[list[str]]:
    """Return the pairs of contestants whose distances cannot be told apart (`difference_interval`)."""
    found = []
    for one, other in combinations(entered, 2):
        if retrained and retrained[one] is retrained[other]:  # both with the chat template, or both without
            _, low, high = difference_interval(_rows(entered[one]), _rows(entered[other]), *_rows([retrained[one]]))
            found += [[one, other]] * (low <= 0 <= high)
    return found


def _rows(results: Sequence[Result]) -> list[RowScores]:
    return [RowScores(**result["rows"]) for result in results]


def _setting(comparison: Comparison, name: str) -> dict[str, Any]:
    """Return a contestant's options, the defaults of the tuned ones, and the setting chosen from the trials."""
    args, contestant = comparison.args[name], comparison.contestants[name]
    default = default_setting(contestant.method, args)
    ran = {"tuning": contestant.tuning} | {option: getattr(args, option) for option in SHOWN}
    ran |= asdict(contestant.method)
    ran = {option: value for option, value in ran.items() if value is not None and option not in default}
    return {"ran": ran, "default": default, "best": comparison.best(name)}


def _trial(slot: str, trial: Any) -> dict[str, Any]:
    """Return one trial: its setting, its state, and its value if it was judged."""
    reason = trial.user_attrs.get("reason")
    state = "diverged" if reason else trial.state.name.lower()
    value = trial.value if state == "complete" else None
    return {"trial": slot, "setting": trial.params, "value": value, "state": state, "reason": reason}


def page(content: Mapping[str, Any]) -> str:
    """Return the page as HTML, from what `contents` gathered."""
    table = content["table"]
    first = "distance" if content["options"]["retrained"] else "objective"
    order = sorted(table, key=lambda name: (name in content["settings"], table[name][first][0]))
    figures = curves(content["curves"], content["judged"].get("retrained", {}))
    shown = {"order": order, "measured": {name for row in table.values() for name in row}, "curves": figures}
    return template("compare.html.j2", autoescape=True).render(shown, content=content)


def curves(found: Mapping[str, Sequence[Mapping[str, float]]], retrained: Mapping[str, float]) -> list[plots.Picture]:
    """Return the figures of `CURVES` for which there are numbers: one line for each method and tuning, seed 0."""
    figures = []
    for title, (number, label) in CURVES.items():
        lines = {
            name: [(point["epoch"], point[number]) for point in points if number in point]
            for name, points in found.items()
        }
        figures.append(plots.over_epochs(lines, number, title, label, retrained.get(number)))
    return [figure for figure in figures if figure]
