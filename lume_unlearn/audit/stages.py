"""Run the steps of an audit, with a time estimate, one progress bar, and results that survive an interruption."""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lume_tasks.data.chat import chat_prompt, plain_prompt, through_template
from lume_tasks.data.rows import Row
from lume_tasks.errors import DataError, counted
from lume_tasks.models.sampling import generated
from lume_tasks.tasks.generation import most_tokens
from lume_unlearn.files import writing

UNFINISHED = "unfinished.jsonl"
"""File of an output folder from which an interrupted audit continues."""
NEW_TOKENS = 256
"""Most new tokens of an answer in the protocol."""
TRAINED = 4
"""Time to train on a token, relative to scoring it: forward and backward pass, and optimiser."""
OVERHEAD = 1.0
"""Seconds of each step that do not depend on its rows."""
TIMED = 8
"""Prompts, and new tokens for each, that the speed is measured with."""


Loader = Callable[[], tuple[Any, Any]]
"""Returns model and tokenizer, on the device to score and train on."""


@dataclass(frozen=True)
class Work:
    """The rows that a step answers, reads and trains on, and how often."""

    answered: Sequence[Row] = ()
    times: int = 1
    """Answers to each of these rows."""
    read: Sequence[Row] = ()
    readings: int = 1
    trained: Sequence[Row] = ()
    epochs: float = 0


@dataclass(frozen=True)
class Stage:
    """One step, whose result is plain data: dictionaries, lists, texts and numbers."""

    probe: str
    title: str
    run: Callable[[], Any]
    work: Work = field(default_factory=Work)
    role: str = ""
    """Role of its model, such as "before" or "now", if there are several."""
    key: Callable[[], str] = str
    """Returns what the result depends on; a result of an interrupted audit is used only if this is the same."""


@dataclass(frozen=True)
class Speed:
    """Seconds for one prompt token (``read``) and for one new token (``write``)."""

    read: float
    write: float


def measured_speed(model: Any, tokenizer: Any, rows: Sequence[Row]) -> Speed:
    """Measure the speed of generation for a few rows, then for more rows, and with more new tokens."""
    prompts = [tokenizer.encode(row.input)[-NEW_TOKENS:] for row in rows[:TIMED]]
    seconds = []
    for copies, new in ((1, 1), (1, 1), (TIMED, 1), (1, 1 + TIMED)):  # the first call warms up
        start = time.perf_counter()
        generated(model, tokenizer, prompts * copies, max_new_tokens=new, temperature=0)
        seconds.append(time.perf_counter() - start)
    read, write = (max(second - seconds[1], 0.0) for second in seconds[2:])
    return Speed(read / ((TIMED - 1) * sum(map(len, prompts))), write / (TIMED * len(prompts)))


def seconds_of(work: Work, tokenizer: Any, speed: Speed) -> float:
    """Estimate the seconds that a step takes."""

    def prompts(rows: Sequence[Row]) -> int:
        texts = sum(len(tokenizer.encode(plain_prompt(row.input, row.turns))) for row in rows)
        asked = sum(through_template(tokenizer, row.task, row.kind) for row in rows)
        return texts + (asked * _frame(tokenizer) if asked else 0)

    def tokens(rows: Sequence[Row]) -> int:
        return prompts(rows) + sum(len(tokenizer.encode(row.output)) for row in rows)

    new = sum(min(most_tokens(len(tokenizer.encode(row.output))), NEW_TOKENS) for row in work.answered)
    trained = TRAINED * work.epochs * tokens(work.trained)
    read = work.times * prompts(work.answered) + work.readings * tokens(work.read) + trained
    return OVERHEAD + read * speed.read + work.times * new * speed.write


def _frame(tokenizer: Any) -> int:
    """Count the tokens that a chat template adds to a question; 0 if the template fails, since scoring reports that."""
    try:
        return len(tokenizer.encode(chat_prompt(tokenizer, "")))
    except DataError:
        return 0


def plan(stages: Sequence[Stage], seconds: Sequence[float]) -> str:
    """Return the plan as text: a line for each probe, with an estimate of the minutes."""
    lines: dict[str, tuple[int, int, float]] = {}
    for stage, second in zip(stages, seconds, strict=True):
        name = f"{stage.role} {stage.probe}".strip()
        steps, rows, total = lines.get(name, (0, 0, 0.0))
        lines[name] = steps + 1, rows + stage.work.times * len(stage.work.answered), total + second
    shown = [
        f"  {name}: {counted(steps, 'step')}, {rows:,} answers, {total / 60:.1f} min"
        for name, (steps, rows, total) in lines.items()
    ]
    return "\n".join([f"Plan: {counted(len(stages), 'step')}, about {sum(seconds) / 60:.1f} minutes:", *shown])


def planned_seconds(stages: Sequence[Stage], model: Any, tokenizer: Any) -> list[float]:
    """Print the steps with an estimate of the minutes, and return the seconds for each step."""
    speed = measured_speed(model, tokenizer, [row for stage in stages for row in stage.work.answered])
    seconds = [seconds_of(stage.work, tokenizer, speed) for stage in stages]
    print(plan(stages, seconds), file=sys.stderr, flush=True)
    return seconds


def carry_out(
    stages: Sequence[Stage], planned_by: Loader | None = None, resume: str | Path | None = None
) -> Iterator[tuple[Stage, Any]]:
    """Run stages one after the other, with one progress bar, and yield each with its result.

    Args:
        stages: steps to run.
        planned_by: loads the model whose speed is measured; the plan is printed first, and the bar counts seconds.
            Without it, there is no plan, and the bar counts stages.
        resume: file that keeps the results; stages that an interrupted audit finished are not run again.
    """
    steps = planned_seconds(stages, *planned_by()) if planned_by else [1.0] * len(stages)
    kept = None if resume is None else Kept(Path(resume))
    form = "{l_bar}{bar}| {elapsed}<{remaining}" if planned_by else None
    with tqdm(total=sum(steps), bar_format=form, unit="step") as bar:
        for stage, step in zip(stages, steps, strict=True):
            bar.set_description(f"{stage.role} {stage.title}".strip())
            yield stage, stage.run() if kept is None else kept.once(stage)
            bar.update(step)


class Kept:
    """Results of finished steps in a file that only the user can read, since they contain the model's answers."""

    def __init__(self, path: Path) -> None:
        """Read the results of an interrupted audit, if there are any, and skip a line that was cut off."""
        self._path = path
        self._found: dict[str, Any] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):
                    entry = json.loads(line)
                    self._found[entry["key"]] = entry["result"]
            kept = f"{path} holds {len(self._found)} finished steps"
            print(f"{kept}; steps with other weights, rows or options run again.", file=sys.stderr)

    def once(self, stage: Stage) -> Any:
        """Return the stored result of a step, or run it and store its result."""
        key = hashlib.sha256(json.dumps([stage.key(), stage.role, stage.probe, stage.title]).encode()).hexdigest()
        if key not in self._found:
            line = json.dumps({"key": key, "result": stage.run()})
            with writing(self._path.parent):
                self._path.touch(mode=0o600)
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(f"\n{line}")  # line feed first: the last line may have been cut off
            self._found[key] = json.loads(line)["result"]
        return self._found[key]
