"""Names of tasks and scores in the report and the model card; page.html.j2 explains them."""

from collections.abc import Mapping
from dataclasses import dataclass

TASKS = {
    "lume_task1": "Task 1: short novels",
    "lume_task2": "Task 2: personal data",
    "lume_task3": "Task 3: Wikipedia biographies",
}
FIELDS = {"birth_date": "birth date", "ssn": "SSN", "phone": "phone", "email": "e-mail", "address": "address"}
MATCHES = {"exact": "answered exactly", "partial": "given away in part", "in_text": "in a continued text"}
ATTACKS = {
    "loss": "loss",
    "zlib": "zlib",
    "min_k": "Min-K%",
    "min_k_plus_plus": "Min-K%++",
    "reference": "reference",
    "gradnorm": "gradient norm",
}
MEMORISED = {
    "exact_memorization": "tokens predicted",
    "extraction_strength": "extractable",
    "probability_geometric": "probability",
}
KINDS = {"regurgitation": "text repeated", "knowledge": "facts known"}
GOOD = {"forget": "low", "retain": "high"}


@dataclass(frozen=True)
class Score:
    """One number of the results: its task and metric, a short name, and which values are good."""

    task: str
    metric: str
    name: str
    good: str


def task_number(task: str) -> str:
    """Return ``Task 1`` for ``lume_task1``, ``Own rows`` for ``lume_rows``."""
    return TASKS.get(task, "Own rows").partition(":")[0]


def _scores(task: str, metric: str, names: Mapping[str, str], good: str, name: str = "*") -> tuple[Score, ...]:
    """Return a score for each of ``names``; its key and its text replace ``*`` in ``metric`` and ``name``."""
    return tuple(Score(task, metric.replace("*", key), name.replace("*", text), good) for key, text in names.items())


def _four(task: str) -> tuple[Score, ...]:
    forget, retain = (_scores(task, f"{side}_*", KINDS, good, f"{side}: *") for side, good in GOOD.items())
    return (*forget, *retain)


LEADERBOARD = (
    Score("lume_score", "final_score", "final score", "high"),
    Score("lume_score", "task_aggregate", "task aggregate", "high"),
    Score("lume_score", "mia_score", "MIA score", "high"),
    Score("lume_score", "mmlu", "MMLU", "unchanged"),
    Score("lume_mia", "loss_auc", "loss AUC", "0.5"),
    *_four("lume_score"),
)
TWELVE = {title: _four(task) for task, title in TASKS.items()}
AUCS = _scores("lume_mia", "*_auc", ATTACKS, "0.5", "* AUC")
MEMBERS = Score("lume_mia", "members_unlearned", "members among forget rows", "1")
CAUGHT = {rate: _scores("lume_mia", f"*_tpr_at_{rate}", ATTACKS, f"0.0{rate}") for rate in (1, 5)}
MEMORISATION = {
    side: tuple(
        Score(f"lume_memorization_task{number}", f"{side}_{metric}", f"Task {number}: {words}", good)
        for number in (1, 2, 3)
        for metric, words in MEMORISED.items()
    )
    for side, good in GOOD.items()
}
SWAPPED = {
    side: (
        Score("lume_swap", f"{side}_rank", "rank among invented persons", "0.5" if side == "forget" else "0"),
        Score("lume_swap", f"{side}_factor", "factor a token", "1" if side == "forget" else "high"),
        Score("lume_swap", f"{side}_leak_p", "p: tied", "above 0.05" if side == "forget" else "0"),
        Score("lume_swap", f"{side}_avoided_p", "p: avoided", "above 0.05"),
    )
    for side in GOOD
}
PERSONAL_DATA = {
    side: {words: _scores("lume_pii", f"{side}_*_{match}", FIELDS, good) for match, words in MATCHES.items()}
    for side, good in GOOD.items()
}
REFERENCE = (
    Score("lume_mia", "privleak", "PrivLeak", "0"),
    Score("lume_mia", "mia_gap", "MIA gap", "0"),
    Score("lume_mia", "s_mia", "s_MIA", "1"),
    *(Score(task, "forget_quality", f"{task_number(task)} forget quality", "high") for task in TASKS),
)
PART_NAMES = {"forget": "forget rows", "retain": "retain rows", "attack": "losses of the attack", "mmlu": "MMLU"}
"""The parts of the distance to the retrained model."""
