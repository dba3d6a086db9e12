"""Run probes: change an unlearned model, its prompts or its sampling, and score again.

`audit`, `verdict` and `compare` run the same procedures, which are in `suite.py` and `prompts.py`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lume_tasks.data.rows import Row
from lume_tasks.data.source import Data
from lume_unlearn.audit.prompts import PROMPTS, multiple_choice, prompts_of, rewriting
from lume_unlearn.audit.quantisation import weight_layers
from lume_unlearn.audit.rows import held_out, limited, rows_digest, training_rows
from lume_unlearn.audit.stages import UNFINISHED, carry_out
from lume_unlearn.audit.suite import PROBES, Probed, Suite
from lume_unlearn.checks import listed, raise_faults, require_loaded, require_tokenizer
from lume_unlearn.errors import log
from lume_unlearn.files import write_text, writing
from lume_unlearn.model.fingerprint import fingerprint
from lume_unlearn.scoring.score import ATTACKS, MEANS, Scores, as_data


def run_probes(
    model: Any,
    tokenizer: Any,
    data: Data,
    probes: Sequence[str] | None = None,
    *,
    resume: str | Path | None = None,
    after_each: Callable[[dict[str, Probed]], None] | None = None,
    planned: bool = False,
    **options: Any,
) -> dict[str, Probed]:
    """Run probes on a model without changing it.

    Args:
        model: causal language model of transformers or PEFT, on the device to score and train on.
        tokenizer: its tokenizer.
        data: rows to score, in any form that `score` takes. If there are members and non-members, ``plain`` and the
            probes that change the weights also run the membership attack.
        probes: names from `PROBES`. Default: all for which there are enough rows; a warning names the others.
        split: split of a data directory to use.
        resume: a file that keeps the results of finished steps, so that the same call continues after an interruption.
        after_each: called after each step with all scores so far.
        planned: first print the steps with an estimate of the minutes.
        **options: options of `Suite`.

    Returns:
        name to scores, in the order of the probes; one probe may have several entries ("8-bit (rounded)", ...).

    Raises:
        ConfigError: a probe is unknown, there are too few rows for one of ``probes``, or the model cannot be quantised.
        DataError: faulty rows.
    """
    chosen = chosen_probes(probes, data, **options)
    if "quantised" in chosen:
        weight_layers(model)  # refuse a model that cannot be quantised before the first probe
    stages = list(Suite(lambda: (model, tokenizer), data, **options).stages(chosen))
    if resume is not None:
        key = str([fingerprint(model), [rows_digest(rows) for rows in data.rows.values()], options])
        stages = [replace(stage, key=lambda: key) for stage in stages]
    found: dict[str, Probed] = {}
    for _, results in carry_out(stages, (lambda: (model, tokenizer)) if planned else None, resume):
        found |= {title: Probed(**scores) for title, scores in results.items()}
        if after_each:
            after_each(found)
    return found


def audit(
    model: Any,
    tokenizer: Any,
    data: Data | Mapping[str, Any] | str | Path,
    *,
    probes: Sequence[str] | None = None,
    split: str = "all",
    limit: int = 0,
    seed: int = 0,
    output: str | Path | None = None,
    name: str | None = None,
    **options: Any,
) -> dict[str, Probed]:
    """Run probes on a model (see `run_probes`), and write their means to ``OUTPUT/audit.json`` after each of them.

    ``OUTPUT/unfinished.jsonl`` keeps the results until the end, so that the same call continues after an interruption.

    Args:
        model: causal language model of transformers or PEFT, on the device to score and train on.
        tokenizer: its tokenizer.
        data: rows to score, in any form that `score` takes.
        probes: names; default: all for which there are enough rows. ``plain`` is always included.
        split: split of a data directory to use.
        limit: most rows of each side, sampled with the seed; 0 for all.
        seed: seeds the choice of rows, the sampling and the training.
        output: folder for audit.json; None writes nothing.
        name: the model's folder or hub name, for audit.json; default: the name in its configuration.
        **options: options of `Suite`.

    Raises:
        ConfigError: see `run_probes`; or the file cannot be written.
        DataError: faulty rows.
    """
    require_loaded(model)
    require_tokenizer(tokenizer)
    data = limited(as_data(data, split), limit, seed)
    name = name or str(getattr(model.config, "_name_or_path", ""))
    probes = None if probes is None else ["plain", *(probe for probe in listed(probes) if probe != "plain")]
    resume = None if output is None else Path(output) / UNFINISHED
    if resume:
        options["after_each"] = lambda found: write_audit(found, resume.parent, name, data.split)
    found = run_probes(model, tokenizer, data, probes, seed=seed, planned=True, resume=resume, **options)
    if resume:
        resume.unlink()
    return found


def write_audit(found: Mapping[str, Scores], output: Path, name: str, split: str) -> None:
    """Write ``audit.json``: the model's name, the split, and the means of each probe; ConfigError if that fails."""
    content = {"model": name, "split": split, "audits": {title: scores.means for title, scores in found.items()}}
    with writing(output):
        write_text(output / "audit.json", json.dumps(content, indent=1) + "\n")


def chosen_probes(
    probes: Sequence[str] | None,
    data: Data,
    *,
    train: Data | None = None,
    unrelated: Sequence[str | Row] = (),
    relearn_rows: int = 32,
    seed: int = 0,
    **others: Any,
) -> list[str]:
    """Return the names of the probes to run: those given, or all with enough rows; a warning names the others.

    ``others`` are options of `Suite` that do not affect the choice.

    Raises:
        ConfigError: a given probe is unknown, or there are too few rows for it.
    """
    rows = training_rows(data, train, relearn_rows, seed)
    own, (_, choices) = rewriting(data).data, multiple_choice(data, seed)
    sides = [{row.id for row in rows} for rows in data.rows.values()]
    lacking = {
        "relearn_forget": "" if rows["relearn_forget"] else "relearning needs at least two forget rows",
        "repair": "" if rows["repair"] else "needs a retain row whose answer is not that of a forget row",
        "unrelated": "" if unrelated else "needs texts unrelated to the rows (option unrelated)",
        "own_words": "" if own.forget and own.retain else "needs questions of your own tasks on both sides",
        "multiple_choice": ""
        if all(choices & ids for ids in sides)
        else "needs a question with three other answers on both sides",
    }
    for name in PROMPTS:
        if not prompts_of(name, data):
            named = " that name somebody" if name in ("persons", "invented") else ""
            lacking[name] = f"needs questions on both sides{named}"
    if rows["relearn_forget"] and not held_out(data, rows["relearn_forget"]).forget:
        lacking["relearn_forget"] = f"relearn_rows {relearn_rows} leaves no forget row to score; lower it"
    unknown = f"choose from {', '.join(PROBES)}"
    names = dict.fromkeys(PROBES if probes is None else listed(probes))
    faults = {name: lacking.get(name, "") if name in PROBES else unknown for name in names}
    described = [f"{name}: {fault}" for name, fault in faults.items() if fault]
    raise_faults([f"probes {fault}" for fault in described] if probes else [])
    for fault in described:
        log.warning("probe left out: %s", fault)
    return [name for name, fault in faults.items() if not fault]


def audit_table(found: Mapping[str, Scores]) -> str:
    """Return the scores of `audit` as a Markdown table with a row for each entry; a dash is a missing score.

    If the membership attack was run, its AUCs are columns. Of the leak@k entries, only the first and last are shown.
    """
    columns = [*MEANS, *(name for name in ATTACKS if name in found["plain"].means)]
    lines = ["| probe | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    left_out = [name for name in found if "leak@" in name][1:-1]
    for name, scores in found.items():
        if name not in left_out:
            cells = (f"{scores.means[column]:.3f}" if column in scores.means else "-" for column in columns)
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
