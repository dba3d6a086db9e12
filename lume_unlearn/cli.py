"""The command `lume-unlearn`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from lume_tasks.rows import DataError

RECIPES = Path(__file__).parent / "recipes"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it worked, 1 with a message on stderr when the user's input cannot work."""
    from lume_unlearn.config import ConfigError

    parsed = parser().parse_args(_recipe_first(sys.argv[1:] if argv is None else argv))
    options = parsed[parsed.command].as_dict()
    options.pop("config", None)
    try:
        COMMANDS[parsed.command](options)
    except (ConfigError, DataError) as error:
        print(f"lume-unlearn {parsed.command}: {error}", file=sys.stderr)
        return 1
    return 0


def parser() -> ArgumentParser:
    """The command line; options of `run` are the fields of `RunConfig`, those of `audit` of `AuditConfig`."""
    from lume_unlearn.audit import AuditConfig
    from lume_unlearn.config import RunConfig

    top = ArgumentParser(prog="lume-unlearn", description="Machine unlearning of language models, scored by lm-eval.")
    commands = top.add_subcommands(dest="command")

    run = ArgumentParser(description="Unlearn the forget rows from a model.")
    run.add_argument("--config", action="config", help="A recipe: a YAML file, or a shipped one's name (npo_lora).")
    run.add_class_arguments(RunConfig, as_group=False)
    commands.add_subcommand("run", run, help="unlearn the forget rows from a model")

    merge = ArgumentParser(description="Fold a LoRA adapter into its model.")
    merge.add_argument("--adapter", type=str, required=True, help="Folder that `run --tuning lora` wrote.")
    merge.add_argument("--output", type=str, required=True, help="Folder for the merged model.")
    merge.add_argument("--model", type=str | None, default=None, help="The adapter's model, if not the one it names.")
    merge.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="Of the saved weights.")
    commands.add_subcommand("merge", merge, help="fold a LoRA adapter into its model")

    commands.add_subcommand("methods", ArgumentParser(description="List the methods."), help="list the methods")

    audit = ArgumentParser(description="Score a model again after changing its weights or the words of the rows.")
    audit.add_class_arguments(AuditConfig, as_group=False)
    commands.add_subcommand("audit", audit, help="does forgetting hold? fewer bits, relearning, other words, sampling")

    report = ArgumentParser(description="Turn results of lm_eval into one page to look at, and its pictures.")
    report.add_argument("results", type=str, nargs="+", help="results_*.json, or folders that hold them.")
    report.add_argument("--output", type=str, default="report.html", help="Page to write; pictures go beside it.")
    report.add_argument("--title", type=str, default="Unlearning report", help="Heading of the page.")
    report.add_argument("--show_pii", action="store_true", help="Show texts as they are, with personal data.")
    commands.add_subcommand("report", report, help="turn results of lm_eval into a page to look at")

    card = ArgumentParser(description="Write a model card with the scores into the folder of a run.")
    card.add_argument("--model_dir", type=str, required=True, help="Folder that `run` wrote.")
    card.add_argument("--results", type=str, nargs="+", required=True, help="Its results_*.json, or their folder.")
    card.add_argument("--push_to_hub", type=str | None, default=None, help="Upload the folder to this hub repository.")
    commands.add_subcommand("card", card, help="write a model card with the scores into the folder of a run")

    quickstart = ArgumentParser(description="Everything once, offline, on a miniature LUME and a tiny model.")
    quickstart.add_argument("--output", type=str, default="lume-quickstart", help="Folder for all that it makes.")
    quickstart.add_argument("--seed", type=int, default=0, help="Seed of the data, the models and the runs.")
    commands.add_subcommand("quickstart", quickstart, help="everything once, offline, in about two minutes")
    return top


def _recipe_first(argv: Sequence[str]) -> list[str]:
    """Put ``--config RECIPE`` before the other options, which it would undo from behind, and find shipped recipes."""
    command, recipes, others = list(argv[:1]), list[str](), list[str]()
    rest = iter(argv[1:])
    for option in rest:
        name, equals, value = option.partition("=")
        if name != "--config" or not (value := value if equals else next(rest, "")):
            others.append(option)
        else:
            shipped = RECIPES / f"{value}.yaml"
            recipes.append(f"--config={shipped if shipped.is_file() and not Path(value).is_file() else value}")
    return [*command, *recipes, *others]


def _run(options: dict[str, Any]) -> None:
    from accelerate import PartialState

    from lume_unlearn.config import RunConfig
    from lume_unlearn.unlearning import run

    config = RunConfig(**options)
    output = run(config)
    model = f"pretrained={config.model},peft={output}" if config.tuning == "lora" else f"pretrained={output}"
    if PartialState().is_main_process:
        print(f"Written to {output}. Score it with:")
        print(f"  lm_eval --model hf --model_args {model} --tasks lume --batch_size 64")


def _merge(options: dict[str, Any]) -> None:
    from lume_unlearn.modeling import merge

    merge(**options)
    print(f"Written to {options['output']}.")


def _methods(options: dict[str, Any]) -> None:
    from lume_unlearn.methods import METHODS

    for method in METHODS.values():
        recipes = ", ".join(sorted(path.stem for path in RECIPES.glob(f"{method.name}_*.yaml")))
        print(f"{method.name:<6}{method.title} (retain term: {method.retain})")
        print(f"{'':6}{method.citation}; recipes: {recipes}")


def _audit(options: dict[str, Any]) -> None:
    from lume_unlearn.audit import AuditConfig, audit, audit_table

    config = AuditConfig(**options)
    print(audit_table(audit(config)))
    print(f"Written to {config.output}.")


def _report(options: dict[str, Any]) -> None:
    from lume_unlearn.report import write_report

    options["output"] = Path(options["output"])
    page, *pictures = write_report(**options)
    print(f"Written to {page} ({len(pictures)} pictures also in {page.stem}_files).")


def _card(options: dict[str, Any]) -> None:
    from lume_unlearn.card import push_to_hub, write_card

    folder = Path(options["model_dir"])
    print(f"Written to {write_card(folder, options['results'])}.")
    if options["push_to_hub"]:
        print(f"Uploaded to {push_to_hub(folder, options['push_to_hub'])}.")


def _quickstart(options: dict[str, Any]) -> None:
    from lume_unlearn.quickstart import quickstart

    quickstart(Path(options["output"]), options["seed"])


COMMANDS = {
    "run": _run,
    "merge": _merge,
    "methods": _methods,
    "audit": _audit,
    "report": _report,
    "card": _card,
    "quickstart": _quickstart,
}
