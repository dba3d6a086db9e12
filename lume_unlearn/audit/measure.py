"""Measure a model for a verdict: its answers to the rows, its scores, and the swap test."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite, log
from statistics import fmean
from typing import Any
from zlib import crc32

from lume_tasks.data.chat import chat_prompt, plain_prompt, through_template
from lume_tasks.data.rows import SIDES, Row
from lume_tasks.data.source import Data
from lume_tasks.data.text import MARKS, UNSPACED
from lume_tasks.tasks.generation import most_tokens
from lume_tasks.tasks.known import Matcher
from lume_tasks.tasks.mia import ON_LIKELIHOODS, SUMMARIES
from lume_unlearn.audit.prompts import REPHRASINGS
from lume_unlearn.audit.rows import repeating_earlier
from lume_unlearn.audit.rules import Earlier
from lume_unlearn.audit.stages import NEW_TOKENS
from lume_unlearn.audit.suite import SHORT
from lume_unlearn.model.load import context_length
from lume_unlearn.scoring.score import MEANS, MEMORIZATION, Scores, memorization_tasks, score, tasks_for
from lume_unlearn.scoring.swap import Swapped, swap_test

PART = NEW_TOKENS - 56
"""Most tokens of an answer that is judged whole; see `in_parts`."""
_WORD = re.compile(rf"\s*(?:[{UNSPACED}][{MARKS}]*|[^\s{UNSPACED}]+)")
"""Matches a word, or a character of a script without spaces, with the white space before it."""
ALL_MEANS = tuple(f"{mean}{end}" for mean in MEANS for end in ("", "_low", "_high"))
LEVELS = tuple(f"{side}_{level}" for side in SIDES for level in MEMORIZATION)
TINY = 1e-300
"""Lower probabilities are raised to this before the logarithm."""


@dataclass(frozen=True)
class Measured:
    """Measurements of one model: answers to the unchanged rows, numbers, and the swap test."""

    plain: Scores
    numbers: dict[str, float]
    """Means of `lume_score` with their intervals, `MEMORIZATION` of both sides, ``TASK METRIC`` of other tasks."""
    swapped: Swapped
    model: dict[str, str] = field(default_factory=dict)
    """See `fingerprint`."""


def in_parts(data: Data, tokenizer: Any) -> Data:
    """Split rows whose answers have more than `PART` tokens into parts, each short enough to be generated.

    The first part is asked as the row is. The prompt of another is the row's prompt and the answer up to the part; it
    is a completion of the same document, outside a chat template.
    """

    def parts(row: Row) -> list[Row]:
        if len(tokenizer.encode(row.output)) <= PART:
            return [row]
        found, said, words = [row], "", _WORD.findall(row.output)
        while words:
            size = len(words)
            while size > 1 and len(tokenizer.encode("".join(words[:size]))) > PART:
                size = max(1, size * 3 // 4)
            part, words = "".join(words[:size]), words[size:]
            found[-1] = replace(found[-1], output=part.strip())
            said += part
            next_id = f"{row.stem}sc{crc32(row.id.encode())}{len(found):03}"
            found.append(replace(row, id=next_id, input=f"{row.input} {said}", question=""))
        return found[:-1]

    return data.changed(lambda rows: [part for row in rows for part in parts(row)])


def too_long(rows: Sequence[Row], model: Any, tokenizer: Any, chat: bool) -> list[Row]:
    """Return the rows that, with the new tokens of their answers, do not fit into the model's context (see `in_parts`).

    Questions must fit in another wording as well, as in the judgement of a try.
    """
    context = context_length(model)

    def tokens(row: Row) -> int:
        new = min(most_tokens(len(tokenizer.encode(row.output))), NEW_TOKENS)
        question = REPHRASINGS[0].format(row.input) if row.kind == "qa" else row.input
        asked = through_template(tokenizer, row.task, row.kind, chat)
        render = partial(chat_prompt, tokenizer) if asked else plain_prompt
        return len(tokenizer.encode(render(question, row.turns))) + new

    def longest(row: Row) -> int:
        return max(map(tokens, in_parts(Data([row], []), tokenizer).forget))

    return [row for row in rows if context is not None and longest(row) > context]


def possible_numbers(data: Data) -> list[str]:
    """Return the names of the numbers that `measure` can give, without those of further tasks.

    Which of the means have rows is known only when these are scored.
    """
    attacks = [f"{attack}_{summary}" for attack in ON_LIKELIHOODS for summary in SUMMARIES]
    attacks = [f"lume_mia {name}" for name in (*attacks, "mia_score", "members_unlearned")]
    attacks = attacks if data.members and data.nonmembers else []
    return [*ALL_MEANS, *LEVELS, *attacks, *["lume_mmlu acc"] * (data.mmlu is not None)]


def measure(
    model: Any, tokenizer: Any, data: Data, named: Sequence[Row], tasks: Sequence[str], controls: int, **options: Any
) -> Measured:
    """Score a model on unchanged rows, with memorisation, the swap test, and attack and MMLU if there is data.

    ``named``: rows for the swap test.
    """
    swapped = swap_test(model, tokenizer, data, controls=controls, rows=[row.id for row in named], **options)
    own = [*tasks_for(data), *memorization_tasks(data)]
    plain = score(model, tokenizer, data, tasks=own, metadata=SHORT, quiet=True, **options)
    values = {mean: plain.metric("lume_score", mean) for mean in ALL_MEANS}
    values |= {level: fmean(plain.rows[level].values()) for level in LEVELS if plain.rows.get(level)}
    results = dict(plain.results["results"])
    if tasks:  # with their own generation options
        results |= score(model, tokenizer, data, tasks=tasks, quiet=True, **options).results["results"]
    for task in ("lume_mia", "lume_mmlu", *tasks):
        for key, value in results.get(task, {}).items():
            if isinstance(value, float) and isfinite(value):
                values[f"{task} {key.removesuffix(',none')}"] = value
    numbers = {name: value for name, value in values.items() if value is not None}
    return Measured(replace(plain, results={}), numbers, swapped)


def earlier_of(
    model: Any, tokenizer: Any, rows: list[Row], retain: Sequence[Row], controls: int, **options: Any
) -> Earlier:
    """Score a model on the rows of an earlier request, and run the swap test; guesses do not count as known.

    ``retain``: retain rows, whose words identify none of these, but for those that repeat an answer of the request.
    """
    repeated = repeating_earlier(retain, rows)
    others = [row for row in retain if row not in repeated]
    data = in_parts(Data(rows, []), tokenizer)
    scores = score(model, tokenizer, data, metadata=SHORT, quiet=True, **options)
    matcher = Matcher(data.rows, others)
    known = matcher.known(scores.answers)["forget"] - matcher.guesses()["forget"]
    # With the retain rows, invented persons can get family names of other persons.
    options |= {"controls": controls, "rows": [row.id for row in rows]}
    swapped = swap_test(model, tokenizer, Data(rows, others), **options)
    return Earlier(len(known), len(data.forget), swapped.together.get("forget"), len(repeated))


def nearer(measured: Mapping[str, Measured]) -> tuple[int, int] | None:
    """Count the forget rows that are nearer to the control than to the target; return the count and all rows compared.

    It compares the log of the mean probability of a token of the right answer. None without a control.
    """
    if "control" not in measured:
        return None
    found = {role: one.plain.rows.get("forget_probability", {}) for role, one in measured.items()}
    before, now, control = found["before"], found["now"], found["control"]
    rows = before.keys() & now.keys() & control.keys()
    far = {row: [abs(log(max(one[row], TINY)) - log(max(now[row], TINY))) for one in (control, before)] for row in rows}
    return sum(to_control < to_target for to_control, to_target in far.values()), len(far)
