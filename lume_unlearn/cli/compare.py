"""`lume-unlearn compare`."""

from typing import Any, Literal

from lume_unlearn.checks import NonNegativeInt, PositiveFloat, PositiveInt, Share, names
from lume_unlearn.cli.parsing import UNSET, add_fields

TITLE = "Tune several methods with the same budget, and compare them in one table."
SHARED = (
    *("num_train_epochs", "per_device_train_batch_size", "loss_on", "chat", "max_length", "max_tokens", "bf16"),
    "gradient_checkpointing",
)
"""Options of `UnlearningArguments` for all methods; a recipe may name any of them."""
OPTIONS: dict[str, tuple[Any, str]] = {
    "data": (str, "Data directory; default LUME_DATA_DIR, else the published LUME."),
    "split": (Literal["all", "train", "validation", "test"], "Rows to use (default: all)."),
    "tunings": (str, "What to train, separated by commas: lora, full, last:K, modules:REGEX (without a comma) (lora)."),
    "retrained": (
        str,
        "Model trained without the forget rows (`lume-unlearn finetune --rows retain`); methods are then judged by "
        "their distance to it.",
    ),
    "alternatives": (str, "File with other answers to the forget rows, for dpo and altpo."),
    "trials": (
        PositiveInt,
        "Settings to try for each method and tuning: its defaults, then the learning rate times 0.2, the retain weight "
        "times 3, both times 5 and 3, the rate times 5; a sampler (TPE) chooses the others (default: 8).",
    ),
    "seeds": (PositiveInt, "Runs of the best setting of each, with seeds from 0 (default: 3)."),
    "tuning_share": (
        Share,
        "Share of the documents on which settings are tuned; the final scores are of the others (default: 0.25).",
    ),
    "probes": (
        str,
        "Probes of `audit` for the results of seed 0, separated by commas, or none: quantised, relearn_forget, repair "
        "(default: all three).",
    ),
    "relearn_rows": (PositiveInt, "Rows that relearn_forget and repair train on (default: 32)."),
    "relearn_rate": (PositiveFloat, "Learning rate of this training (default: 1e-4)."),
    "per_device_eval_batch_size": (PositiveInt, "Prompts of one scoring batch (default: 64)."),
    "storage": (
        str,
        "Where trials and results are kept: a URL of a database (postgresql://...), or journal:FILE for a file on a "
        "shared disk. Processes that name the same one share the work. Default: such a file in the output.",
    ),
    "seed": (NonNegativeInt, "Seed of the division of the documents and of the audits (default: 0)."),
    "trust_remote_code": (bool, "Run code that a hub model brings along."),
}


def add_options(parser: Any) -> None:
    """Add the options of `compare`."""
    from lume_unlearn.training.arguments import UnlearningArguments

    text = "Target model, which memorised the rows: a folder or a hub name."
    parser.add_argument("--model", type=str, required=True, default=UNSET, help=text)
    text = "Folder for the table, the page, the recipes and the storage; the same command continues there."
    parser.add_argument("--output", type=str, required=True, default=UNSET, help=text)
    text = "Methods to compare (`lume-unlearn methods` lists them), or recipes (files or names), separated by commas."
    parser.add_argument("--methods", type=str, default="ga,gd,kl,npo", help=text)
    for name, (kind, text) in OPTIONS.items():
        parser.add_argument(f"--{name}", type=kind, default=UNSET, help=text)
    group = parser.add_argument_group("For all methods (a recipe that names such an option keeps its own)")
    add_fields(group, UnlearningArguments, SHARED)


def execute(options: dict[str, Any]) -> int:
    """Compare, and say where the page is; 2 if a trial or run has no result."""
    from lume_tasks.data.locate import data_dir
    from lume_unlearn.compare.run import PAGE, compare

    lists = [name for name in ("methods", "tunings", "probes") if name in options]
    given: dict[str, Any] = {name: names(options.pop(name)) for name in lists}
    if given.get("probes") == ["none"]:
        given["probes"] = []
    output = options.pop("output")
    data = options.pop("data") if "data" in options else data_dir()
    content = compare(options.pop("model"), data=data, output=output, **given, **options)
    print(f"Written to {output}/{PAGE}.")
    for name, reason in content["failures"].items():
        print(f"{name} failed: {reason}")
    return 2 if content["failures"] else 0
