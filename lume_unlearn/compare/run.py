"""`compare`: tune every method with the same budget, train its setting with several seeds, and write one table."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from inspect import signature
from itertools import chain, count
from math import inf
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from lume_unlearn.audit.probes import chosen_probes
from lume_unlearn.checks import listed, raise_faults
from lume_unlearn.compare.comparison import Comparison
from lume_unlearn.compare.contestants import Contestant, MethodLike, contestants
from lume_unlearn.compare.documents import divided
from lume_unlearn.compare.judge import Judge
from lume_unlearn.compare.page import contents, page
from lume_unlearn.compare.queue import shared_queues
from lume_unlearn.compare.training import loader
from lume_unlearn.data.alternatives import read_alternatives
from lume_unlearn.errors import ConfigError
from lume_unlearn.files import write_text, writing
from lume_unlearn.model.load import TUNINGS, load_tokenizer
from lume_unlearn.scoring.score import as_data
from lume_unlearn.training.distributed import processes

PROBES = ("quantised", "relearn_forget", "repair")
"""Probes that change the weights, so that the results can be judged without generating text."""
OPTIONS = {"target": "--model", "retrained": "--retrained"}
"""The options that name the models."""
RESULTS = "compare.json"
PAGE = "compare.html"
LOG = "compare.log"


def compare(
    model: Any,
    methods: Sequence[MethodLike],
    data: Any,
    output: str | PathLike[str],
    *,
    tokenizer: Any = None,
    retrained: Any = None,
    split: str = "all",
    tunings: Sequence[str] = ("lora",),
    alternatives: str | PathLike[str] | Mapping[str, Sequence[str]] | None = None,
    trials: int = 8,
    seeds: int = 3,
    tuning_share: float = 0.25,
    probes: Sequence[str] = PROBES,
    relearn_rows: int = 32,
    relearn_steps: int = 40,
    relearn_rate: float = 1e-4,
    per_device_eval_batch_size: int = 64,
    storage: str | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Tune, run, score and probe methods; write ``compare.json``, ``compare.html`` and ``recipes/`` to a folder.

    Finished trials and runs are found again in the storage, so the same call continues where it was stopped, and
    several processes that make it share the work. What the libraries print goes to ``compare.log``.

    A setting that diverges is a result. An option that cannot work, or faulty rows, end the comparison. After any other
    error, such as memory that runs out, the trial or run is tried again, three times in all; then the comparison goes
    on without it, and says so. The same call tries it again.

    Args:
        model: Target model, which memorised the rows: a folder, a hub name, or an object, of which each run trains a
            copy.
        methods: What to compare (see `MethodLike`): names, recipes, methods, or classes of methods, also your own.
        data: Data as for `score`: a data directory, a `Data`, or ``{"forget": rows, "retain": rows, ...}``.
        output: Folder for the results.
        tokenizer: Tokenizer of the model; needed if the model is an object.
        retrained: Model trained without the forget rows: a folder, a hub name or an object. Methods are then judged by
            their distance to it.
        split: Split of a data directory to use: all, train, validation or test.
        tunings: What to train: "lora", "full", "last:K", "modules:REGEX".
        alternatives: Other answers to the forget rows, for `dpo` and `altpo`: a file, or row id to texts.
        trials: Settings to try for each method and tuning: the defaults; learning rate times 5 and retain weight times
            3; the rate times 0.2; the weight times 3; the rate times 5; then a sampler (TPE) chooses. With 0, the
            defaults, or the values of a recipe, are run without tuning.
        seeds: Runs of the chosen setting of each, with seeds from 0.
        tuning_share: Share of the documents on which settings are tuned; the others give the final scores.
        probes: Probes (see `run_probes`) of the models and of the results of seed 0; () for none. Copies are trained on
            tuning documents and judged on the others.
        relearn_rows: Rows that the probes relearn_forget and repair train on.
        relearn_steps: Steps of this training; the copies are also judged after 5, 10, 20, ...
        relearn_rate: Its learning rate.
        per_device_eval_batch_size: Prompts of one scoring batch.
        storage: Where trials and results are kept: URL of a database, or journal:FILE for a file on a shared disk.
            Processes that name the same one share the work. Default: such a file in the output folder.
        seed: Seed of the division of the documents and of the probes.
        trust_remote_code: Run code that a hub model brings along.
        options: Fields of `UnlearningArguments`, for all methods, such as ``num_train_epochs`` or ``loss_on``. A
            recipe's own options override them.

    Returns:
        What ``compare.json`` holds; ``failures`` names the trials and runs that have no result.

    Raises:
        ConfigError: an option that cannot work, a model that cannot be scored, or a storage of another comparison.
        DataError: faulty or too few rows.
    """
    _require_given(locals())
    if processes() > 1:
        raise ConfigError("compare: start it without accelerate; processes with the same --output share the trials")
    entered = contestants(methods, tunings, options)
    whole = as_data(data, split)
    if isinstance(alternatives, str | PathLike):
        alternatives = read_alternatives(Path(alternatives), whole.forget)
    named = {"target": model} | ({} if retrained is None else {"retrained": retrained})
    tokenizer = _shared_tokenizer(named, tokenizer, trust_remote_code)
    settings: dict[str, Any] = {"probes": listed(probes), "seed": seed}
    settings |= {"relearn_rows": relearn_rows, "relearn_steps": relearn_steps, "relearn_rate": relearn_rate}
    comparison = Comparison(
        models={name: loader(given, trust_remote_code, OPTIONS[name]) for name, given in named.items()},
        contestants=entered,
        parts=divided(whole, tuning_share, seed),
        judge=Judge(tokenizer, per_device_eval_batch_size),
        alternatives=alternatives,
        trials=trials,
        seeds=seeds,
        probes=settings if probes else {},
        folder=Path(output).expanduser(),
        say=partial(print, file=sys.stdout, flush=True),
    )
    _require_possible(comparison)
    shown = {name: str(given) if isinstance(given, str | PathLike) else name for name, given in named.items()}
    return _run(comparison, storage, {"retrained": None, **shown, "tuning_share": tuning_share})


def _run(comparison: Comparison, storage: str | None, shown: dict[str, Any]) -> dict[str, Any]:
    """Run the remaining trials and final runs, write the results, and return them; ``shown`` is for the page."""
    output = comparison.folder
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    with (output / LOG).open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        comparison.run(shared_queues(storage, output))
        content = contents(comparison, shown)
        with writing(output):
            write_text(output / RESULTS, json.dumps(content, indent=1) + "\n")
            write_text(output / PAGE, page(content))
            _write_recipes(output / "recipes", content, comparison.contestants)
    return content


def _require_given(arguments: Mapping[str, Any]) -> None:
    """Refuse None for arguments of `compare` whose default it is not."""
    known = signature(compare).parameters
    missing = [name for name, value in arguments.items() if value is None and known[name].default is not None]
    raise_faults([f"--{name} None: give a value" + ", or () for no probes" * (name == "probes") for name in missing])


def _require_possible(comparison: Comparison) -> None:
    """Refuse options that cannot work, before the first trial."""
    entered, probes, parts = comparison.contestants.values(), comparison.probes, comparison.parts
    numbers = {"seeds": comparison.seeds, "per_device_eval_batch_size": comparison.judge.batch_size}
    numbers |= {name: value for name, value in probes.items() if name.startswith("relearn_")}
    faults = [f"--{name} {value}: must be above 0" for name, value in numbers.items() if not 0 < value < inf]
    faults += [f"--trials {comparison.trials}: must be 0 (the defaults) or more"] if comparison.trials < 0 else []
    needing = {c.method.name for c in entered if c.method.needs.alternatives == "file"}
    if needing and comparison.alternatives is None:
        faults.append(f"--methods {', '.join(sorted(needing))}: need --alternatives FILE (`lume-unlearn alternatives`)")
    if not needing and comparison.alternatives is not None:
        faults.append("--alternatives: no method of this comparison uses them; drop --alternatives")
    wrong = {c.tuning for c in entered if not re.fullmatch(TUNINGS, c.tuning)}
    faults += [f"--tunings {name}: choose from lora, full, last:K (K layers), modules:REGEX" for name in sorted(wrong)]
    unknown = [name for name in probes.get("probes", ()) if name not in PROBES]
    faults += [f"--probes {name}: choose from {', '.join(PROBES)}" for name in unknown]
    raise_faults(faults)
    if probes:
        chosen_probes(probes["probes"], parts.final, train=parts.tuning, relearn_rows=probes["relearn_rows"])


def _shared_tokenizer(models: Mapping[str, Any], tokenizer: Any, trust_remote_code: bool) -> Any:
    """Return the target's tokenizer; refuse a retrained model with another vocabulary, which cannot be compared."""
    named = {name: str(given) for name, given in models.items() if isinstance(given, str | PathLike)}
    if tokenizer is None and "target" not in named:
        raise ConfigError("tokenizer: needed for a model in memory; pass the model's own")
    own = tokenizer or load_tokenizer(named["target"], trust_remote_code)
    if "retrained" not in named:
        return own
    if load_tokenizer(named["retrained"], trust_remote_code, OPTIONS["retrained"]).get_vocab() != own.get_vocab():
        raise ConfigError(
            f"--retrained {named['retrained']}: has another tokenizer than --model, so their numbers cannot be "
            "compared; train it from the same base with `lume-unlearn finetune --rows retain`"
        )
    return own


def _write_recipes(folder: Path, content: Mapping[str, Any], entered: Mapping[str, Contestant]) -> None:
    """Write each chosen setting as a recipe for `lume-unlearn run --config`; equal names end in _2, _3, ..."""
    folder.mkdir(exist_ok=True)
    written: list[str] = []
    for name, contestant in entered.items():
        setting = content["settings"][name]
        if setting["best"] is not None:
            recipe = {"method": contestant.method.name, "tuning": contestant.tuning}
            for options in (*contestant.identity().values(), setting["best"]):
                recipe |= options
            file = re.sub(r"[^\w-]+", "-", Path(name).name.replace(".yaml ", "_").replace(" ", "_"))
            numbered = (f"{file}_{number}" for number in count(2))
            file = next(one for one in chain([file], numbered) if one.lower() not in written)
            written.append(file.lower())  # some file systems ignore case
            write_text(folder / f"{file}.yaml", yaml.safe_dump(recipe, sort_keys=False))
