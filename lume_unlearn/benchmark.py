"""`lume-unlearn benchmark`: the usual way and ours, side by side on the user's own machine."""

import json
import platform
import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import cycle, islice, product
from os import environ
from pathlib import Path
from typing import Any, Literal, cast

import torch
from rich.console import Console
from rich.table import Table

from lume_tasks import data as lume_data
from lume_tasks.checks import SIDES
from lume_tasks.rows import Row
from lume_unlearn import modeling
from lume_unlearn.benchmark_profile import as_text, profiled
from lume_unlearn.benchmark_scoring import compare_scoring, time_whole
from lume_unlearn.benchmark_shapes import SHAPES, write_model, write_rows
from lume_unlearn.benchmark_training import WARM_UP, WAYS, Contest, free_memory, matmul_peak, measure
from lume_unlearn.config import ConfigError, RunConfig
from lume_unlearn.data import Sides, Tokens, encode_rows
from lume_unlearn.whole import write_text

METHODS = ("gd", "kl", "npo")
TUNINGS = {"full": 6, "lora": 4}
"""Each with the FLOPs that a token needs for each weight: 2 forward, 2 for the gradient of what goes in, and 2 for that
of the weight where it is trained."""
PASSED_ON = ("max_tokens", "compile", "gradient_checkpointing", "weights", "optimizer", "reference_copy")
"""Options of `run`."""
LEAST = {"steps": 1, "batch_size": 1, "usual_micro_batch_size": 1, "scoring_prompts": 0, "usual_scoring_prompts": 1}
EPOCHS = 10
"""Of a whole run, as the benchmark's baselines have it."""
LEARNING_RATE = 1e-7
"""So small that the model stays what it is from the first step to the last."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """Options of `lume-unlearn benchmark`.

    Attributes:
        model: Model to time: a folder or a hub name.
        shape: Shape of a model with random weights, instead of --model: small, olmo-1b or olmo-7b; by default olmo-1b
            on a GPU and small on a CPU.
        data: Data directory with the rows; else LUME_DATA_DIR, else rows of words drawn at random, as long as LUME's.
        methods: Methods to time, with commas between them.
        tunings: What to train, with commas between them: lora, full.
        ways: usual, ours, or both with a comma between them: the usual one needs memory for its copy.
        steps: Optimiser steps to time, each both ways; one more goes before them.
        batch_size: Forget rows of one optimiser step, each with a retain row.
        usual_micro_batch_size: Forget rows, and as many retain rows, in one pass of the usual way.
        scoring_prompts: Prompts to answer our way; 0 leaves scoring out.
        usual_scoring_prompts: Prompts to answer the usual way, the first of these; by default as many.
        whole: Method of which a whole run is timed as well, 10 epochs over all rows with the first of --tunings, and
            then the scoring of all prompts, our way.
        json: File to write all figures to.
        profile: File to write a profile of a step of each kind to.
        seed: Seed of the rows' choice, the random weights and the random rows.
        precision: Arithmetic: float32, bfloat16, or auto (bfloat16 where the GPU has it).
        max_tokens: As of `run`, for our way.
        compile: As of `run`, for our way.
        gradient_checkpointing: As of `run`; both ways.
        weights: As of `run`; both ways.
        optimizer: As of `run`; both ways.
        reference_copy: As of `run`, for our way.
    """

    model: str | None = None
    shape: str | None = None
    data: str | None = None
    methods: str = "gd,kl,npo"
    tunings: str = "lora,full"
    ways: str = "usual,ours"
    steps: int = 5
    batch_size: int = 32
    usual_micro_batch_size: int = 16
    scoring_prompts: int = 48
    usual_scoring_prompts: int | None = None
    whole: str | None = None
    json: str | None = None
    profile: str | None = None
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    max_tokens: int = 8192
    compile: bool = False
    gradient_checkpointing: bool = False
    weights: Literal["float32", "bfloat16"] = "float32"
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    reference_copy: Literal["same", "bfloat16", "int8", "cpu"] = "same"

    def __post_init__(self) -> None:
        """Check what can be checked before anything is loaded.

        Raises:
            ConfigError: names every option that is wrong.
        """
        faults = []
        if self.model is not None and self.shape is not None:
            faults.append("--model and --shape both say what to time; give one of them")
        if self.shape is not None and self.shape not in SHAPES:
            faults.append(f"--shape {self.shape}: choose one of {', '.join(SHAPES)}")
        for option, known in (("methods", METHODS), ("tunings", tuple(TUNINGS)), ("ways", WAYS)):
            if not (names := _names(getattr(self, option))) or any(name not in known for name in names):
                faults.append(f"--{option} {getattr(self, option)!r}: choose from {', '.join(known)}")
        for option, least in LEAST.items():
            if (value := getattr(self, option)) is not None and value < least:
                faults.append(f"--{option} {value}: at least {least}")
        if (self.usual_scoring_prompts or 0) > self.scoring_prompts:
            faults.append(f"--usual_scoring_prompts {self.usual_scoring_prompts}: at most --scoring_prompts")
        if self.whole is not None and self.whole not in METHODS:
            faults.append(f"--whole {self.whole}: choose one of {', '.join(METHODS)}")
        for option in ("json", "profile"):
            path = getattr(self, option)
            if path is not None and (not Path(path).absolute().parent.is_dir() or Path(path).is_dir()):
                faults.append(f"--{option} {path}: a file in a folder that exists")
        if self.data is not None and not Path(self.data).expanduser().is_dir():
            faults.append(f"--data {self.data}: is not a directory")
        if faults:
            raise ConfigError("\n".join(faults))


def benchmark(config: BenchmarkConfig) -> dict[str, Any]:
    """Time both ways, print a table, write the files asked for.

    Returns:
        What ``--json`` writes. At the top level, each key with ``ratio`` in it is a number, ours to the usual way's:
        ``full_gd_ratio``, ..., ``scoring_ratio``. ``training``, ``scoring`` and ``whole`` hold what they were made of
        (or ``error``, where memory did not do), ``device``, ``versions`` and ``settings`` what it was measured with.

    Raises:
        ConfigError: the model cannot be loaded.
        DataError: faulty rows.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)  # plans anew for every length, which slows both ways, padding most
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="lume-benchmark-") as name:
        result, profiles = _measured(config, Path(name), console)
    Console().print(training_table(result))
    if "scoring" in result:
        Console().print(scoring_table(result))
    if "whole" in result:
        Console().print(whole_line(result["whole"]))
    for path, text in ((config.json, json.dumps(result, indent=1) + "\n"), (config.profile, as_text(profiles))):
        if path is not None:
            try:
                write_text(Path(path), text)
            except OSError as error:
                raise ConfigError(f"{path}: cannot be written ({error})") from error
    return result


def _measured(config: BenchmarkConfig, work: Path, console: Console) -> tuple[dict[str, Any], dict[str, Any]]:
    """All figures, and the profiles by name."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = _data(config, work)
    rows = lume_data.load_rows(data)
    model = config.model or _shaped(config, work, rows, device)
    half = modeling.use_bfloat16(run_config(config, model, work, "gd", "full"))
    dtype = torch.bfloat16 if half else torch.float32
    console.print(f"{device_name(device)}: matrix products, then {config.steps} steps of each kind, both ways")
    result: dict[str, Any] = {
        "device": device_name(device),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "lm_eval")},
        "settings": asdict(config) | _filled_in(config, data, work),
        "matmul_tflops": matmul_peak(device, dtype) / 1e12,
        "training": {},
    }
    profiles = _train_all(config, model, work, rows, result, console)
    options = {"dtype": str(dtype).removeprefix("torch."), "device": device.type}
    tasks = sorted({f"lume_{row.task.lower()}" for side in SIDES for row in rows[side]})
    if config.scoring_prompts:
        console.print(f"{config.scoring_prompts} prompts, both ways")
        prompts = {"usual": config.usual_scoring_prompts or config.scoring_prompts, "ours": config.scoring_prompts}
        result["scoring"] = compare_scoring(model, data, tasks, prompts, options)
        result["scoring_ratio"] = result["scoring"]["ratio"]
    if config.whole is not None:
        console.print(f"a whole run of {config.whole}")
        run = run_config(config, model, work, config.whole, _names(config.tunings)[0])
        run = replace(run, data=str(data), epochs=EPOCHS, output=str(work / "whole"))
        result["whole"] = time_whole(run, tasks, options)
    return result, profiles


def _train_all(
    config: BenchmarkConfig,
    model: str,
    work: Path,
    rows: dict[str, list[Row]],
    result: dict[str, Any],
    console: Console,
) -> dict[str, Any]:
    """Add the figures of every method with every tuning to the result; returns the profiles by name."""
    tokenizer = modeling.load_tokenizer(model)
    context = getattr(modeling.declared(model), "max_position_embeddings", None)
    forget, retain = (encode_rows(tokenizer, rows[side], "answer", context, context) for side in SIDES)
    result["run_tokens"] = tokens_of_a_run(forget, retain)
    profiles = {}
    for tuning, method in product(_names(config.tunings), _names(config.methods)):
        run = run_config(config, model, work, method, tuning)
        found, profile = _train(config, run, tokenizer, _sample(config, forget, retain), console)
        free_memory()
        for way in WAYS:
            if way in found:
                rate = found[way]["tokens_per_second"]
                useful = TUNINGS[tuning] * found["matrix_weights"] * rate
                found[way]["share_of_matmul_peak"] = useful / (result["matmul_tflops"] * 1e12)
                found[way]["run_seconds"] = result["run_tokens"] / rate
        result["training"][f"{tuning}_{method}"] = found
        if "ratio" in found:
            result[f"{tuning}_{method}_ratio"] = found["ratio"]
        profiles[f"{tuning} {method}"] = profile
    return profiles


def _train(
    config: BenchmarkConfig, run: RunConfig, tokenizer: Any, sides: Sides, console: Console
) -> tuple[dict[str, Any], dict[str, Any]]:
    """One method with one tuning: figures, and the profile where it is asked for; an ``error`` where memory ran out."""
    console.print(f"{run.tuning} {run.method}")
    try:
        contest = Contest(run, tokenizer, sides, config.usual_micro_batch_size, _names(config.ways))
        found = measure(contest, EPOCHS, lambda line: console.print(f"  {line}"))
        profile = profiled(contest) if config.profile else {}
    except torch.OutOfMemoryError:
        advice = "out of memory; --ways ours does without the usual copy, --gradient_checkpointing true needs less"
        console.print(f"  {advice}")
        return {"error": advice}, {}
    return found | {"matrix_weights": contest.matrix_weights}, profile


def run_config(config: BenchmarkConfig, model: str, work: Path, method: str, tuning: str) -> RunConfig:
    """The run whose steps are timed."""
    return RunConfig(
        model=model,
        output=str(work / "output"),
        method=method,
        tuning=tuning,
        epochs=1,
        batch_size=config.batch_size,
        learning_rate=LEARNING_RATE,
        seed=config.seed,
        precision=config.precision,
        # an adapter's weights are float32 in any case
        **{name: getattr(config, name) for name in PASSED_ON if (name, tuning) != ("weights", "lora")},
    )


def _data(config: BenchmarkConfig, work: Path) -> Path:
    """The directory of the rows; generated ones if none was named."""
    if config.data is not None or environ.get(lume_data.DATA_VARIABLE):
        return lume_data.data_dir(config.data)
    write_rows(work / "data", config.seed)
    return work / "data"


def _filled_in(config: BenchmarkConfig, data: Path, work: Path) -> dict[str, Any]:
    """What was used where the option was left out."""
    shape = None if config.model else config.shape or _default_shape()
    return {"shape": shape, "data": "generated" if work in data.parents else str(data)}


def _default_shape() -> str:
    return "olmo-1b" if torch.cuda.is_available() else "small"


def _shaped(config: BenchmarkConfig, work: Path, rows: dict[str, list[Row]], device: torch.device) -> str:
    """A model of the shape asked for, as a folder."""
    write_model(work / "model", config.shape or _default_shape(), rows, device, config.seed)
    return str(work / "model")


def _sample(config: BenchmarkConfig, forget: Sequence[Tokens], retain: Sequence[Tokens]) -> Sides:
    """As many rows of each side as the steps need, chosen by the seed; all of them again where there are too few."""
    draw = random.Random(config.seed)
    count = (config.steps + WARM_UP) * config.batch_size
    chosen = [list(islice(cycle(draw.sample(rows, len(rows))), count)) for rows in (forget, retain)]
    return Sides(chosen[0], chosen[1])


def tokens_of_a_run(forget: Sequence[Tokens], retain: Sequence[Tokens]) -> int:
    """Tokens of `EPOCHS` epochs over all forget rows, each beside a retain row."""
    totals = [sum(len(row.input_ids) for row in rows) for rows in (forget, retain)]
    return round(EPOCHS * (totals[0] + totals[1] * len(forget) / len(retain)))


def device_name(device: torch.device) -> str:
    """The GPU's or the CPU's name, with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {torch.get_num_threads()} threads"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def training_table(result: dict[str, Any]) -> Table:
    """Real tokens a second of both ways, and what follows from them."""
    on_gpu = any(found[way]["peak_bytes"] for found in result["training"].values() for way in WAYS if way in found)
    table = Table(
        title=f"Unlearning, {_model_name(result['settings'])}, on {result['device']} "
        f"(matrix products: {result['matmul_tflops']:.3g} TFLOP/s)",
        caption="usual / ours. Tokens without padding; peak: share of the measured matrix products; "
        f"run: {EPOCHS} epochs over all rows, {result['run_tokens'] / 1e6:.2f} M tokens.",
    )
    for name in ("", "tokens/s", "peak", *(["GB"] if on_gpu else []), "run, s"):
        table.add_column(name, justify="right" if name else "left")
    table.add_column("ratio", justify="right", style="bold")
    for name, found in result["training"].items():

        def both(figure: str, form: str, found: dict[str, Any] = found, unit: float = 1) -> str:
            return " / ".join(f"{found[way][figure] / unit:{form}}" if way in found else "-" for way in WAYS)

        cells = [
            both("tokens_per_second", ",.0f"),
            both("share_of_matmul_peak", ".0%"),
            *([both("peak_bytes", ".1f", unit=1e9)] if on_gpu else []),
            both("run_seconds", ",.0f"),
        ]
        table.add_row(name.replace("_", " "), *cells, f"{found['ratio']:.2f}" if "ratio" in found else "-")
    return table


def _model_name(settings: dict[str, Any]) -> str:
    return Path(settings["model"]).name if settings["model"] else str(settings["shape"])


def scoring_table(result: dict[str, Any]) -> Table:
    """Prompts a second of both ways."""
    found = cast(dict[str, Any], result["scoring"])
    table = Table(title="Scoring, prompts a second", caption=f"{found['same_answers']:.0%} answered alike.")
    for way, name in zip(WAYS, ("hf, one at a time", "lume-hf, auto"), strict=True):
        table.add_column(f"{name} ({found[way]['prompts']})", justify="right")
    table.add_column("ratio", justify="right", style="bold")
    table.add_row(*(f"{found[way]['prompts_per_second']:.2f}" for way in WAYS), f"{found['ratio']:.2f}")
    return table


def whole_line(found: dict[str, Any]) -> str:
    """What a whole run and its scoring took."""
    return (
        f"{found['tuning']} {found['method']}, {EPOCHS} epochs over all rows, with loading and saving: "
        f"{found['run_seconds']:,.0f} s; scoring of all {found['prompts']:,} prompts: "
        f"{found['scoring_seconds']:,.0f} s ({found['generation_seconds']:,.0f} s of it generation)"
    )
