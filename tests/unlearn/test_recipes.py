"""Recipes: which are shipped, which options win, and what a recipe may not do."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from lume_unlearn.cli import run
from lume_unlearn.cli.parsing import parse
from lume_unlearn.cli.training import arguments, take
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.registry import METHODS, method_of
from lume_unlearn.methods.table import parameters
from lume_unlearn.recipes import FOLDER
from lume_unlearn.training import run as training
from lume_unlearn.training.arguments import UnlearningArguments

SHIPPED = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def options(*argv: str) -> dict[str, Any]:
    """What `lume-unlearn run` would run with."""
    return parse("run", run, ["--model", "m", "--output", "o", *argv])


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_is_a_run_of_the_method_in_its_name(name, command):
    found = options("--config", name)
    assert name.rpartition("_")[0] == found["method"]  # `lume-unlearn methods` lists it with its method
    method_of(found["method"], **take(found, parameters()))
    arguments(found)
    assert name in command("methods")[1]


def test_the_printed_config_is_a_recipe_of_the_same_run(recipe, command):
    words = ["--config", "sugd_lora", "--num_train_epochs", "3", "--seed", "7", "--fsdp_config", '{"version": 2}']
    code, printed, _ = command("run", *words, "--trust_remote_code", "--print_config")
    assert code == 0
    assert yaml.safe_load(printed).keys().isdisjoint({"model", "output", "config", "trust_remote_code"})
    recipe.write_text(printed)
    assert options("--config", str(recipe)) == options(*words)


def test_each_parameter_of_a_method_is_an_option():
    for name, method in METHODS.items():
        given = {key: getattr(method(), key) for key in method.params()}
        found = options("--method", name, *(f"--{key}={value}" for key, value in given.items()))
        assert method_of(found["method"], **take(found, parameters())) == method()
        assert not found.keys() - {"model", "output", "method"}


def test_no_parameter_is_named_as_another_option_of_run():
    own = {name for method in METHODS.values() for name in method.params()}
    assert not own & {*UnlearningArguments.__dataclass_fields__, *inspect.signature(training.run).parameters}


def test_options_win_over_the_recipe_wherever_they_are():
    before = options("--num_train_epochs", "3", "--config", "sugd_lora", "--lora_rank=4")
    after = options(f"--config={SHIPPED['sugd_lora']}", "--num_train_epochs", "3", "--lora_rank", "4")
    assert before == after
    assert (before["num_train_epochs"], before["lora_rank"], before["lora_alpha"]) == (3, 4, 64)


def test_null_in_a_recipe_is_the_default(recipe):
    recipe.write_text("loss_on: null\nchat: null\ntuning: null\nseed: null\nlora_rank: null\nbeta: null\n")
    assert options("--method", "npo", "--config", str(recipe)) == options("--method", "npo")


def test_a_file_wins_over_a_shipped_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rmu_mlp").mkdir()  # an output folder, say
    assert options("--config", "rmu_mlp")["method"] == "rmu"
    (tmp_path / "sugd_lora").write_text("method: ga\n")
    assert options("--config", "sugd_lora")["method"] == "ga"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("betta: 0.2", "--betta: no such option; did you mean --beta"),
        ("lora_rank: 0", "--lora_rank: Not of type PositiveInt: 0 does not conform to restriction v>0"),
        ("trust_remote_code: true", "a recipe may not set trust_remote_code; give it on the command line"),
        ("- method", "config .*: is no recipe; write one option a line"),
        ("method: [npo", "config .*: cannot be read; it must be YAML in UTF-8"),
        ("method: ga # \xfc", "config .*: cannot be read; it must be YAML in UTF-8"),
    ],
)
def test_a_recipe_that_may_not_be_used(text, fault, recipe):
    recipe.write_text(f"{text}\n", encoding="latin-1")
    with pytest.raises(ConfigError, match=fault) as caught:
        options("--method=ga", "--config", str(recipe))
    assert "\n" not in str(caught.value)


def test_trust_given_on_the_command_line_is_not_the_recipes(recipe):
    recipe.write_text("method: ga\ntrust_remote_code: true\n")
    assert options("--config", str(recipe), "--trust_remote_code")["trust_remote_code"] is True
