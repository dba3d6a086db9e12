"""The task ``lume_swap``: does the model treat a person as it treats persons who do not exist?

Each question that names its subject is asked K + 1 times, about the subject and about K control names; the request's
continuation is the right answer and EOS, the same for all. `lume_tasks.metrics.swap` computes the test.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
from datasets import Dataset
from lm_eval.api.instance import Instance

from lume_tasks.data.chat import chat_prompt, plain_prompt, through_template
from lume_tasks.data.invented import control_names, family_names, locales_of, name_length, texts_of
from lume_tasks.data.rows import SIDES, Row
from lume_tasks.data.subjects import find_subjects, holds_name, named_in_part, swapped
from lume_tasks.errors import DataError, NotFinite, first_few, log, quote, warn_once
from lume_tasks.metrics import swap
from lume_tasks.metrics.aggregate import mean
from lume_tasks.metrics.token_scores import TokenScores
from lume_tasks.tasks.base import (
    LumeTask,
    Metrics,
    alternate,
    check_template_arguments,
    flag_of,
    load_tokenizer,
    rows_of,
)
from lume_tasks.tasks.memorization import SUMS, split_prompt
from lume_tasks.tasks.reference import Doc

CONTROLS = 40
FEWEST = 39  # control names; fewer cannot give a 95 % interval
ALPHA = 0.05
FAMILIES = 8
"""Family names of other persons needed for invented persons to be of the same kind as those of the data."""

Item = tuple[str, int, tuple[float, ...]]  # person, answer tokens, K + 1 log-probabilities in nats


class NothingToTest(DataError):
    """No row can be tested."""


@lru_cache(maxsize=4)
def tested(items: tuple[Item | None, ...]) -> tuple[dict[str, swap.SwapResult], swap.SwapResult | None]:
    """Test the persons of one side; return person to result, and the result of all together (None without rows).

    The last results are cached, since several metrics and `swap_test` ask for the same rows.
    """
    rows: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        if item is not None:
            rows[item[0]].append(item)
    persons = {
        person: (np.array([values for _, _, values in found]), [tokens for _, tokens, _ in found])
        for person, found in rows.items()
    }
    alone = {person: swap.of_person(*values) for person, values in persons.items()}
    return alone, swap.of_persons(list(persons.values())) if persons else None


def _together(field: str) -> Any:
    def aggregation(items: Sequence[Item | None]) -> float:
        _, together = tested(tuple(items))
        return float(getattr(together, field)) if together else math.nan

    return aggregation


def _persons(field: str) -> Any:
    def aggregation(items: Sequence[Item | None]) -> float:
        alone, _ = tested(tuple(items))
        return sum(getattr(one, field) <= ALPHA for one in alone.values()) / len(alone) if alone else math.nan

    return aggregation


def _metrics() -> Metrics:
    table: dict[str, Any] = {}
    for side in SIDES:
        table |= {f"{side}_rank": (mean, None), f"{side}_first": (mean, side == "retain")}
        table[f"{side}_factor"] = _together("factor"), None
        table |= {f"{side}_factor_{end}": (_together(end), None) for end in ("low", "high")}
        table |= {f"{side}_{name}_p": (_together(name), None) for name in ("leak", "avoided")}
        table |= {f"{side}_persons_{name}": (_persons(name), None) for name in ("leak", "avoided")}
    return table


class SwapTask(LumeTask):
    """The questions that name somebody."""

    metrics = _metrics()

    def construct_requests(self, doc: Doc, ctx: str, **kwargs: Any) -> list[Instance]:
        """Return K + 1 requests, the subject's first."""
        return [
            Instance("loglikelihood", doc, (prompt, doc["continuation"]), number, metadata=kwargs["metadata"])
            for number, prompt in enumerate(doc["prompts"])
        ]


def swap_rows(**metadata: Any) -> dict[str, Dataset]:
    """Return a document for each row that can be tested, and the other rows with the reason in ``left_out``.

    ``matched`` of a document tells whether the invented persons are of the same kind as the true one: their names come
    from lists of the person's language, or at least `FAMILIES` family names of other persons were available.
    ``metadata`` gives the data, its split, the tokenizer, ``lume_chat``, ``lume_swap_controls`` (number of names),
    ``lume_swap_seed`` (of the names; 0) and ``lume_swap_rows`` (ids of the rows to test; all). No control name occurs
    in any row, tested or not.
    """
    controls, chat = metadata.get("lume_swap_controls", CONTROLS), flag_of(metadata, "lume_chat", True)
    if not isinstance(controls, int) or controls < FEWEST:
        raise DataError(f"metadata lume_swap_controls has to be {FEWEST} or more, not {controls!r}")
    rows, _ = rows_of(metadata)
    asked, seed = metadata.get("lume_swap_rows"), metadata.get("lume_swap_seed", 0)
    check_ids(asked, {row.id for side in SIDES for row in rows[side]})
    tokenizer = load_tokenizer(metadata)
    known = texts_of(row for side in rows.values() for row in side)
    names: dict[str, list[str]] = {}
    docs: dict[str, list[Doc]] = {side: [] for side in SIDES}
    left_out: list[Doc] = []
    subjects = {side: find_subjects(rows[side]) for side in SIDES}
    families = family_names(subject for found in subjects.values() for subject in found.values())
    partly = set[str]().union(*(named_in_part(rows[side], subjects[side]) for side in SIDES))
    for side in SIDES:
        for row in (row for row in rows[side] if asked is None or row.id in asked):
            subject = subjects[side].get(row.id, "")
            others = families.get(subject, [])
            reason = untestable(row, subject)
            if not reason:
                try:
                    if subject not in names:
                        length = partial(name_length, tokenizer)
                        part = subject in partly
                        names[subject] = control_names(subject, controls, known, length, others, seed, part)
                    made = document(tokenizer, row, side, subject, names[subject], chat)
                    matched = len(others) >= FAMILIES or (not others and bool(locales_of(subject)))
                    docs[side].append(made | {"matched": matched})
                except ValueError as error:
                    reason = str(error)
            if reason:
                left_out.append({"side": side, "id": row.id, "reason": reason})
    check_template_arguments(metadata, any(doc["chat"] for found in docs.values() for doc in found))
    if not any(docs.values()):
        reasons = first_few([f"  row {quote(one['id'])}: {one['reason']}" for one in left_out], 5)
        raise NothingToTest("\n".join(["lume_swap: no row can be tested:", *reasons]))
    _say(docs, left_out, controls)
    return {"test": Dataset.from_list(alternate(*docs.values())), "left_out": Dataset.from_list(left_out)}


def check_ids(asked: Any, known: set[str]) -> None:
    """Refuse a metadata ``lume_swap_rows`` that is not a list of ids of rows (or None)."""
    if asked is None:
        return
    if not isinstance(asked, list) or not all(isinstance(one, str) for one in asked):
        raise DataError(f'metadata lume_swap_rows has to be a list of ids, such as ["a-qa1"], not {asked!r}')
    unknown = first_few([quote(one) for one in asked if one not in known], 5)
    if unknown:
        raise DataError(f"metadata lume_swap_rows: no row has the id {', '.join(unknown)}; correct the list")


def untestable(row: Row, subject: str) -> str:
    """Return why a row cannot be tested, "" if it can."""
    if row.kind == "sc" and not row.question:
        return "is a text: add the fields subject and question, with a question about it"
    if row.subject and not subject:
        return f"its field subject, {quote(row.subject)}, is not in the question"
    if not subject:
        return "no name was found for certain: add the field subject with the name"
    return "the answer holds the name" if holds_name(subject, row.output) else ""


def document(tokenizer: Any, row: Row, side: str, subject: str, names: Sequence[str], chat: bool) -> Doc:
    """Return the document of one row.

    Raises:
        ValueError: the question does not name the subject, or by a part that several names have, or no token boundary
            separates question and answer.
    """
    question = row.question or row.input
    asked = through_template(tokenizer, row.task, "qa", chat)
    texts = [question, *(swapped(question, subject, name) for name in names)]
    if len({*texts}) < len(texts):
        raise ValueError("the question holds a part of the name that invented persons share: use the whole name")
    render = partial(chat_prompt, tokenizer) if asked else plain_prompt
    prompts = [render(text, row.turns) for text in texts]
    continuation = row.output if asked else f" {row.output}"
    if tokenizer.eos_token and tokenizer.encode(f"{continuation}{tokenizer.eos_token}")[-1] == tokenizer.eos_token_id:
        continuation += tokenizer.eos_token
    ends, scored, moved = zip(*(split_prompt(tokenizer, prompt, continuation) for prompt in prompts), strict=True)
    if len({*ends}) > 1 or len({*moved}) > 1:
        raise ValueError("a token crosses the end of the question, not with all names")
    doc = {"id": row.id, "side": side, "person": subject, "input": question, "output": row.output, "chat": asked}
    prompts = [prompt.removesuffix(ends[0]) for prompt in prompts]
    tokens = max(scored) - moved[0]
    return doc | {"prompts": prompts, "continuation": ends[0] + continuation, "moved": moved[0], "tokens": tokens}


def swap_result(doc: Doc, results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Return the subject's rank in one row, whether it is first, and the row's log-probabilities for the tests.

    The ``moved`` tokens of the prompt (see `split_prompt`) do not count. Without per-token values, the row has no
    scores then.
    """
    moved, scores = doc["moved"], [score for score, _ in results]
    if moved:
        scores = [float(one.logprobs[moved:].sum(dtype=np.float64)) for one in scores if isinstance(one, TokenScores)]
    if not scores:
        warn_once(log, SUMS)
        return dict.fromkeys(SwapTask.metrics)
    values = tuple(map(float, scores))
    if not all(map(math.isfinite, values)):
        raise NotFinite(f"lume_swap: the model's log-probability of row {quote(doc['id'])} is not finite")
    item = (doc["person"], doc["tokens"], values)
    rank = swap.rank(values)
    found: dict[str, Any] = {name: item if name.startswith(doc["side"]) else None for name in SwapTask.metrics}
    return found | {f"{doc['side']}_rank": rank, f"{doc['side']}_first": float(rank * len(values) == 1)}


def _say(docs: dict[str, list[Doc]], left_out: list[Doc], controls: int) -> None:
    """Log how many rows are tested, and warn of rows that cannot be tested."""
    tested = " and ".join(
        f"{len(found)} {side} rows about {len({doc['person'] for doc in found})} persons"
        for side, found in docs.items()
    )
    log.info("lume_swap: %s, each asked with %d names", tested, controls + 1)
    reasons: dict[str, list[str]] = defaultdict(list)
    for one in left_out:
        reasons[one["reason"]].append(one["id"])
    for reason, ids in reasons.items():
        log.warning("lume_swap: %d rows are not tested (%s): %s", len(ids), reason, ", ".join(first_few(ids, 3)))
