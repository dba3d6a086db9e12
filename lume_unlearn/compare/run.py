"""`lume-unlearn compare`: tune every method with the same budget, run the best settings, write one table."""

import json
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from lume_tasks.data import locate
from lume_unlearn.compare import final, tuning
from lume_unlearn.compare.contents import Contestant, contents
from lume_unlearn.compare.documents import write_parts
from lume_unlearn.compare.options import CompareConfig
from lume_unlearn.compare.page import MODELS, page
from lume_unlearn.compare.queue import Queue, Slot, open_storage, trials_of
from lume_unlearn.compare.tuning import Setting
from lume_unlearn.config import RunConfig
from lume_unlearn.data.alternatives import read_alternatives
from lume_unlearn.data.inputs import load_inputs, named_directory
from lume_unlearn.errors import ConfigError
from lume_unlearn.files import write_text, writing
from lume_unlearn.model import load
from lume_unlearn.training.distributed import processes

Say = Callable[[str], None]

RESULTS = "compare.json"
PAGE = "compare.html"
ALTERNATIVES = "alternatives.jsonl"


def compare(config: CompareConfig) -> Path:
    """Tune, run, score and audit all methods; write ``compare.json``, ``compare.html`` and ``recipes/``.

    What the libraries print goes to ``compare.log``.

    Finished trials and runs are found again in the storage, so the same command continues where it was stopped, and
    several processes share the work.

    Returns:
        The page.

    Raises:
        ConfigError: an option that cannot work, or a storage of another comparison.
        DataError: faulty or too few rows.
    """
    if processes() > 1:
        raise ConfigError("compare: start it without accelerate; processes with the same --output share the trials")
    output = Path(config.output)
    say = partial(print, file=sys.stdout, flush=True)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        log = (output / "compare.log").open("a", encoding="utf-8")
    with log, redirect_stdout(log), redirect_stderr(log):
        config = replace(config, data=str(named_directory(config.data)))
        content = _compare(config, output, say)
        with writing(output):
            write_text(output / RESULTS, json.dumps(content, indent=1) + "\n")
            write_text(output / PAGE, page(content))
    return output / PAGE


def _compare(config: CompareConfig, output: Path, say: Say) -> dict[str, Any]:
    """Do what is left to do, with the other processes, and return what all of them found."""
    runs = {contestant: tuning.defaults(config, *contestant) for contestant in config.contestants}
    for run in runs.values():
        load_inputs(run)  # faulty rows or alternatives end the comparison before its first trial
    folders = _folders(config, output)
    comparison = _comparison(config, folders)
    _require_same_tokenizer(config)
    storage = open_storage(config.storage, output)
    queues = {
        key: Queue(storage, " ".join(key), comparison, tuning.slots(run, config.trials)) for key, run in runs.items()
    }
    of_queue = {queue.name: _on_tuning_rows(config, runs[key], folders["tuning"]) for key, queue in queues.items()}
    retrained: dict[str, float] | None = None
    for queue, trial in trials_of(list(queues.values())):
        if config.retrained is not None and retrained is None:
            retrained = final.judged_model(config, config.retrained, folders["tuning"])
        say(f"{queue.name}: trial {trial.user_attrs['slot'] + 1} of {config.trials}")
        tuning.run_trial(queue, trial, of_queue[queue.name], folders["tuning"], retrained, config.evaluate_batch_size)
    best = {key: final.best_setting(list(queue.results().values())) for key, queue in queues.items()}
    finals = Queue(storage, "final", comparison, _final_slots(config, best))
    for queue, trial in trials_of([finals]):
        say(f"final: {trial.user_attrs['slot']}")
        _run_final(config, runs, folders, queue, trial)
    _write_recipes(output, runs, best)
    return contents(config, runs, queues, best, finals)


def _require_same_tokenizer(config: CompareConfig) -> None:
    """Refuse a retrained model whose numbers would be of other tokens."""
    if config.retrained is None:
        return
    own, other = (load.load_tokenizer(name, config.trust_remote_code) for name in (config.model, config.retrained))
    if own.get_vocab() != other.get_vocab():
        raise ConfigError(
            f"--retrained {config.retrained}: has another tokenizer than --model, so their numbers cannot be compared; "
            "train it from the same base with `lume-unlearn finetune --rows retain`"
        )


def _folders(config: CompareConfig, output: Path) -> dict[str, Path]:
    """Write the tuning and the final rows, and the alternatives of the tuning rows."""
    assert config.data is not None
    folders = write_parts(Path(config.data), config.split, output, config.tuning_share, config.seed)
    if config.alternatives is not None:
        forget = locate.load_side(Path(config.data), "forget", config.split)
        found = read_alternatives(Path(config.alternatives), forget)
        tuning_ids = [row.id for row in locate.load_side(folders["tuning"], "forget")]
        lines = [json.dumps({"id": row_id, "alternative": text}) for row_id in tuning_ids for text in found[row_id]]
        with writing(output):
            write_text(folders["tuning"] / ALTERNATIVES, "\n".join(lines) + "\n")
    return folders


def _comparison(config: CompareConfig, folders: Mapping[str, Path]) -> dict[str, Any]:
    """Return what the value of a trial depends on, beside its method: for processes that share a storage."""
    names = ("model", "retrained", "trials", "epochs", "batch_size", "loss_on", "precision", "audits")
    rows = {part: locate.checksums(folder, ["forget.jsonl", "retain.jsonl"]) for part, folder in folders.items()}
    return {name: getattr(config, name) for name in names} | {"rows": rows}


def _on_tuning_rows(config: CompareConfig, run: RunConfig, folder: Path) -> RunConfig:
    """Return a run on the tuning rows, with as many optimiser steps as the final run has on all rows."""
    assert config.data is not None
    count = len(locate.load_side(folder, "forget"))
    whole = len(locate.load_side(Path(config.data), "forget", config.split))
    alternatives = None if run.alternatives is None else str(folder / ALTERNATIVES)
    size = max(1, round(run.batch_size * count / whole))
    return replace(run, data=str(folder), split="all", alternatives=alternatives, batch_size=size)


def _final_slots(config: CompareConfig, best: Mapping[Contestant, Setting | None]) -> list[Slot]:
    """Return the final runs: the models to compare with, then each best setting with each seed."""
    there = [name for name in MODELS if name == "target" or config.retrained]
    found: list[Slot] = [{"slot": name, "fixed": {}} for name in there]
    for (method, tuned), setting in best.items():
        for seed in range(config.seeds if setting else 0):
            name = f"{method} {tuned}, seed {seed}"
            found.append({"slot": name, "fixed": {}, "contestant": [method, tuned], "seed": seed, "setting": setting})
    return found


def _run_final(
    config: CompareConfig, runs: Mapping[Contestant, RunConfig], folders: Mapping[str, Path], queue: Queue, trial: Any
) -> None:
    """Make one final run, or score one model, and store the result."""
    slot = trial.user_attrs
    try:
        if slot["slot"] in MODELS:
            name = config.model if slot["slot"] == "target" else config.retrained
            result = final.named_model(config, str(name), folders)
        else:
            run = tuning.with_setting(runs[tuple(slot["contestant"])], slot["setting"])
            result = final.final_run(config, run, folders, slot["seed"])
    except ConfigError as error:
        queue.failed(trial, str(error))
        return
    queue.complete(trial, 0.0, result=result)


def _write_recipes(
    output: Path, runs: Mapping[Contestant, RunConfig], best: Mapping[Contestant, Setting | None]
) -> None:
    """Write each best setting as a recipe for `lume-unlearn run --config`."""
    with writing(output):
        (output / "recipes").mkdir(exist_ok=True)
        for (method, tuned), setting in best.items():
            if setting is not None:
                run = runs[method, tuned]
                options = {"method": method, "tuning": tuned, "loss_on": run.loss_on, "epochs": run.epochs}
                recipe = options | {"batch_size": run.batch_size} | setting
                name = re.sub(r"[^A-Za-z0-9_-]+", "-", f"{method}_{tuned}")
                write_text(output / "recipes" / f"{name}.yaml", yaml.safe_dump(recipe, sort_keys=False))
