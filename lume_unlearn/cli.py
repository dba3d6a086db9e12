"""The command `lume-unlearn`; torch and transformers are imported only when a command needs them."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NoReturn

import jsonargparse
from jsonargparse.typing import PositiveInt, restricted_number_type

from lume_tasks.errors import DataError, visible
from lume_unlearn.compare.options import CompareConfig
from lume_unlearn.config import RunConfig
from lume_unlearn.errors import ConfigError, Interrupted
from lume_unlearn.evaluation.options import AlternativesConfig, AuditConfig
from lume_unlearn.methods.table import listing, markdown, parameters
from lume_unlearn.training.options import DistillConfig, FinetuneConfig

Density = restricted_number_type("Density", float, [(">", 0), ("<=", 1)])
RECIPES = Path(__file__).parent / "recipes"


class ArgumentParser(jsonargparse.ArgumentParser):
    """A parser that suggests the option that an unknown one is near to."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print usage and message, and exit with status 2."""
        parser = getattr(ex, "subcommand_parser", None) or self
        known = [option.lstrip("-") for option in parser._option_string_actions]
        if re.search("unrecognized arguments|does not accept option", message):
            given = [name.replace("-", "_") for name in re.findall(r"(?:--|')([\w-]+)", message)]
            near = dict.fromkeys(f"--{option}" for name in given for option in get_close_matches(name, known, 1))
            message += f"; did you mean {' and '.join(near)}?" if near else ""
        super().error(visible(message), ex)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        Exit status: 0, or after a message on stderr 1 for input that cannot work and 128 + N for signal N.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            parsed = parser().parse_args(with_recipes_first(argv))
            options = parsed[parsed.command].as_dict()
            recipe = options.pop("config", None)
            if recipe and options["trust_remote_code"] and not any("--trust_remote_code" in word for word in argv):
                raise ConfigError("--config: a recipe may not set trust_remote_code; give it on the command line")
            _, _, execute = COMMANDS[parsed.command]
            status = execute(options) or 0
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # `lume-unlearn methods | head` closes the pipe early
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ConfigError, DataError) as error:
        message, status = str(error), 1
    except Interrupted as error:
        message, status = str(error), error.code
    except KeyboardInterrupt:
        advice = "the same command continues" if argv[0] == "compare" else "--resume continues from the last checkpoint"
        message, status = f"stopped by SIGINT without saving; {advice}", 130
    else:
        return status
    print(visible(f"lume-unlearn {argv[0]}: {message}"), file=sys.stderr)
    return status


def with_recipes_first(argv: Sequence[str]) -> list[str]:
    """Move each ``--config RECIPE`` to the front, so that options win over it, and replace a shipped name by its file.

    Raises:
        ConfigError: there is no such recipe.
    """
    finder = argparse.ArgumentParser(prog="lume-unlearn", add_help=False, allow_abbrev=False)
    finder.add_argument("--config", action="append", default=[])
    found, others = finder.parse_known_args(argv)
    recipes = []
    for name in found.config:
        shipped = RECIPES / f"{name}.yaml"
        path = shipped if shipped.is_file() and not Path(name).is_file() else Path(name)
        if not path.exists():
            raise ConfigError(
                f"--config {name}: neither a file nor a shipped recipe (`lume-unlearn methods` lists them); "
                "the defaults of a method need none: --method M --tuning T"
            )
        recipes.append(f"--config={path}")
    return [*others[:1], *recipes, *others[1:]]


def parser() -> ArgumentParser:
    """Return the parser of all commands."""
    top = ArgumentParser(
        prog="lume-unlearn",
        description="Machine unlearning of language models, scored by lm-eval.",
        allow_abbrev=False,
    )
    commands = top.add_subcommands(dest="command")
    for name, (title, add_options, _) in COMMANDS.items():
        options = ArgumentParser(description=title, allow_abbrev=False)
        add_options(options)
        for action in options._actions:
            if getattr(action, "_typehint", None) is bool:  # --resume is short for --resume true
                action.nargs, action.const = "?", True
        commands.add_subcommand(name, options, help=title)
    return top


def _run_options(run: ArgumentParser) -> None:
    run.add_argument("--config", action="config", help="Recipe: a YAML file, or a shipped one's name (sugd_last8).")
    run.add_class_arguments(RunConfig, as_group=False, skip={"params"})
    for name, (text, choices) in parameters().items():
        kind: Any = Literal[choices] if choices else float
        run.add_argument(f"--{name}", type=kind | None, default=None, help=text)


def run_config(options: dict[str, Any]) -> RunConfig:
    """Return the configuration of `run`, with the methods' parameters gathered in ``params``."""
    given = {name: options.pop(name) for name in parameters()}
    return RunConfig(**options, params={name: value for name, value in given.items() if value is not None})


def _run(options: dict[str, Any]) -> None:
    from accelerate import PartialState

    from lume_unlearn.evaluation.callback import best_line
    from lume_unlearn.evaluation.harness import scoring_command
    from lume_unlearn.training.run import run

    config = run_config(options)
    output = run(config)
    if PartialState().is_main_process:
        print(f"Written to {output}. Score it with:\n  {scoring_command(config)}")
        best = best_line(output)
        if best:
            print(best)


def _finetune(options: dict[str, Any]) -> None:
    config = FinetuneConfig(**options)
    from accelerate import PartialState

    from lume_unlearn.training.finetune import finetune

    output = finetune(config)
    if PartialState().is_main_process:
        print(f"Written to {output}.")


def _distill(options: dict[str, Any]) -> None:
    config = DistillConfig(**options)
    from accelerate import PartialState

    from lume_unlearn.training.distill import distill

    output = distill(config)
    if PartialState().is_main_process:
        print(f"Written to {output}.")


def _compare(options: dict[str, Any]) -> None:
    config = CompareConfig(**options)
    from lume_unlearn.compare.run import compare

    print(f"Written to {compare(config)}.")


def _merge_options(merge: ArgumentParser) -> None:
    text = str | None
    merge.add_argument("--adapter", type=text, default=None, help="Folder that `run --tuning lora` wrote.")
    merge.add_argument("--ties", type=text, default=None, help="Instead of --adapter: adapters, separated by commas.")
    merge.add_argument("--density", type=Density, default=0.8, help="With --ties: share of each update kept.")
    merge.add_argument("--weights", type=text, default=None, help="With --ties: a factor for each, as 1,0.5 (all 1).")
    merge.add_argument("--rank", type=PositiveInt | None, default=None, help="With --ties: write an adapter, rounded.")
    merge.add_argument("--output", type=str, required=True, help="Folder for the merged model or adapter.")
    merge.add_argument("--model", type=text, default=None, help="The adapter's model, if not the one it names.")
    merge.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="Of the saved weights.")


def _merge(options: dict[str, Any]) -> None:
    from lume_unlearn.training.merge import merge

    adapter, ties, weights = (options.pop(name) for name in ("adapter", "ties", "weights"))
    if (adapter is None) == (ties is None):
        raise ConfigError("name one adapter by --adapter, or several by --ties A,B")
    if adapter is not None and (weights or options["rank"]):
        raise ConfigError("--weights, --rank: only with --ties")
    try:
        factors = [float(part) for part in weights.split(",")] if weights else None
    except ValueError as error:
        raise ConfigError(f"--weights {weights}: give numbers separated by commas, as 1,0.5") from error
    names = [name.strip() for name in ties.split(",")] if ties else [adapter]
    if ties and (len(names) < 2 or len(factors or names) != len(names)):
        raise ConfigError(f"--ties {ties}: name two or more adapters, and by --weights none or a number for each")
    merge(names, weights=factors, **options)
    print(f"Written to {options['output']}.")


def _methods(options: dict[str, Any]) -> None:
    lines = markdown() if options["markdown"] else listing([path.stem for path in RECIPES.glob("*.yaml")])
    print(*lines, sep="\n")


def _alternatives(options: dict[str, Any]) -> None:
    from lume_unlearn.evaluation.alternatives import write_alternatives

    print(f"Written to {write_alternatives(AlternativesConfig(**options))}.")


def _audit(options: dict[str, Any]) -> int:
    config = AuditConfig(**options)
    status = 0
    if config.before:
        from lume_unlearn.evaluation.verdict import verdict

        lines, status = verdict(config)
        print(lines)
    else:
        from lume_unlearn.evaluation.audit import audit, audit_table

        print(audit_table(audit(config)))
    print(f"Written to {config.output}.")
    return status


def _report_options(report: ArgumentParser) -> None:
    report.add_argument("results", type=str, nargs="+", help="results_*.json, or folders that hold them.")
    report.add_argument("--output", type=str, default="report.html", help="Page to write; pictures go beside it.")
    report.add_argument("--title", type=str, default="Unlearning report", help="Heading of the page.")
    report.add_argument("--show_pii", action="store_true", help="Do not redact personal data.")
    own = "Results of the retrained model; the page then begins with the distance of each model to it."
    report.add_argument("--retrained", type=str | None, default=None, help=own)
    own = "With --retrained: audit.json of the models, for the distance after the hardest audit."
    report.add_argument("--audits", type=str, nargs="+", default=[], help=own)


def _report(options: dict[str, Any]) -> None:
    from lume_unlearn.report.page import write_report

    if options["audits"] and not options["retrained"]:
        raise ConfigError("--audits: only with --retrained, which names the results to compare with")
    options["output"] = Path(options["output"])
    page, *pictures = write_report(**options)
    print(f"Written to {page} ({len(pictures)} pictures also in {page.stem}_files).")


def _card_options(card: ArgumentParser) -> None:
    card.add_argument("--model_dir", type=str, required=True, help="Folder that `run` wrote.")
    card.add_argument("--results", type=str, nargs="+", required=True, help="Its results_*.json, or their folder.")
    card.add_argument("--push_to_hub", type=str | None, default=None, help="Upload the folder to this hub repository.")


def _card(options: dict[str, Any]) -> None:
    from lume_unlearn.report.card import push_to_hub, write_card

    folder, repository = Path(options["model_dir"]), options["push_to_hub"]
    print(f"Written to {write_card(folder, options['results'])}.")
    if repository:
        print(f"Uploaded to {push_to_hub(folder, repository)}.")


def _quickstart_options(quickstart: ArgumentParser) -> None:
    quickstart.add_argument("--output", type=str, default="lume-quickstart", help="Folder for all results.")
    quickstart.add_argument("--seed", type=int, default=0, help="Seed of the data, the models and the runs.")


def _quickstart(options: dict[str, Any]) -> None:
    from lume_unlearn.quickstart.run import quickstart

    quickstart(Path(options["output"]), options["seed"])


COMMANDS: dict[str, tuple[str, Callable[[ArgumentParser], Any], Callable[[dict[str, Any]], int | None]]] = {
    "run": ("Unlearn the forget rows from a model.", _run_options, _run),
    "finetune": (
        "Make a model memorise rows: a target model, or its retrained twin.",
        lambda parser: parser.add_class_arguments(FinetuneConfig, as_group=False),
        _finetune,
    ),
    "distill": (
        "Make an unlearned model robust: add noise to its weights and distil it into the noised copy (UNDO).",
        lambda parser: parser.add_class_arguments(DistillConfig, as_group=False),
        _distill,
    ),
    "compare": (
        "Tune several methods with the same budget, and compare them in one table.",
        lambda parser: parser.add_class_arguments(CompareConfig, as_group=False),
        _compare,
    ),
    "merge": ("Fold a LoRA adapter into its model, or merge several LoRA adapters with TIES.", _merge_options, _merge),
    "methods": (
        "List the methods.",
        lambda methods: methods.add_argument("--markdown", action="store_true", help="As the table in the README."),
        _methods,
    ),
    "path": (
        "Print the folder of recipes/ and accelerate/ (configurations of accelerate).",
        lambda path: None,
        lambda options: print(RECIPES.parent),
    ),
    "quickstart": (
        "Run every step once, offline, on a miniature LUME and a tiny model, in about a minute.",
        _quickstart_options,
        _quickstart,
    ),
    "alternatives": (
        "Sample other answers to the forget rows from a model, for altpo and dpo.",
        lambda parser: parser.add_class_arguments(AlternativesConfig, as_group=False),
        _alternatives,
    ),
    "audit": (
        "Test whether forgetting holds: quantisation, relearning, repair, paraphrases, sampling.",
        lambda parser: parser.add_class_arguments(AuditConfig, as_group=False),
        _audit,
    ),
    "report": ("Turn results of lm_eval into a page with pictures.", _report_options, _report),
    "card": ("Write a model card with the scores into the folder of a run.", _card_options, _card),
}
"""Each command: its help, the function that adds its options, and the function that runs with them."""
