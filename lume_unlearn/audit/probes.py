"""The only suite of probes: change an unlearned model, its prompts or its sampling, and score again.

`audit`, `verdict` and `compare` run the same procedures, which are in `suite.py`.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from lume_tasks.data.rows import Row
from lume_tasks.data.source import Data
from lume_tasks.tasks.known import Matcher
from lume_unlearn.audit.quantisation import weight_layers
from lume_unlearn.audit.suite import PROBES, Probed, Suite, held_out, sample, training_rows
from lume_unlearn.data.documents import text_rows
from lume_unlearn.errors import ConfigError
from lume_unlearn.files import write_text, writing
from lume_unlearn.scoring.score import ATTACKS, MEANS, Scores, as_data

_log = logging.getLogger("lume_unlearn")


def run_probes(
    model: Any,
    tokenizer: Any,
    data: Data | Mapping[str, Any] | str | Path,
    probes: Sequence[str] | None = None,
    *,
    split: str = "all",
    train: Data | None = None,
    unrelated: Sequence[str | Row] = (),
    relearn_rows: int = 32,
    relearn_epochs: int = 4,
    relearn_rate: float = 1e-4,
    loss_on: Literal["text", "answer"] = "text",
    samples: int = 8,
    temperature: float = 1.0,
    top_p: float = 1.0,
    chat: bool = True,
    batch_size: int = 64,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    matcher: Matcher | None = None,
    after_each: Callable[[dict[str, Probed]], None] | None = None,
) -> dict[str, Probed]:
    """Run probes on a model, which stays as it was.

    - ``plain``: score the rows as they are.
    - ``quantised``: with weights of 8 and of 4 bits (see `quantised_copy`).
    - ``relearn_forget``: train a copy on forget rows, then score forget rows of other documents, and all retain rows;
      also before the training, as a control.
    - ``repair``: train a copy on retain rows whose answers are none of a forget row, then score.
    - ``unrelated``: train a copy on texts that have nothing to do with the rows, then score.
    - ``other_words``: score with changed prompts: questions rephrased in three ways, upper case, after a sentence about
      the weather, after three answered retain rows.
    - ``samples``: sample several answers to each row, and give leak@k for k = 1, 2, 4, ... and all: the expected best
      of k. The answers are, of each row, a right one if there is one.

    The copies of `relearn_forget`, `repair` and `unrelated` are trained on the same number of rows (or texts, if there
    are so many) in the same way: all weights, AdamW, 8 rows a step (see `trained_copy`).

    Args:
        model: causal language model of transformers or PEFT, on the device to score and train on.
        tokenizer: its tokenizer.
        data: rows to score, as `score` takes them. With members and non-members, probes that change the weights, and
            ``plain``, run the membership attack as well.
        probes: names from the list above. Default: all that the data suffices for; a warning names the others.
        split: rows to use of a data directory.
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
        chat: see `score`.
        batch_size: prompts of one scoring batch.
        seed: of the chosen rows, their order and the sampling.
        tasks: tasks to score instead of those that generate answers to the rows.
        matcher: judges which sample is right; by default one of the rows of ``data``.
        after_each: called with all scores so far after each probe, so that a later failure loses nothing.

    Returns:
        name to scores, in the order of the probes; one probe may have several entries ("8-bit (rounded)", ...).

    Raises:
        ConfigError: an unknown probe, or one of ``probes`` that the rows do not suffice for, or a model that cannot be
            quantised.
        DataError: faulty rows.
    """
    data = as_data(data, split)
    chosen = chosen_probes(probes, data, train=train, unrelated=unrelated, relearn_rows=relearn_rows, seed=seed)
    if "quantised" in chosen:
        weight_layers(model)  # refuse a model that cannot be quantised before the first probe
    training = {"epochs": relearn_epochs, "learning_rate": relearn_rate, "loss_on": loss_on, "chat": chat, "seed": seed}
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": 0, "do_sample": True}
    rows = training_rows(data, train, relearn_rows, seed)
    rows["unrelated"] = sample(text_rows(unrelated), relearn_rows, seed)
    options = (training, sampling, samples, chat, batch_size, seed, tasks, matcher)
    suite = Suite(model, tokenizer, data, rows, *options)
    found: dict[str, Probed] = {}
    progress = tqdm(chosen, unit="probe")
    for name in progress:
        progress.set_description(f"probe {name}")
        probe, changes = PROBES[name]
        for title, scores in probe(suite):
            queries = samples if name == "samples" else 1
            found[title] = Probed(**vars(scores) | {"probe": name, "changes": changes, "queries": queries})
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
        **options: of `run_probes`.

    Raises:
        ConfigError: see `run_probes`; or the file cannot be written.
        DataError: faulty rows.
    """
    data = limited(as_data(data, split), limit, seed)
    name = name or str(getattr(model.config, "_name_or_path", ""))
    write = None if output is None else lambda found: write_audit(found, Path(output), name, data.split)
    probes = None if probes is None else ["plain", *(probe for probe in probes if probe != "plain")]
    return run_probes(model, tokenizer, data, probes, seed=seed, after_each=write, **options)


def write_audit(found: Mapping[str, Scores], output: Path, name: str, split: str) -> None:
    """Write ``audit.json``: the model's name, the split, and each probe's means; ConfigError if that is impossible."""
    content = {"model": name, "split": split, "audits": {title: scores.means for title, scores in found.items()}}
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        write_text(output / "audit.json", json.dumps(content, indent=1) + "\n")


def limited(data: Data, limit: int, seed: int) -> Data:
    """Return at most ``limit`` rows of each side, chosen by the seed; all for 0."""
    if not limit:
        return data
    return data.changed(lambda rows: sample(rows, limit, seed))


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
    lacking = {
        "relearn_forget": "" if rows["relearn_forget"] else "relearning needs at least two forget rows",
        "repair": "" if rows["repair"] else "needs a retain row whose answer is not that of a forget row",
        "unrelated": "" if unrelated else "needs texts that have nothing to do with the rows (unrelated)",
    }
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
