"""What the scores of the model card are of: LUME and MMLU only where the results prove it, with the number of rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lume_tasks.data import published
from lume_tasks.data.locate import MMLU_HUB_ID, MMLU_SUBJECTS
from lume_tasks.errors import visible
from lume_unlearn.report.glossary import TASKS, Score
from lume_unlearn.report.results import Evaluation, Model

MMLU_QUESTIONS = 14_042
_SUBJECT = "lume_mmlu_"
_MIA = "lume_mia"
_TITLES = TASKS | {"lume_score": "all tasks", _MIA: "membership inference"}
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class Source:
    """The documents behind one score, in the hub's words.

    Attributes:
        name: for people, with the number of documents.
        kind: the hub's type of the data set.
        split: of the data set; None where nothing is known.
    """

    name: str
    kind: str
    split: str | None


def source(model: Model, score: Score) -> Source:
    """The documents behind one score that the model has."""
    one = model.evaluation(score.task)
    assert one is not None, "scores that the model has"
    if score.metric == "mmlu":
        name, whole = mmlu(one)
        return Source(name, MMLU_HUB_ID if whole else "multiple-choice", "test" if whole else None)
    tasks = [task for task in _members(score) if task in one.scores]
    origin, split = _origin(one, tasks)
    rows = sum(one.count(task) or 0 for task in tasks)
    title = f"{origin}, {_TITLES[score.task]}, {rows:,} rows"
    return Source(title, "lume" if "LUME" in origin else "other", split)


def scored_rows(model: Model) -> list[tuple[str, str, str, str]]:
    """(task, data, number of documents, SHA-256) of every task of LUME that was scored, and MMLU."""
    found = []
    for task in (*TASKS, _MIA):
        if (one := model.evaluation(task)) is not None:
            rows = one.count(task)
            found.append((_TITLES[task], _origin(one, [task])[0], str(rows or _UNKNOWN), _digest(one, task)))
    if model.score("lume_score", "mmlu") is not None:
        one = model.evaluation("lume_score")
        assert one is not None
        found.append(("general knowledge", mmlu(one)[0], str(sum(_subjects(one).values()) or _UNKNOWN), ""))
    return found


def mmlu(one: Evaluation) -> tuple[str, bool]:
    """The name of the multiple-choice questions that were scored, and whether they are all of MMLU's test split."""
    subjects = _subjects(one)
    questions = sum(subjects.values())
    if set(subjects) == {*MMLU_SUBJECTS} and questions == MMLU_QUESTIONS:
        return "MMLU", True
    return f"multiple choice, {questions:,} questions in {len(subjects)} subjects, not all of MMLU", False


def _members(score: Score) -> Sequence[str]:
    """The tasks whose documents a score is made of."""
    if score.task != "lume_score":
        return (score.task,)
    return {"mia_score": (_MIA,), "final_score": (*TASKS, _MIA)}.get(score.metric, tuple(TASKS))


def _origin(one: Evaluation, tasks: Sequence[str]) -> tuple[str, str]:
    """("LUME", "part of LUME" or "own data", split) of the documents of these tasks."""
    digests = {_digest(one, task) for task in tasks}
    if not digests or not digests <= {published.MIA, *published.SPLITS}:
        return "own data", visible(one.split)
    splits = {published.SPLITS[digest] for digest in digests if digest != published.MIA}
    whole = all(_counts(one, task).get("original") == one.count(task) for task in tasks)
    return "LUME" if whole else "part of LUME", splits.pop() if len(splits) == 1 else visible(one.split)


def _digest(one: Evaluation, task: str) -> str:
    """Digest of the documents of a task, whether or not a limit left some out; results made before it have none."""
    metadata = (one.content.get("configs") or {}).get(task, {}).get("metadata") or {}
    digest = metadata.get(published.DIGEST)
    return digest if isinstance(digest, str) else _UNKNOWN


def _subjects(one: Evaluation) -> dict[str, int]:
    """Subject to the number of questions that were scored."""
    tasks = [task for task in one.content.get("n-samples") or {} if task.startswith(_SUBJECT)]
    return {task.removeprefix(_SUBJECT): one.count(task) or 0 for task in tasks}


def _counts(one: Evaluation, task: str) -> dict[str, Any]:
    counts: dict[str, Any] = (one.content.get("n-samples") or {}).get(task, {})
    return counts
