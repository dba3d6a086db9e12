"""`lume-unlearn compare`: tune every method with the same budget, run the best settings, write one table."""

import json
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from lume_tasks.data import locate
from lume_unlearn.compare import final, tuning
from lume_unlearn.compare.contents import MODELS, Contestant, contents
from lume_unlearn.compare.documents import ALTERNATIVES, digest, division, write_division
from lume_unlearn.compare.judge import judged_model
from lume_unlearn.compare.options import CompareConfig, is_recipe
from lume_unlearn.compare.page import page
from lume_unlearn.compare.queue import Queue, Slot, open_storage, trials_of
from lume_unlearn.compare.tuning import Setting
from lume_unlearn.config import RunConfig
from lume_unlearn.data.inputs import load_inputs, named_directory
from lume_unlearn.errors import ConfigError
from lume_unlearn.files import fingerprint, write_text, writing
from lume_unlearn.model import load
from lume_unlearn.training.distributed import processes

Say = Callable[[str], None]

RESULTS = "compare.json"
PAGE = "compare.html"


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
    _require_models(config)
    runs = {contestant: tuning.defaults(config, *contestant) for contestant in config.contestants}
    for run in runs.values():
        load_inputs(run)  # faulty rows or alternatives end the comparison before its first trial
    files = division(Path(str(config.data)), config.split, config.alternatives, config.tuning_share, config.seed)
    comparison = _comparison(config, files)
    lock = FileLock(output / ".storage.lock")
    with lock:
        storage = open_storage(config.storage, output)
    queues = {
        key: Queue(storage, lock, " ".join(key), comparison | _recipe(key[0]), tuning.slots(run, config.trials))
        for key, run in runs.items()
    }
    with lock:
        folders = write_division(files, output)
    _tune(config, runs, queues, folders["tuning"], say)
    best = {key: best_setting(queue) for key, queue in queues.items()}
    finals = Queue(storage, lock, "final", comparison, _final_slots(config, best))
    for queue, trial in trials_of([finals]):
        say(f"final: {trial.user_attrs['slot']}")
        _run_final(config, runs, folders, queue, trial)
    _write_recipes(output, runs, best)
    attack = (folders["tuning"] / "mia_data").is_dir()
    return contents(config, runs, queues, best, finals, attack)


def _require_models(config: CompareConfig) -> None:
    """Refuse models whose tokenizers cannot be loaded, or whose numbers would be of different tokens."""
    own = load.load_tokenizer(config.model, config.trust_remote_code)
    if config.retrained is None:
        return
    if load.load_tokenizer(config.retrained, config.trust_remote_code).get_vocab() != own.get_vocab():
        raise ConfigError(
            f"--retrained {config.retrained}: has another tokenizer than --model, so their numbers cannot be compared; "
            "train it from the same base with `lume-unlearn finetune --rows retain`"
        )


def _recipe(method: str) -> dict[str, Any]:
    """Return what the trials of a recipe depend on beside the comparison; a changed recipe is refused."""
    return {"recipe": tuning.recipe_options(method)} if is_recipe(method) else {}


def _comparison(config: CompareConfig, files: Mapping[str, str]) -> dict[str, Any]:
    """Return what the value of a trial depends on, beside its method: for processes that share a storage."""
    names = ("model", "retrained", "trials", "epochs", "batch_size", "loss_on", "precision")
    options = {name: getattr(config, name) for name in (*names, "audits", "audit_rows", "audit_rate", "requests")}
    weights = [fingerprint(name) for name in (config.model, config.retrained) if name]
    return options | {"rows": digest(files), "weights": weights}


def _tune(
    config: CompareConfig,
    runs: Mapping[Contestant, RunConfig],
    queues: Mapping[Contestant, Queue],
    data: Path,
    say: Say,
) -> None:
    """Run the trials of all methods that no other process runs."""
    of_queue = {queue.name: _on_tuning_rows(config, runs[key], data) for key, queue in queues.items()}
    retrained, goal = None, None
    for queue, trial in trials_of(list(queues.values())):
        say(f"{queue.name}: trial {trial.user_attrs['slot'] + 1} of {config.trials}")
        if goal is None:
            goal = tuning.forget_goal(config, data)
            retrained = judged_model(config, config.retrained, data) if config.retrained else None
        run = of_queue[queue.name]
        tuning.run_trial(queue, trial, run, data, retrained, goal, config.evaluate_batch_size)


def _on_tuning_rows(config: CompareConfig, run: RunConfig, data: Path) -> RunConfig:
    """Return a run on the tuning rows, with as many optimiser steps as the final run has on all rows."""
    count = len(locate.load_side(data, "forget"))
    whole = len(locate.load_side(Path(str(config.data)), "forget", config.split))
    alternatives = None if run.alternatives is None else str(data / ALTERNATIVES)
    size = max(1, round(run.batch_size * count / whole))
    return replace(run, data=str(data), split="all", alternatives=alternatives, batch_size=size)


def best_setting(queue: Queue) -> Setting | None:
    """Return the setting of the trial with the lowest value; None if no trial was judged."""
    done = [t for t in queue.results().values() if t.state.name == "COMPLETE" and "reason" not in t.user_attrs]
    return dict(min(done, key=lambda trial: trial.value).params) if done else None


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
    task = trial.user_attrs["task"]
    try:
        if task["slot"] in MODELS:
            name = config.model if task["slot"] == "target" else config.retrained
            result = final.named_model(config, str(name), folders)
        else:
            run = tuning.with_setting(runs[tuple(task["contestant"])], task["setting"])
            result = final.final_run(config, run, folders, task["seed"])
    except Exception as error:  # diverged, or out of memory: a result
        traceback.print_exc()
        queue.failed(trial, str(error) if isinstance(error, ConfigError) else repr(error))
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
                shared = ("split", "loss_on", "epochs", "batch_size", "precision")
                given = tuning.recipe_options(method) if is_recipe(method) else {"params": {}}
                recipe = {"method": run.method, "tuning": tuned} | given.pop("params") | given
                recipe |= {name: getattr(run, name) for name in shared} | setting
                name = re.sub(r"[^A-Za-z0-9_-]+", "-", f"{Path(method).stem}_{tuned}")
                write_text(output / "recipes" / f"{name}.yaml", yaml.safe_dump(recipe, sort_keys=False))
