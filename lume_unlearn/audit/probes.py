"""The only suite of probes: change an unlearned model, its prompts or its sampling, and score again.

`audit`, `verdict` and `compare` run the same procedures, which are in `suite.py` and `prompts.py`.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lume_tasks.data.rows import Row
from lume_tasks.data.source import Data
from lume_tasks.tasks.known import Matcher
from lume_unlearn.audit.prompts import PROMPTS, multiple_choice, prompts_of, rewriting
from lume_unlearn.audit.quantisation import weight_layers
from lume_unlearn.audit.rows import held_out, limited, rows_digest, sample, training_rows
from lume_unlearn.audit.stages import UNFINISHED, Loader, Stage, carry_out
from lume_unlearn.audit.suite import PROBES, Probed, Suite
from lume_unlearn.data.documents import text_rows
from lume_unlearn.errors import ConfigError
from lume_unlearn.files import write_text, writing
from lume_unlearn.model.fingerprint import fingerprint
from lume_unlearn.scoring.score import ATTACKS, MEANS, Scores, as_data

_log = logging.getLogger("lume_unlearn")


def run_probes(
    model: Any,
    tokenizer: Any,
    data: Data | Mapping[str, Any] | str | Path,
    probes: Sequence[str] | None = None,
    *,
    split: str = "all",
    resume: str | Path | None = None,
    after_each: Callable[[dict[str, Probed]], None] | None = None,
    planned: bool = False,
    **options: Any,
) -> dict[str, Probed]:
    """Run probes on a model, which stays as it was.

    Args:
        model: causal language model of transformers or PEFT, on the device to score and train on.
        tokenizer: its tokenizer.
        data: rows to score, as `score` takes them. With members and non-members, probes that change the weights, and
            ``plain``, run the membership attack as well.
        probes: names, see `probe_stages`. Default: all that the data suffices for; a warning names the others.
        split: rows to use of a data directory.
        resume: a file that keeps the results of finished steps, so that the same call continues after an interruption.
        after_each: called with all scores so far after each step.
        planned: print the steps and an estimate of the minutes first.
        **options: of `probe_stages`.

    Returns:
        name to scores, in the order of the probes; one probe may have several entries ("8-bit (rounded)", ...).

    Raises:
        ConfigError: an unknown probe, or one of ``probes`` that the rows do not suffice for, or a model that cannot be
            quantised.
        DataError: faulty rows.
    """
    data = as_data(data, split)
    known = {name: options[name] for name in ("train", "unrelated", "relearn_rows", "seed") if name in options}
    chosen = chosen_probes(probes, data, **known)
    if "quantised" in chosen:
        weight_layers(model)  # refuse a model that cannot be quantised before the first probe
    stages = list(probe_stages(lambda: (model, tokenizer), data, chosen, **options))
    if resume is not None:
        key = str([fingerprint(model), [rows_digest(rows) for rows in data.rows.values()], options])
        stages = [replace(stage, key=lambda: key) for stage in stages]
    found: dict[str, Probed] = {}
    for _, results in carry_out(stages, (lambda: (model, tokenizer)) if planned else None, resume):
        found |= {title: Probed(**scores) for title, scores in results.items()}
        if after_each:
            after_each(found)
    return found


def probe_stages(
    load: Loader,
    data: Data,
    probes: Sequence[str],
    *,
    train: Data | None = None,
    unrelated: Sequence[str | Row] = (),
    relearn_rows: int = 32,
    relearn_epochs: int = 4,
    relearn_rate: float = 1e-4,
    loss_on: Literal["text", "answer"] = "text",
    samples: int = 8,
    temperature: float = 1.0,
    top_p: float = 1.0,
    controls: int = 99,
    chat: bool = True,
    batch_size: int = 64,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    matcher: Matcher | None = None,
) -> Iterator[Stage]:
    """Return the steps of probes; a step's result is title to the fields of `Probed`.

    - ``plain``: score the rows as they are.
    - ``other_words``: questions rephrased in three ways; all rows in upper case, after a sentence about the weather,
      after three answered retain rows.
    - ``other_forms``: questions asked for steps, as a list, as a form in JSON, and the other way round.
    - ``languages``: the answer in German, French, Spanish, Chinese.
    - ``conversation``: with a system prompt, and after a turn about a retain row.
    - ``persons``: all about each person, a summary, a form; each answer is judged for all rows of the person.
    - ``own_words``: a chat model puts each question in other words, and is asked those that still ask the same.
    - ``multiple_choice``: which of four options is right; tested by swapping names.
    - ``quantised``: with weights of 8 and of 4 bits (see `quantised_copy`).
    - ``repair``: train a copy on retain rows whose answers are none of a forget row, and score it after 1, 2, 4, ...
      epochs and at the end.
    - ``relearn_forget``: the same with forget rows, and forget rows of other documents to score; also before the
      training, as a control.
    - ``unrelated``: the same with texts that have nothing to do with the rows.
    - ``samples``: sample several answers to each row, and give leak@k for k = 1, 2, 4, ... and all: the expected best
      of k. The answers are, of each row, a right one if there is one.

    The probes from ``other_words`` to ``own_words`` ask all forget rows, and as many retain rows, but at least 20.
    The copies are trained on the same number of rows (or texts, if there are so many) in the same way and with the
    same steps: all weights, AdamW, 8 rows a step (see `relearning`).

    Args:
        load: returns model and tokenizer, when a step needs them.
        data: rows to score.
        probes: names from the list above.
        train: rows of other documents to train the copies on. Default: a sample of ``data``; forget rows of its
            documents are then not scored.
        unrelated: texts for ``unrelated``.
        relearn_rows: rows that a copy is trained on, at most half of the forget rows if they come from ``data``.
        relearn_epochs: epochs over them.
        relearn_rate: peak learning rate.
        loss_on: labelled tokens: the whole text, or the answer and EOS.
        samples: answers to sample for each row.
        temperature: of the sampling.
        top_p: share of the probability that is sampled from; 1 for all of it.
        controls: invented persons of ``multiple_choice``.
        chat: see `score`.
        batch_size: prompts of one scoring batch.
        seed: of the chosen rows, their order and the sampling.
        tasks: tasks to score instead of those that generate answers to the rows.
        matcher: judges which answers are right; by default one of the rows of ``data``.
    """
    training = {"epochs": relearn_epochs, "learning_rate": relearn_rate, "loss_on": loss_on, "chat": chat, "seed": seed}
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": 0, "do_sample": True}
    rows = training_rows(data, train, relearn_rows, seed)
    rows["unrelated"] = sample(text_rows(unrelated), relearn_rows, seed)
    return Suite(
        load,
        data,
        rows,
        training,
        sampling,
        matcher or Matcher(data.rows),
        samples=samples,
        controls=controls,
        chat=chat,
        batch_size=batch_size,
        seed=seed,
        tasks=tasks,
    ).stages(probes)


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
        data: rows to score, as `score` takes them.
        probes: names; default: all that the data suffices for. ``plain`` is always included.
        split: rows to use of a data directory.
        limit: rows of each side to use, chosen by the seed; 0 for all.
        seed: of the chosen rows, the sampling and the training.
        output: folder for audit.json; None writes nothing.
        name: the model's folder or hub name, for audit.json; default: as its configuration says.
        **options: of `probe_stages`.

    Raises:
        ConfigError: see `run_probes`; or the file cannot be written.
        DataError: faulty rows.
    """
    data = limited(as_data(data, split), limit, seed)
    name = name or str(getattr(model.config, "_name_or_path", ""))
    probes = None if probes is None else ["plain", *(probe for probe in probes if probe != "plain")]
    if output is None:
        return run_probes(model, tokenizer, data, probes, seed=seed, planned=True, **options)
    folder = Path(output)
    options["after_each"] = lambda found: write_audit(found, folder, name, data.split)
    resume = folder / UNFINISHED
    found = run_probes(model, tokenizer, data, probes, seed=seed, planned=True, resume=resume, **options)
    resume.unlink()
    return found


def write_audit(found: Mapping[str, Scores], output: Path, name: str, split: str) -> None:
    """Write ``audit.json``: the model's name, the split, and each probe's means; ConfigError if that is impossible."""
    content = {"model": name, "split": split, "audits": {title: scores.means for title, scores in found.items()}}
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        write_text(output / "audit.json", json.dumps(content, indent=1) + "\n")


def chosen_probes(
    probes: Sequence[str] | None,
    data: Data,
    *,
    train: Data | None = None,
    unrelated: Sequence[str | Row] = (),
    relearn_rows: int = 32,
    seed: int = 0,
) -> list[str]:
    """Return the names of the probes to run: those given, or all that the rows suffice for; a warning names the others.

    Raises:
        ConfigError: a probe is unknown, or the rows do not suffice for one that was given.
    """
    rows = training_rows(data, train, relearn_rows, seed)
    own, (_, choices) = rewriting(data).data, multiple_choice(data, seed)
    sides = [{row.id for row in rows} for rows in data.rows.values()]
    lacking = {
        "relearn_forget": "" if rows["relearn_forget"] else "relearning needs at least two forget rows",
        "repair": "" if rows["repair"] else "needs a retain row whose answer is not that of a forget row",
        "unrelated": "" if unrelated else "needs texts that have nothing to do with the rows (unrelated)",
        "own_words": "" if own.forget and own.retain else "needs questions of your own on both sides",
        "multiple_choice": "" if all(choices & ids for ids in sides) else "needs three other answers to a question",
    }
    for name in PROMPTS:
        if not prompts_of(name, data):
            lacking[name] = "needs questions on both sides" + (" that name somebody" if name == "persons" else "")
    if rows["relearn_forget"] and not held_out(data, rows["relearn_forget"]).forget:
        lacking["relearn_forget"] = f"relearn_rows {relearn_rows} leaves no forget row to score; lower it"
    unknown = f"choose from {', '.join(PROBES)}"
    names = dict.fromkeys(PROBES if probes is None else probes)
    faults = {name: lacking.get(name, "") if name in PROBES else unknown for name in names}
    described = [f"{name}: {fault}" for name, fault in faults.items() if fault]
    if probes and described:
        raise ConfigError("\n".join(f"probes {fault}" for fault in described))
    for fault in described:
        _log.warning("probe left out: %s", fault)
    return [name for name, fault in faults.items() if not fault]


def audit_table(found: Mapping[str, Scores]) -> str:
    """Return the scores of `audit` as a Markdown table, one entry a row; a dash where a score has no value.

    The AUCs are columns if there are members and non-members. Of the leak@k, the first and the last are rows.
    """
    columns = [*MEANS, *(name for name in ATTACKS if name in found["plain"].means)]
    lines = ["| probe | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    left_out = [name for name in found if "leak@" in name][1:-1]
    for name, scores in found.items():
        if name not in left_out:
            cells = (f"{scores.means[column]:.3f}" if column in scores.means else "-" for column in columns)
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
