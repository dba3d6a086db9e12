"""Recipes and the command line's options: what is shipped, what wins over what, what reads back."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from lume_unlearn import cli
from lume_unlearn.config import ConfigError, RunConfig
from lume_unlearn.methods.registry import METHODS

RECIPES = {path.stem: path for path in sorted(cli.RECIPES.rglob("*.yaml"))}


@pytest.fixture(scope="module", autouse=True)
def one_parser() -> Iterator[None]:
    """Making the parser takes most of the time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cli, "parser", cache(cli.parser))
        yield


def parse(*argv: str) -> RunConfig:
    """What `lume-unlearn run` would run with."""
    options = cli.parser().parse_args(cli._recipe_first(["run", "--model", "m", "--output", "o", *argv])).run.as_dict()
    options.pop("config")
    config = cli._run_config(options)
    assert isinstance(config, RunConfig)
    return config


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipe_says_more_than_its_methods_defaults(name: str) -> None:
    assert RECIPES[name].read_text().startswith(f"# lume-unlearn run --config {name} --model MODEL --output OUTPUT")
    found = parse("--config", name)
    assert name.rpartition("_")[0] == found.method  # `lume-unlearn methods` lists it with its method
    assert found not in [parse("--method", found.method, "--tuning", tuning) for tuning in ("lora", "full")]


def test_print_config_gives_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", "npo_ties1", "--epochs", "3", "--seed", "7"]
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", *options, "--print_config"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert "npo_ties1" not in printed  # the recipe is resolved, not referred to
    (tmp_path / "mine.yaml").write_text(printed)
    assert parse("--config", str(tmp_path / "mine.yaml")) == parse(*options)


@pytest.mark.parametrize("method", METHODS)
def test_each_parameter_is_an_option(method: str) -> None:
    params = METHODS[method].params
    values = {name: float(param.default + 1 if param.default >= 1 else 0.5) for name, param in params.items()}
    needed = ["--alternatives=f.jsonl"] if METHODS[method].alternative == "file" else []
    options = [f"--{name}={value}" for name, value in values.items()]
    assert parse("--method", method, *needed, *options).params == values
    assert parse("--method", method, *needed).params == {name: param.default for name, param in params.items()}


def test_by_path_or_by_name() -> None:
    assert parse("--config", str(RECIPES["rmu_mlp"])) == parse("--config=rmu_mlp") == parse("--config", "rmu_mlp")


def test_options_win_over_the_recipe_wherever_they_stand() -> None:
    before = parse("--epochs", "3", "--beta", "0.7", "--config", "npo_ties1", "--lora_rank=4")
    after = parse("--config", "npo_ties1", "--epochs", "3", "--lora_rank", "4", "--beta=0.7")
    assert before == after
    assert (before.epochs, before.lora_rank, before.batch_size, before.params) == (3, 4, 4, {"beta": 0.7})


def test_a_file_goes_before_a_shipped_recipe_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rmu_mlp").mkdir()  # an output folder, say
    assert parse("--config", "rmu_mlp").method == "rmu"
    (tmp_path / "npo_ties1").write_text("method: ga\n")
    assert parse("--config", "npo_ties1").method == "ga"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("method: npo\nbetta: 0.2\n", "betta"),
        ("method: npo\nepochs: many\n", "epochs"),
        ("method: npo\nbeta: many\n", "beta"),
        ("method: npo\nretain_term: l2\n", "retain_term"),
        ("method: npo\nparams: 3\n", "params"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, named: str
) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(SystemExit) as caught:
        parse("--config", str(tmp_path / "recipe.yaml"))
    assert caught.value.code == 2
    assert named in capsys.readouterr().err.partition("error:")[2]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("method: npo\noutput: /somewhere\n", "may not write to /somewhere"),
        ("method: npo\noutput: a/../../b\n", "may not write to a/../../b"),
        ("method: npo\ntrust_remote_code: true\n", "may not set trust_remote_code"),
        ("method: npo\nreport_to: wandb\n", "may not set report_to"),
        ("method: npo\nreport_to: [none, wandb]\n", "may not set report_to"),
        ("<<: {report_to: all}\nmethod: npo\n", "may not set report_to"),
        ("- method\n", "must hold lines of OPTION: VALUE"),
        ("", "must hold lines of OPTION: VALUE"),
        ("method: [npo\n", "cannot be read"),
        ("method: npo\nparams: {beta: 0.2}\n", "params: an option has one value, no list and no keys"),
    ],
)
def test_a_recipe_from_anybody_does_no_harm(text: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"^--config .*recipe\.yaml: .*{fault}"):
        parse("--config", str(tmp_path / "recipe.yaml"))


def test_a_recipe_is_looked_at_however_it_is_named(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("method: npo\ntrust_remote_code: true\n")
    (tmp_path / "outer.yaml").write_text(f"method: npo\nconfig: {recipe}\n")
    with pytest.raises(SystemExit):
        parse("--conf", str(recipe))
    with pytest.raises(ConfigError, match=r"outer\.yaml: a recipe may not name another one"):
        parse("--config", str(tmp_path / "outer.yaml"))
