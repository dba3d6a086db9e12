"""Recipes and the methods in words: which are shipped, which options win, and what a recipe may not do."""

from dataclasses import fields
from pathlib import Path

import pytest

from lume_unlearn import cli
from lume_unlearn.config import RunConfig
from lume_unlearn.methods import table
from lume_unlearn.methods.registry import METHODS
from lume_unlearn.methods.spec import Param
from lume_unlearn.methods.table import parameters
from tests.conftest import Command

SHIPPED = {path.stem: path for path in sorted(cli.RECIPES.glob("*.yaml"))}
PARSER = cli.parser()


def parse(*argv: str) -> RunConfig:
    """What `lume-unlearn run` would run with."""
    words = cli.with_recipes_first(["run", "--model", "m", "--output", "o", *argv])
    options = PARSER.parse_args(words).run.as_dict()
    options.pop("config")
    return cli.run_config(options)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_differs_from_its_methods_defaults(name: str) -> None:
    assert SHIPPED[name].read_text().startswith(f"# lume-unlearn run --config {name} --model MODEL --output OUTPUT")
    found = parse("--config", name)
    assert name.rpartition("_")[0] == found.method  # `lume-unlearn methods` lists it with its method
    assert found not in [parse("--method", found.method, "--tuning", tuning) for tuning in ("lora", "full")]


def test_the_printed_config_is_a_recipe_of_the_same_run(recipe: Path, command: Command) -> None:
    options = ["--config", "npo_ties1", "--epochs", "3", "--seed", "7"]
    code, printed, _ = command("run", *options, "--print_config")
    assert code == 0
    recipe.write_text(printed)
    assert parse("--config", str(recipe)) == parse(*options)


def other_value(param: Param) -> float | str:
    if isinstance(param.default, str):
        return param.choices[-1]
    return float(param.default + 1 if param.default >= 1 or param.whole else 0.5)


@pytest.mark.parametrize("method", METHODS)
def test_each_parameter_of_a_method_is_an_option(method: str) -> None:
    params = METHODS[method].params
    values = {name: other_value(param) for name, param in params.items()}
    needed = ["--alternatives=f.jsonl"] if METHODS[method].alternative == "file" else []
    assert parse("--method", method, *needed, *(f"--{name}={value}" for name, value in values.items())).params == values


def test_options_win_over_the_recipe_wherever_they_are() -> None:
    before = parse("--epochs", "3", "--beta", "0.7", "--config", "npo_ties1", "--lora_rank=4")
    after = parse(f"--config={SHIPPED['npo_ties1']}", "--epochs", "3", "--lora_rank", "4", "--beta=0.7")
    assert before == after
    assert (before.epochs, before.lora_rank, before.batch_size, before.params) == (3, 4, 4, {"beta": 0.7})


def test_a_file_wins_over_a_shipped_recipe_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rmu_mlp").mkdir()  # an output folder, say
    assert parse("--config", "rmu_mlp").method == "rmu"
    (tmp_path / "npo_ties1").write_text("method: ga\n")
    assert parse("--config", "npo_ties1").method == "ga"


@pytest.mark.parametrize(
    ("text", "status", "fault"),
    [
        ("betta: 0.2", 2, "betta"),
        ("epochs: 0", 2, "epochs"),
        ("trust_remote_code: true", 1, "a recipe may not set trust_remote_code; give it on the command line"),
        ("- method", 2, "Unexpected config"),
        ("method: [npo", 2, "config"),
    ],
)
def test_a_recipe_that_may_not_be_used(text: str, status: int, fault: str, recipe: Path, command: Command) -> None:
    recipe.write_text(f"{text}\n")
    code, _, err = command("run", "--model", "m", "--output", "o", "--method=ga", "--config", recipe)
    assert code == status
    assert fault in err


README = Path(table.__file__).with_name("README.md")


def test_the_readme_has_the_table_of_the_registry(command: Command) -> None:
    _, printed, _ = command("methods", "--markdown")
    assert [line.split("`")[1] for line in printed.splitlines()[2:]] == list(METHODS)
    assert {line.replace(r"\|", "").count("|") for line in printed.splitlines()} == {7}  # "|" in a formula is escaped
    assert printed in README.read_text(encoding="utf-8"), "put the output of `lume-unlearn methods --markdown` in"


def test_the_command_prints_each_method_with_its_recipes(command: Command) -> None:
    blocks = command("methods")[1].replace("\n            ", " | ").splitlines()
    for (name, method), block in zip(METHODS.items(), blocks, strict=True):
        assert block.startswith(f"{name:<12}{method.title}: {method.citation} | loss on forget rows: {method.formula}")
        recipes = block.rpartition("; recipes: ")[2].split(", ")
        assert recipes == ["none"] or all((cli.RECIPES / f"{recipe}.yaml").is_file() for recipe in recipes)
    assert sum(block.endswith(" recipes: sugd_last8, sugd_lora") for block in blocks) == 1


def test_a_parameter_is_one_option_for_all_methods_that_have_it() -> None:
    texts = {(name, param.help) for method in METHODS.values() for name, param in method.params.items()}
    assert sorted(parameters()) == sorted(name for name, _ in texts), "one name, several texts"
    assert parameters()["beta"][0].startswith(
        "Strength of the method: see its formula (default: npo 0.1, token-npo 0.5,"
    )
    assert not parameters().keys() & {field.name for field in fields(RunConfig)}, "named as an option of run"
