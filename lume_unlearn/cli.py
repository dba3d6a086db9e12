"""The command `lume-unlearn`."""

import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
import yaml

from lume_tasks.data.files import read_text
from lume_tasks.errors import DataError, visible

RECIPES = Path(__file__).parent / "recipes"


class ArgumentParser(jsonargparse.ArgumentParser):
    """One whose messages cannot steer the terminal: keys and values of a recipe stand in them."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print usage and message, and leave with 2."""
        parser = getattr(ex, "subcommand_parser", None) or self
        known = [option.lstrip("-") for option in parser._option_string_actions]
        super().error(visible(message + near_options(message, known)), ex)


def near_options(message: str, known: Sequence[str]) -> str:
    """What to add to a message about unknown options: the known ones that they are near to."""
    if not re.search("unrecognized arguments|does not accept option", message):
        return ""
    given = [name.replace("-", "_") for name in re.findall(r"(?:--|')([\w-]+)", message)]
    near = dict.fromkeys(option for name in given for option in get_close_matches(name, known, 1))
    return f"; did you mean {' and '.join(f'--{option}' for option in near)}?" if near else ""


def _printable(record: logging.LogRecord) -> bool:
    record.msg, record.args = visible(record.getMessage()), None
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it worked, 1 with a message on stderr when the user's input cannot work."""
    try:
        try:
            return _main(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # `lume-unlearn methods | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _main(argv: Sequence[str] | None) -> int:
    from lume_unlearn.config import ConfigError
    from lume_unlearn.training.signals import Interrupted

    for name in ("lume_unlearn", "lume_tasks"):
        logging.getLogger(name).addFilter(_printable)
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        parsed = parser().parse_args(_recipe_first(argv))
        options = parsed[parsed.command].as_dict()
        options.pop("config", None)
        COMMANDS[parsed.command](options)
    except (ConfigError, DataError) as error:
        return _say(argv, str(error), 1)
    except Interrupted as error:
        return _say(argv, str(error), error.code)
    except KeyboardInterrupt:
        return _say(argv, "stopped by SIGINT, without saving; a run goes on from its last checkpoint by --resume", 130)
    return 0


def _say(argv: Sequence[str], message: str, code: int) -> int:
    print(visible(f"lume-unlearn {argv[0]}: {message}"), file=sys.stderr)
    return code


def parser() -> ArgumentParser:
    """The command line; options of `run` are the fields of `RunConfig`, those of `audit` of `AuditConfig`."""
    from lume_unlearn.config import RunConfig
    from lume_unlearn.methods.table import parameters

    title = "Machine unlearning of language models, scored by lm-eval."
    # No abbreviations: --conf would get by the look at recipes. Newer jsonargparse has subcommands follow the top.
    top = ArgumentParser(prog="lume-unlearn", description=title, allow_abbrev=False)
    commands = top.add_subcommands(dest="command")

    run = ArgumentParser(description="Unlearn the forget rows from a model.", allow_abbrev=False)
    run.add_argument("--config", action="config", help="A recipe: a YAML file, or a shipped one's name (sugd_last8).")
    run.add_class_arguments(RunConfig, as_group=False, skip={"params"})
    _allow_bare_switches(run)
    for name, text in parameters().items():
        run.add_argument(f"--{name}", type=float | None, default=None, help=text)
    commands.add_subcommand("run", run, help="unlearn the forget rows from a model")

    _add_merge(commands)

    methods = ArgumentParser(description="List the methods.")
    methods.add_argument("--markdown", action="store_true", help="As the table in the README.")
    commands.add_subcommand("methods", methods, help="list the methods")

    path = ArgumentParser(description="Print the folder that holds recipes/ and accelerate/ (its configurations).")
    commands.add_subcommand("path", path, help="print the folder of the recipes and of accelerate's configurations")

    quickstart = ArgumentParser(description="Everything once, offline, on a miniature LUME and a tiny model.")
    quickstart.add_argument("--output", type=str, default="lume-quickstart", help="Folder for all that it makes.")
    quickstart.add_argument("--seed", type=int, default=0, help="Seed of the models and runs; the rows stay.")
    commands.add_subcommand("quickstart", quickstart, help="everything once, offline, in about a minute")

    _add_configured(commands)
    _add_results(commands)
    return top


def _allow_bare_switches(parser: ArgumentParser) -> None:
    """Let ``--resume`` stand for ``--resume true``, and so with every option that is true or false."""
    for action in parser._actions:
        if getattr(action, "_typehint", None) is bool:
            action.nargs, action.const = "?", True


def _add_merge(commands: Any) -> None:
    """The command `merge`."""
    title = "Fold a LoRA adapter into its model, or merge several LoRA adapters with TIES."
    merge = ArgumentParser(description=title)
    merge.add_argument("--adapter", type=str | None, default=None, help="Folder that `run --tuning lora` wrote.")
    merge.add_argument(
        "--ties", type=str | None, default=None, help="Instead of --adapter: folders of adapters, with commas between."
    )
    merge.add_argument(
        "--density", type=float | None, default=None, help="With --ties: share of each update to keep (default 0.8)."
    )
    merge.add_argument(
        "--weights", type=str | None, default=None, help="With --ties: factor of each adapter, as 1,0.5 (default 1)."
    )
    merge.add_argument(
        "--rank", type=int | None, default=None, help="With --ties: save an adapter of this rank, not a whole model."
    )
    merge.add_argument("--output", type=str, required=True, help="Folder for the merged model or adapter.")
    merge.add_argument("--model", type=str | None, default=None, help="The adapter's model, if not the one it names.")
    merge.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="Of the saved weights.")
    commands.add_subcommand("merge", merge, help=title[0].lower() + title[1:-1])


def _add_configured(commands: Any) -> None:
    """Commands whose options are the fields of a class."""
    from lume_unlearn.data.alternatives import AlternativesConfig
    from lume_unlearn.evaluation.audit import AuditConfig

    for name, options, title in (
        ("alternatives", AlternativesConfig, "Have a model write other answers to the forget rows, for altpo and dpo."),
        ("audit", AuditConfig, "Does forgetting hold? With fewer bits, relearning, other words, sampling."),
    ):
        command = ArgumentParser(description=title)
        command.add_class_arguments(options, as_group=False)
        _allow_bare_switches(command)
        commands.add_subcommand(name, command, help=title[0].lower() + title[1:-1])


def _add_results(commands: Any) -> None:
    """Commands that take results of lm_eval."""
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


def _recipe_first(argv: Sequence[str]) -> list[str]:
    """Put ``--config RECIPE`` before the other options, which it would undo from behind, and find shipped recipes.

    Raises:
        ConfigError: there is no such recipe, or it is not harmless.
    """
    from lume_unlearn.config import ConfigError

    command, recipes, others = list(argv[:1]), list[str](), list[str]()
    rest = iter(argv[1:])
    for option in rest:
        name, equals, value = option.partition("=")
        if name != "--config" or not (value := value if equals else next(rest, "")):
            others.append(option)
        else:
            shipped = RECIPES / f"{value}.yaml"
            path = shipped if shipped.is_file() and not Path(value).is_file() else Path(value)
            if not path.exists():
                raise ConfigError(
                    f"--config {value}: neither a file nor a shipped recipe (`lume-unlearn methods` lists them); "
                    "the defaults of a method need none: --method M --tuning T"
                )
            _require_harmless(path)
            recipes.append(f"--config={path}")
    return [*command, *recipes, *others]


def _require_harmless(recipe: Path) -> None:
    """A recipe may come from anybody: where to write and to send, and whose code to run, the command line says.

    Raises:
        ConfigError: the recipe cannot be read, writes elsewhere than below the current folder, sends data away, or runs
            code.
    """
    from lume_unlearn.config import ConfigError

    try:
        text = read_text(recipe)
        options = yaml.safe_load(text)
        json.dumps(options, default=str)  # fails where something contains itself
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {recipe}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(options, dict):
        raise ConfigError(f"--config {recipe}: must hold lines of OPTION: VALUE")
    node = yaml.compose(text)
    names = [str(key.value) for key, _ in node.value] if node else []
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"--config {recipe}: {', '.join(twice)} stands there more than once")
    output = Path(str(options.get("output", "")))
    if output.is_absolute() or ".." in output.parts:
        raise ConfigError(f"--config {recipe}: a recipe may not write to {output}; give --output on the command line")
    if "config" in options:
        raise ConfigError(f"--config {recipe}: a recipe may not name another one")
    if options.get("trust_remote_code"):
        raise ConfigError(f"--config {recipe}: a recipe may not set trust_remote_code; give it on the command line")
    if options.get("report_to", "none") != "none":
        raise ConfigError(f"--config {recipe}: a recipe may not set report_to; give it on the command line")
    if nested := [str(name) or '""' for name, value in options.items() if isinstance(value, (dict, list))]:
        raise ConfigError(f"--config {recipe}: {', '.join(nested)}: an option has one value, no list and no keys")


def _run_config(options: dict[str, Any]) -> Any:
    """The options of `run`, with the methods' parameters gathered."""
    from lume_unlearn.config import RunConfig
    from lume_unlearn.methods.table import parameters

    params = {name: value for name in parameters() if (value := options.pop(name)) is not None}
    return RunConfig(**options, params=params)


def _run(options: dict[str, Any]) -> None:
    from accelerate import PartialState

    from lume_unlearn.evaluation.callback import best_line
    from lume_unlearn.training.run import run

    config = _run_config(options)
    output = run(config)
    if PartialState().is_main_process:
        print(f"Written to {output}. Score it with:\n  {scoring_command(config)}")
        if line := best_line(output):
            print(line)


def scoring_command(config: Any) -> str:
    """The command that scores what a run wrote, on the rows of the run, with the tasks that these have data for."""
    from lume_unlearn.data.sources import named_directory
    from lume_unlearn.evaluation.harness import ROW_TASKS, tasks_for

    lora = config.tuning == "lora"
    model = f"pretrained={config.model},peft={config.output}" if lora else f"pretrained={config.output}"
    model += ",trust_remote_code=True" if config.trust_remote_code else ""
    tasks, metadata = "lume", {}
    if config.forget:  # the tasks read a directory
        metadata["lume_data_dir"] = "FOLDER OF forget.jsonl AND retain.jsonl"
    else:
        found = tasks_for(named_directory(config.data), config.split)
        # With all of these the final score is possible: the harness finds MMLU, if need be on the hub.
        tasks = "lume" if {*ROW_TASKS, "lume_mia"} <= set(found) else ",".join(found)
    if config.data:
        metadata["lume_data_dir"] = config.data
    if config.split != "all":
        metadata["lume_split"] = config.split
    words = ["lm_eval", "--model", "lume-hf", "--model_args", model, "--tasks", tasks, "--batch_size", "64"]
    words += ["--metadata", json.dumps(metadata, ensure_ascii=False)] if metadata else []
    return shlex.join([*words, "--output_path", "results", "--log_samples"])


def _merge(options: dict[str, Any]) -> None:
    from lume_unlearn.config import ConfigError
    from lume_unlearn.training.merge import merge, merge_ties

    adapter, ties = options.pop("adapter"), options.pop("ties")
    only_ties = {name: options.pop(name) for name in ("density", "weights", "rank")}
    given = {name: value for name, value in only_ties.items() if value is not None}
    if (adapter is None) == (ties is None):
        raise ConfigError("name one adapter by --adapter, or several by --ties A,B")
    if adapter is not None:
        if given:
            raise ConfigError(f"--{', --'.join(given)}: only with --ties")
        merge(adapter, **options)
    else:
        if "weights" in given:
            given["weights"] = _numbers("--weights", given["weights"])
        merge_ties([name.strip() for name in ties.split(",") if name.strip()], **options, **given)
    print(f"Written to {options['output']}.")


def _numbers(option: str, text: str) -> list[float]:
    from lume_unlearn.config import ConfigError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{option} {text}: give numbers with commas between them, as 1,0.5") from error


def _methods(options: dict[str, Any]) -> None:
    from lume_unlearn.methods.table import listing, markdown

    print(*(markdown() if options["markdown"] else listing([path.stem for path in RECIPES.glob("*.yaml")])), sep="\n")


def _path(options: dict[str, Any]) -> None:
    print(RECIPES.parent)


def _audit(options: dict[str, Any]) -> None:
    from lume_unlearn.evaluation.audit import AuditConfig, audit, audit_table

    config = AuditConfig(**options)
    print(audit_table(audit(config)))
    print(f"Written to {config.output}.")


def _alternatives(options: dict[str, Any]) -> None:
    from lume_unlearn.data.alternatives import AlternativesConfig, write_alternatives

    print(f"Written to {write_alternatives(AlternativesConfig(**options))}.")


def _report(options: dict[str, Any]) -> None:
    from lume_unlearn.report.page import write_report

    options["output"] = Path(options["output"])
    page, *pictures = write_report(**options)
    print(f"Written to {page} ({len(pictures)} pictures also in {page.stem}_files).")


def _card(options: dict[str, Any]) -> None:
    from lume_unlearn.report.card import push_to_hub, write_card

    folder = Path(options["model_dir"])
    print(f"Written to {write_card(folder, options['results'])}.")
    if options["push_to_hub"]:
        print(f"Uploaded to {push_to_hub(folder, options['push_to_hub'])}.")


def _quickstart(options: dict[str, Any]) -> None:
    from lume_unlearn.quickstart.run import quickstart

    quickstart(Path(options["output"]), options["seed"])


COMMANDS = {
    "run": _run,
    "alternatives": _alternatives,
    "merge": _merge,
    "methods": _methods,
    "path": _path,
    "audit": _audit,
    "report": _report,
    "card": _card,
    "quickstart": _quickstart,
}
