"""Recipes and the command line's options: what is shipped, what wins over what, what reads back."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from lume_unlearn import cli
from lume_unlearn.config import ConfigError, RunConfig
from lume_unlearn.methods import METHODS

RECIPES = {path.stem: path for path in sorted(cli.RECIPES.rglob("*.yaml"))}
PLAIN = {f"{method}_{tuning}": (method, tuning) for method in METHODS for tuning in ("lora", "full")}
LORA = ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets")
AILS = {"lora_rank": 16, "lora_targets": "q_proj,v_proj,up_proj,down_proj"}
# LoRA settings of the papers, where they are not this package's.
PAPERS: dict[str, dict[str, Any]] = {
    "undial": {"lora_rank": 8, "lora_alpha": 16},
    "token-npo": {"lora_rank": 5, "lora_alpha": 5},
    "agad": AILS | {"lora_alpha": 32},
    "sugd": AILS | {"lora_alpha": 64},
}


@pytest.fixture(scope="module", autouse=True)
def one_parser() -> Iterator[None]:
    """Making the parser takes most of the time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cli, "parser", cache(cli.parser))
        yield


def needed(method: str) -> dict[str, str]:
    """What a recipe leaves to be named on the command line."""
    spec = METHODS[method]
    return {"alternatives": "f.jsonl"} if spec.alternative == "file" else {}


def parse(*argv: str) -> RunConfig:
    """What `lume-unlearn run` would run with."""
    options = cli.parser().parse_args(cli._recipe_first(["run", "--model", "m", "--output", "o", *argv])).run.as_dict()
    options.pop("config")
    config = cli._run_config(options)
    assert isinstance(config, RunConfig)
    return config


def with_needs(recipe: str) -> list[str]:
    """The recipe, and what it leaves open, as options."""
    method = yaml.safe_load(RECIPES[recipe].read_text())["method"]
    return ["--config", recipe, *(f"--{name}={value}" for name, value in needed(method).items())]


def test_there_is_a_recipe_per_method_and_tuning_and_the_published_ones() -> None:
    others = {"sugd_last8", "selective_mlp", "rmu_mlp", "npo_ties1", "npo_ties2"}
    assert set(RECIPES) == set(PLAIN) | others


@pytest.mark.parametrize("name", PLAIN)
def test_a_recipe_spells_out_the_defaults_of_its_method(name: str) -> None:
    method, tuning = PLAIN[name]
    spec = METHODS[method]
    lora = PAPERS.get(method, {}) if tuning == "lora" else {}
    assert parse(*with_needs(name)) == RunConfig(
        model="m", output="o", method=method, tuning=tuning, **needed(method), **lora
    )
    written = yaml.safe_load(RECIPES[name].read_text())
    least = {"method", "tuning", "epochs", "batch_size", "learning_rate", *spec.params, *lora}
    assert set(written) >= least


PUBLISHED: dict[str, dict[str, Any]] = {
    "sugd_last8": {"method": "sugd", "tuning": "last:8", "learning_rate": 1e-5, "epochs": 7, "retain_weight": 0.5},
    "selective_mlp": {"method": "selective", "tuning": r"modules:layers\.[0-5]\.mlp", "weight_decay": 0.0},
    "rmu_mlp": {"method": "rmu", "tuning": r"modules:layers\.[567]\.mlp\.down_proj", "retain_weight": 1200},
    # weights of NPO, NLL and KL: 0.4, 0.2, 0.4 and 0.3, 0.4, 0.3
    "npo_ties1": {"forget_weight": 0.4, "retain_weight": 0.2, "kl_weight": 2, "batch_size": 4},
    "npo_ties2": {"forget_weight": 0.3, "retain_weight": 0.4, "kl_weight": 0.75, "batch_size": 8},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration_is_its_method_with_these_settings(name: str) -> None:
    own = dict(PUBLISHED[name])
    if name.startswith("npo_ties"):
        own |= {"method": "npo", "tuning": "lora", "retain_term": "nll+kl", "epochs": 5, "warmup": 0.2}
        own |= {"lora_rank": 32, "lora_alpha": 32, "lora_dropout": 0.05, "learning_rate": 1e-4}
    assert parse("--config", name) == RunConfig(model="m", output="o", **own)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_begins_with_its_command(name: str) -> None:
    first = RECIPES[name].read_text().splitlines()[0]
    method = yaml.safe_load(RECIPES[name].read_text())["method"]
    assert first.startswith(f"# lume-unlearn run --config {name} --model MODEL --output OUTPUT")
    for option in needed(method):
        assert f" --{option} " in first
    assert first.count("--") == 3 + len(needed(method))


@pytest.mark.parametrize("name", RECIPES)
def test_print_config_gives_a_recipe_that_reads_back_as_the_same_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*with_needs(name), "--epochs", "3", "--seed", "7"]
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", *options, "--print_config"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert name not in printed  # the recipe is resolved, not referred to
    (tmp_path / "mine.yaml").write_text(printed)
    assert parse("--config", str(tmp_path / "mine.yaml")) == parse(*options)


@pytest.mark.parametrize("method", METHODS)
def test_each_parameter_is_an_option(method: str) -> None:
    params = METHODS[method].params
    values = {name: float(param.default + 1 if param.default >= 1 else 0.5) for name, param in params.items()}
    options = [f"--{name}={value}" for name, value in (values | needed(method)).items()]
    assert parse("--method", method, *options).params == values
    assert parse("--method", method, *(f"--{n}={v}" for n, v in needed(method).items())).params == {
        name: param.default for name, param in params.items()
    }


def test_by_path_or_by_name() -> None:
    assert parse("--config", str(RECIPES["kl_full"])) == parse("--config=kl_full") == parse("--config", "kl_full")


def test_options_win_over_the_recipe_wherever_they_stand() -> None:
    before = parse("--epochs", "3", "--beta", "0.7", "--config", "npo_lora", "--lora_rank=4")
    after = parse("--config", "npo_lora", "--epochs", "3", "--lora_rank", "4", "--beta=0.7")
    assert before == after
    assert (before.epochs, before.lora_rank, before.batch_size, before.params) == (3, 4, 32, {"beta": 0.7})


def test_another_tuning_than_the_recipes_keeps_the_recipes_learning_rate() -> None:
    """What a recipe spells out is asked for."""
    assert parse("--config", "gd_full", "--tuning", "lora").learning_rate == 1e-5


def test_a_file_goes_before_a_shipped_recipe_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gd_full").mkdir()  # an output folder, say
    assert parse("--config", "gd_full").method == "gd"
    (tmp_path / "npo_lora").write_text("method: ga\n")
    assert parse("--config", "npo_lora").method == "ga"


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
