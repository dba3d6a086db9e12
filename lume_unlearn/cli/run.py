"""`lume-unlearn run`."""

import shlex
from typing import Any

from lume_unlearn.cli.parsing import UNSET, add_texts
from lume_unlearn.cli.training import add_loading_options, add_trainer_options, add_tuning_options, arguments, take

TEXTS = {
    "forget": "File or folder with forget rows (jsonl or parquet), instead of --data.",
    "retain": "File or folder with retain rows, instead of --data.",
    "forgotten": "Data directories of earlier requests, separated by commas: a warning says if their rows come back.",
    "alternatives": "File with other answers to the forget rows, for dpo and altpo; `lume-unlearn alternatives` writes "
    "one.",
    "substitutes": "File with substitutes for texts in the contexts of the counterfactual teacher, one "
    '{"text": ..., "substitute": ...} a line; default: invented persons, other dates and numbers, and names '
    "of other rows.",
    "base": "Model that --model was fine-tuned from, if you still have it: teacher of counterfactual and level; swap "
    "imitates its predictions for texts and for rows that name nothing.",
    "unseen": "File with texts that the model never saw: their NLL is the target of `level`, and of texts in `swap`.",
}


def add_options(parser: Any) -> None:
    """Add the options of `run`."""
    from lume_unlearn.methods.table import parameters

    text = "Recipe: a YAML file, or the name of a shipped one; `lume-unlearn methods` lists them."
    parser.add_argument("--config", action="config", help=text)
    parser._option_string_actions["--print_config"].help = "Print the given options as a recipe, and exit."
    add_texts(parser, {"method": "Unlearning method; `lume-unlearn methods` lists them."}, required=("method",))
    add_loading_options(parser)
    add_texts(parser, TEXTS)
    add_tuning_options(parser)
    group = parser.add_argument_group("Parameters of methods (default)")
    for name, (kind, text) in parameters().items():
        group.add_argument(f"--{name}", type=kind, default=UNSET, help=text)
    add_trainer_options(parser)


def execute(options: dict[str, Any]) -> None:
    """Unlearn and save, and print the command that scores the result."""
    from pathlib import Path

    from lume_unlearn.data.sources import Source
    from lume_unlearn.methods.registry import method_of
    from lume_unlearn.methods.table import parameters
    from lume_unlearn.model.places import find_model
    from lume_unlearn.scoring.command import scoring_command
    from lume_unlearn.training.callbacks.scores import best_line
    from lume_unlearn.training.run import run

    method = method_of(options.pop("method"), **take(options, parameters()))
    model, args = options.pop("model"), arguments(options)

    def saved(output: Path) -> None:
        where = {name: options[name] for name in ("data", "split", "trust_remote_code") if name in options}
        directory = Source(where.get("data"), where.get("split", "all"), options.get("forget")).directory
        adapter, start = options.get("tuning", "lora") == "lora", find_model(model)
        result, first = str(output), ""
        if adapter and start.adapters:
            adapter, result = False, str(output / "merged")
            merge = shlex.join(["lume-unlearn", "merge", "--adapter", str(output), "--output", result])
            first = f" It is an adapter on an adapter, which lm_eval does not load: merge it first.\n  {merge}\n"
        command = scoring_command(start.name, result, adapter=adapter, directory=directory, chat=args.chat, **where)
        print(f"Written to {output}.{first or ' '}Score it with:\n  {command}")
        if best := best_line(output):
            print(best, flush=True)

    run(model, args, method, saved=saved, **options)
