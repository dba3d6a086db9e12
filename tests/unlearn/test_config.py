"""Options and recipes: defaults, every fault at once, what wins over what."""

from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import yaml

from lume_unlearn import cli
from lume_unlearn.config import ConfigError, RunConfig
from lume_unlearn.methods import METHODS

RECIPES = sorted(cli.RECIPES.rglob("*.yaml"))


def config(**options: Any) -> RunConfig:
    return RunConfig(**({"model": "m", "output": "o", "method": "npo"} | options))


def parse(*argv: str) -> RunConfig:
    """What `lume-unlearn run` would run with."""
    options = cli.parser().parse_args(cli._recipe_first(["run", "--model", "m", "--output", "o", *argv])).run.as_dict()
    options.pop("config")
    return RunConfig(**options)


def test_the_defaults_are_those_of_the_benchmarks_baselines() -> None:
    assert (config().epochs, config().batch_size, config().loss_on) == (10, 32, "answer")
    assert config(tuning="lora").rate == 1e-4
    assert config(tuning="full").rate == 1e-5
    assert config(tuning="full", learning_rate=0.5).rate == 0.5


@pytest.mark.parametrize(("method", "term"), [("ga", "none"), ("gd", "nll"), ("kl", "kl"), ("npo", "nll")])
def test_each_method_has_its_own_retain_term_until_an_option_names_another(method: str, term: str) -> None:
    assert config(method=method).terms == term
    assert config(method=method).needs_retain == (term != "none")
    assert config(method=method, retain_term="kl").terms == "kl"
    assert not config(method=method, retain_term="none").needs_retain


BAD = {
    "method": "nop",
    "tuning": "loar",
    "split": "tset",
    "retain_term": "l2",
    "loss_on": "prompt",
    "precision": "fp16",
    "epochs": 0,
    "batch_size": -1,
    "micro_batch_size": 0,
    "beta": 0.0,
    "lora_rank": 0,
    "lora_alpha": 0,
    "logging_steps": 0,
    "forget_weight": -1.0,
    "retain_weight": nan,
    "weight_decay": -0.1,
    "max_grad_norm": inf,
    "save_steps": -5,
    "save_total_limit": -1,
    "seed": -1,
    "learning_rate": 0.0,
    "warmup": 1.0,
    "lora_dropout": 1.0,
    "max_length": 1,
}


def test_every_bad_option_is_named_in_one_error() -> None:
    with pytest.raises(ConfigError) as caught:
        config(**BAD)
    lines = str(caught.value).splitlines()
    assert sorted(line.split()[0] for line in lines) == sorted(f"--{name}" for name in BAD)
    assert "--method 'nop': choose one of ga, gd, kl, npo" in lines


@pytest.mark.parametrize("name", BAD)
def test_each_bad_option_is_an_error_of_its_own(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^--{name} "):
        config(**{name: BAD[name]})


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"forget": "f"}, "--forget: give --retain"),
        ({"retain": "r"}, "--retain: give --forget"),
        ({"retain": "r", "method": "ga"}, "--retain: give --forget"),
        ({"forget": "f", "retain": "r", "data": "d"}, "--data and --forget"),
        ({"forget": "f", "retain": "r", "split": "train"}, "--split train"),
    ],
)
def test_contradictions_in_where_the_rows_come_from(options: dict[str, str], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        config(**options)


def test_a_method_without_retain_term_takes_forget_rows_alone() -> None:
    assert config(method="ga", forget="f").retain is None
    assert config(method="npo", retain_term="none", forget="f").retain is None


def test_there_is_one_recipe_per_method_and_tuning() -> None:
    assert [path.stem for path in RECIPES] == sorted(
        f"{method}_{tuning}" for method in METHODS for tuning in ("lora", "full")
    )


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_spells_out_the_defaults_of_its_method(path: Path) -> None:
    method, tuning = path.stem.split("_")
    by_path, by_name = parse("--config", str(path)), parse(f"--config={path.stem}")
    plain: Any = config(method=method, tuning=tuning)
    assert by_path == by_name
    # Equal to the plain method in all that the recipe leaves open, and in what it spells out.
    spelled = {"learning_rate": plain.rate, "retain_term": plain.terms}
    assert by_path == config(method=method, tuning=tuning, **spelled)
    assert set(spelled) < set(yaml.safe_load(path.read_text()))


def test_options_win_over_the_recipe_wherever_they_stand() -> None:
    before = parse("--epochs", "3", "--config", "npo_lora", "--lora_rank=4")
    after = parse("--config", "npo_lora", "--epochs", "3", "--lora_rank", "4")
    assert before == after
    assert (before.epochs, before.lora_rank, before.batch_size) == (3, 4, 32)


def test_a_file_goes_before_a_shipped_recipe_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gd_full").mkdir()  # an output folder, say
    assert parse("--config", "gd_full").method == "gd"
    (tmp_path / "npo_lora").write_text("method: ga\n")
    assert parse("--config", "npo_lora").method == "ga"


@pytest.mark.parametrize(
    ("text", "named"),
    [("method: npo\nbetta: 0.2\n", "betta"), ("method: npo\nepochs: many\n", "epochs"), ("tuning: loar\n", "tuning")],
)
def test_what_is_wrong_in_a_recipe_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, named: str
) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(SystemExit) as caught:
        parse("--config", str(tmp_path / "recipe.yaml"))
    assert caught.value.code == 2
    assert named in capsys.readouterr().err.partition("error:")[2]


def test_print_config_gives_a_recipe_that_reads_back_as_the_same_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", "--config", "kl_full", "--epochs", "3", "--seed", "7", "--print_config"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert "kl_full" not in printed  # the recipe is resolved, not referred to
    (tmp_path / "mine.yaml").write_text(printed)
    assert parse("--config", str(tmp_path / "mine.yaml")) == parse(
        "--config", "kl_full", "--epochs", "3", "--seed", "7"
    )
