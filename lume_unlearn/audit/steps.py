"""The steps of a verdict: measure target, control and unlearned model, and probe the last two."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import nn

from lume_tasks.data.rows import Row
from lume_tasks.data.source import Data
from lume_unlearn.audit.measure import Measured, known_of, measure
from lume_unlearn.audit.probes import planned_seconds, probe_stages
from lume_unlearn.audit.quantisation import weight_layers
from lume_unlearn.audit.rows import POSITIVES, rows_digest, sample
from lume_unlearn.audit.stages import Kept, Stage, Work, carry_out
from lume_unlearn.audit.suite import Loader, Probed
from lume_unlearn.model.fingerprint import fingerprint

MEASURED, EARLIER = "as asked", "earlier requests"
"""Steps that are no probes."""


@dataclass(frozen=True)
class Found:
    """What the steps found, by the role of a model: before, control, now."""

    measured: dict[str, Measured] = field(default_factory=dict)
    probed: dict[str, dict[str, Probed]] = field(default_factory=dict)
    earlier: list[tuple[int, int]] = field(default_factory=list)
    """Of each earlier request, the rows known now, and all its rows."""

    def add(self, stage: Stage, result: Any) -> None:
        """Add the result of a step."""
        if stage.probe == EARLIER:
            self.earlier.append((result[0], result[1]))
        elif stage.probe == MEASURED:
            self.measured[stage.role] = Measured.restored(result)
        else:
            found = {title: Probed(**scores) for title, scores in result.items()}
            self.probed.setdefault(stage.role, {}).update(found)


def loaders_of(models: Mapping[str, Any], tokenizer: Any) -> dict[str, Loader]:
    """Return a function for each role that gives its model and tokenizer, and keeps only the last one that was asked.

    A model is given as it is, or as a `Loader`; None leaves its role out.
    """
    held: dict[str, tuple[Any, Any]] = {}

    def load(role: str) -> tuple[Any, Any]:
        if role not in held:
            held.clear()
            model = models[role]
            held[role] = (model, tokenizer) if isinstance(model, nn.Module) else model()
        return held[role]

    return {role: partial(load, role) for role, model in models.items() if model is not None}


def key_of(load: Loader, about: Any) -> Callable[[], str]:
    """Return a function that says what results depend on: the model, which is loaded for it, and ``about``."""
    return cache(lambda: json.dumps([fingerprint(load()[0]), about], sort_keys=True))


def steps_of(
    role: str,
    load: Loader,
    data: Data,
    probes: Sequence[str],
    *,
    tasks: Sequence[str],
    key: Callable[[], str],
    shared: Mapping[str, Any],
    seed: int,
    **options: Any,
) -> list[Stage]:
    """Return the steps for one model.

    Args:
        role: before, control or now.
        load: gives the model.
        data: rows.
        probes: to run on it.
        tasks: further tasks of the harness.
        key: of `key_of`.
        shared: ``controls``, ``chat`` and ``batch_size``.
        seed: of the retain rows that are tested, and of the probes.
        **options: further ones of `probe_stages`.
    """
    # The retain rows are the positive control of the unlearned model's test alone.
    swapped = [*data.forget, *(sample(data.retain, POSITIVES, seed) if role == "now" else [])]
    measured = Stage(
        MEASURED,
        MEASURED,
        lambda: asdict(measure(*load(), data, swap_rows=[row.id for row in swapped], tasks=tasks, **shared)),
        Work([*data.forget, *data.retain], read=swapped, readings=shared["controls"] + 1),
    )
    stages = [measured, *probe_stages(load, data, probes, seed=seed, **shared, **options)]
    return [replace(stage, role=role, key=key) for stage in stages]


def earlier_steps(
    requests: Sequence[list[Row]],
    load: Loader,
    retain: Sequence[Row],
    key: Callable[[], str],
    chat: bool,
    batch_size: int,
) -> list[Stage]:
    """Return a step for each earlier request: which of its rows does the model know now?"""

    def known(rows: list[Row]) -> list[int]:
        return list(known_of(*load(), rows, retain, chat=chat, batch_size=batch_size))

    return [
        Stage(EARLIER, f"earlier request {rows_digest(rows)[:8]}", partial(known, rows), Work(rows), key=key)
        for rows in requests
    ]


def found_by(
    stages: Sequence[Stage],
    load: Loader,
    resume: str | Path | None,
    after_each: Callable[[dict[str, Any]], None] | None = None,
) -> Found:
    """Print the plan, carry it out, and return what was found.

    Args:
        stages: of `steps_of` and `earlier_steps`.
        load: gives the model whose speed is measured.
        resume: file that keeps the results of finished steps; None keeps none. It is removed at the end.
        after_each: called with the scores of the unlearned model so far, "plain" first, after each of its steps.

    Raises:
        ConfigError: the model cannot be quantised, or the file cannot be written.
    """
    model, tokenizer = load()
    if any(stage.probe == "quantised" for stage in stages):
        weight_layers(model)  # refuse a model that cannot be quantised before the first step
    found, seconds = Found(), planned_seconds(stages, model, tokenizer)
    del model
    kept = None if resume is None else Kept(Path(resume))
    for stage, result in carry_out(stages, seconds, kept):
        found.add(stage, result)
        if after_each and stage.role == "now":
            after_each({"plain": found.measured["now"].plain, **found.probed.get("now", {})})
    if kept:
        kept.done()
    return found
