"""`lume-unlearn compare`."""

from typing import Any

from lume_unlearn.checks import names
from lume_unlearn.cli.parsing import SHARED, add_fields, add_texts
from lume_unlearn.cli.training import take

TRAINING = (
    *("num_train_epochs", "per_device_train_batch_size", "loss_on", "chat", "max_length", "max_tokens", "bf16"),
    "gradient_checkpointing",
)
"""Options of `UnlearningArguments` for all methods; a recipe may name any of them."""
TEXTS = {
    "model": "Target model, which memorised the rows: a folder or a hub name.",
    "output": "Folder for the table, the page, the recipes and the storage; the same command continues there.",
    "data": SHARED["data"],
    "retrained": "Model trained without the forget rows (`lume-unlearn finetune --rows retain`); methods are then "
    "judged by their distance to it.",
    "alternatives": "File with other answers to the forget rows, for dpo and altpo.",
    "tunings": "What to train, separated by commas: lora, full, last:K, modules:REGEX (default: lora).",
    "probes": "Probes of `audit` for the models and the results of seed 0, separated by commas: quantised, "
    "relearn_forget, repair; or none (default: all three).",
}
"""Options that the command takes in another form than the function `compare`."""
EXIT_STATUS = "Exit status: 0; 2 if a trial or run has no result, or options or files cannot work."


def add_options(parser: Any) -> None:
    """Add the options of `compare`: the parameters of the function, and those of training."""
    from lume_unlearn.compare.run import compare

    text = "Methods (`lume-unlearn methods` lists them) and recipes (names or files) to compare, separated by commas."
    parser.add_argument("--methods", type=str, default="ga,gd,kl,npo", help=text)
    add_texts(parser, TEXTS, required=("model", "output"))
    parser.add_function_arguments(compare, as_group=False, skip={"methods", "tokenizer", "options", *TEXTS})
    group = parser.add_argument_group("For all methods (options in a recipe take precedence)")
    add_fields(group, TRAINING)


def execute(options: dict[str, Any]) -> int:
    """Compare, and print where the page is; return 2 if a trial or run has no result, else 0."""
    from lume_unlearn.compare.run import PAGE, compare
    from lume_unlearn.data.sources import named_directory
    from lume_unlearn.model.load import require_model

    options |= {name: names(text) for name, text in take(options, ("methods", "tunings", "probes")).items()}
    if options.get("probes") == ["none"]:
        options["probes"] = []
    for name in ("model", "retrained"):
        if name in options:
            require_model(options[name], f"--{name}")
    options["data"] = named_directory(options.get("data"))
    content = compare(**options)
    print(f"Written to {options['output']}/{PAGE}.")
    for name, reason in content["failures"].items():
        print(f"{name} failed: {reason}")
    return 2 if content["failures"] else 0
