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
from lume_unlearn.audit.measure import Measured, earlier_of, measure
from lume_unlearn.audit.quantisation import weight_layers
from lume_unlearn.audit.rows import POSITIVES, rows_digest, sample
from lume_unlearn.audit.rules import Earlier, require_numbers
from lume_unlearn.audit.stages import Loader, Stage, Work, carry_out
from lume_unlearn.audit.suite import Probed, Suite
from lume_unlearn.checks import require_loaded, restored
from lume_unlearn.model.fingerprint import fingerprint
from lume_unlearn.model.load import require_peft

MEASURED, EARLIER = "as asked", "earlier requests"
"""Names of the steps that are no probes."""


@dataclass(frozen=True)
class Found:
    """Results of the steps by the role of the model: before, control, now."""

    measured: dict[str, Measured] = field(default_factory=dict)
    probed: dict[str, dict[str, Probed]] = field(default_factory=dict)
    earlier: list[Earlier] = field(default_factory=list)
    """Results of the unlearned model for each earlier request."""

    def add(self, stage: Stage, result: Any) -> None:
        """Add the result of a step."""
        if stage.probe == EARLIER:
            self.earlier.append(restored(Earlier, result))
        elif stage.probe == MEASURED:
            self.measured[stage.role] = restored(Measured, result)
        else:
            found = {title: Probed(**scores) for title, scores in result.items()}
            self.probed.setdefault(stage.role, {}).update(found)


def loaders_of(models: Mapping[str, Any], tokenizer: Any, names: Mapping[str, str]) -> dict[str, Loader]:
    """Return a function for each role that loads its model and tokenizer; only the model loaded last is kept.

    Each of ``models`` is a model or a `Loader`; a control may be None, and is left out. ``names`` are what messages
    call the models whose argument is not named after their role.

    Raises:
        ConfigError: something else is given as a model, or a PEFT model that cannot be used (see `require_peft`). The
            functions raise it for what a `Loader` returns.
    """
    held: dict[str, tuple[Any, Any]] = {}
    given = {role: model for role, model in models.items() if model is not None or role != "control"}
    later = {role for role, model in given.items() if callable(model) and not isinstance(model, nn.Module)}

    def load(role: str) -> tuple[Any, Any]:
        if role not in held:
            held.clear()
            found = given[role]() if role in later else (given[role], tokenizer)
            require_loaded(found[0], names.get(role, role))
            require_peft(found[0])
            held[role] = found
        return held[role]

    for role in given:
        if role not in later:
            load(role)  # refuses what is no model before any other is loaded
    return {role: partial(load, role) for role in given}


def steps_of(
    role: str,
    load: Loader,
    data: Data,
    probes: Sequence[str],
    *,
    requests: Sequence[list[Row]],
    retain: Sequence[Row],
    about: Any,
    shared: Mapping[str, Any],
    seed: int,
    tasks: Sequence[str],
    **options: Any,
) -> list[Stage]:
    """Return the steps for one model: measure it, probe it if it is not the target, and test earlier requests.

    Args:
        role: before, control or now.
        load: loads the model.
        data: rows.
        probes: names of the probes to run.
        requests: rows of each earlier request; only the unlearned model (now) is tested on them.
        retain: all retain rows (see `earlier_of`).
        about: what the results depend on besides the model.
        shared: ``controls``, ``chat`` and ``batch_size``.
        seed: seeds the retain rows of the swap test, and the probes.
        tasks: further tasks of the harness.
        **options: further options of `Suite`.
    """
    described = cache(lambda: fingerprint(load()[0]))
    key = cache(lambda: json.dumps([described(), about], sort_keys=True))
    # The swap test has a positive control, retain rows, in the unlearned model alone.
    swapped = [*data.forget, *(sample(data.retain, POSITIVES, seed) if role == "now" else [])]

    def measured() -> dict[str, Any]:
        found = measure(*load(), data, swapped, tasks, **shared)
        return asdict(replace(found, model=described()))

    def known(rows: list[Row]) -> dict[str, Any]:
        return asdict(earlier_of(*load(), rows, retain, **shared))

    work = Work([*data.forget, *data.retain], read=swapped, readings=shared["controls"] + 1)
    stages = [Stage(MEASURED, MEASURED, measured, work)]
    if role != "before":
        stages += Suite(load, data, seed=seed, **shared, **options).stages(probes)
    if role == "now":
        for number, rows in enumerate(requests, 1):
            work = Work(rows, read=rows, readings=shared["controls"] + 1)
            content = partial(rows_digest, rows)
            stages.append(Stage(EARLIER, f"earlier request {number}", partial(known, rows), work, key=content))
    return [replace(stage, role=role, key=partial(_both, key, stage.key)) for stage in stages]


def _both(first: Callable[[], str], second: Callable[[], str]) -> str:
    return first() + second()


def found_by(
    stages: Sequence[Stage],
    load: Loader,
    resume: str | Path | None,
    after_each: Callable[[dict[str, Any]], None] | None = None,
    require: Sequence[str] = (),
) -> Found:
    """Print the plan, run the steps, and return their results.

    Args:
        stages: steps from `steps_of`.
        load: loads the model whose speed is measured.
        resume: file that keeps the results of finished steps; None keeps none.
        after_each: called with the scores of the unlearned model so far, "plain" first, after each of its steps.
        require: conditions, whose names are checked as soon as one model is measured.

    Raises:
        ConfigError: a condition on an unknown number, a model that cannot be quantised, or a file that cannot be
            written.
    """
    if any(stage.probe == "quantised" for stage in stages):
        weight_layers(load()[0])  # refuse a model that cannot be quantised before the first step
    found = Found()
    for stage, result in carry_out(stages, load, resume):
        found.add(stage, result)
        if stage.probe == MEASURED:
            require_numbers(require, found.measured[stage.role].numbers)
        if after_each and stage.role == "now":
            after_each({"plain": found.measured["now"].plain, **found.probed.get("now", {})})
    return found
