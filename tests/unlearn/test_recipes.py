"""Recipes: which are shipped, which options win, and what a recipe may not do."""

from pathlib import Path

import pytest

from lume_unlearn import cli
from lume_unlearn.config import RunConfig
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.registry import METHODS

SHIPPED = {path.stem: path for path in sorted(cli.RECIPES.glob("*.yaml"))}
PARSER = cli.parser()


def parse(*argv: str) -> RunConfig:
    """What `lume-unlearn run` would run with."""
    words = cli.with_checked_recipes(["run", "--model", "m", "--output", "o", *argv])
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


def test_the_printed_config_is_a_recipe_of_the_same_run(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", "npo_ties1", "--epochs", "3", "--seed", "7"]
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", *options, "--print_config"])
    assert caught.value.code == 0
    recipe.write_text(capsys.readouterr().out)
    assert parse("--config", str(recipe)) == parse(*options)


@pytest.mark.parametrize("method", METHODS)
def test_each_parameter_of_a_method_is_an_option(method: str) -> None:
    params = METHODS[method].params
    values = {name: float(param.default + 1 if param.default >= 1 else 0.5) for name, param in params.items()}
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
    ("text", "named"),
    [
        ("betta: 0.2\n", "betta"),
        ("epochs: 0\n", "epochs"),
    ],
)
def test_a_wrong_option_in_a_recipe_is_named(
    recipe: Path, capsys: pytest.CaptureFixture[str], text: str, named: str
) -> None:
    recipe.write_text(f"method: npo\n{text}")
    with pytest.raises(SystemExit) as caught:
        parse("--config", str(recipe))
    assert caught.value.code == 2
    assert named in capsys.readouterr().err.partition("error:")[2]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("output: /somewhere\n", "may not write to /somewhere; give --output on the command line"),
        ("output: a/../../b\n", "may not write to a/../../b"),
        ("trust_remote_code: true\n", "may not set trust_remote_code"),
        ("report_to: wandb\n", "may not set report_to"),
        ('trust_remote_code: "true"\n', "may not set trust_remote_code"),
        ("config: other.yaml\n", "may not set config"),
        ("<<: {report_to: all}\n", "may not set report_to"),
        ("- method\n", "must hold lines of OPTION: VALUE"),
        ("", "must hold lines of OPTION: VALUE"),
        ("method: [npo\n", "cannot be read"),
        ("method: \udcff\n", "cannot be read: 'utf-8' codec"),
    ],
)
def test_a_recipe_that_may_not_be_used(text: str, fault: str, recipe: Path) -> None:
    recipe.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ConfigError, match=rf"^--config .*recipe\.yaml: .*{fault}"):
        parse("--config", str(recipe))


def test_a_recipe_cannot_be_named_by_an_abbreviation() -> None:
    with pytest.raises(SystemExit):
        parse("--conf", "rmu_mlp")
