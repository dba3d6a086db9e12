"""The methods in words: the README and the command `methods` say what the registry says."""

from dataclasses import fields
from pathlib import Path

import pytest

from lume_unlearn.cli import RECIPES, main
from lume_unlearn.config import RunConfig
from lume_unlearn.methods import table
from lume_unlearn.methods.registry import METHODS
from lume_unlearn.methods.table import needs, parameters

README = Path(table.__file__).with_name("README.md")


def test_the_readme_has_the_table_of_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--markdown"]) == 0
    printed = capsys.readouterr().out
    assert [line.split("`")[1] for line in printed.splitlines()[2:]] == list(METHODS)
    assert {line.replace(r"\|", "").count("|") for line in printed.splitlines()} == {7}  # "|" in a formula is escaped
    assert printed in README.read_text(encoding="utf-8"), "put the output of `lume-unlearn methods --markdown` in"


def test_the_command_prints_each_method_with_its_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    blocks = capsys.readouterr().out.replace("\n            ", " | ").splitlines()
    for (name, method), block in zip(METHODS.items(), blocks, strict=True):
        assert block.startswith(f"{name:<12}{method.title}: {method.citation} | loss on forget rows: {method.formula}")
        recipes = block.rpartition("; recipes: ")[2].split(", ")
        assert recipes == ["none"] or all((RECIPES / f"{recipe}.yaml").is_file() for recipe in recipes)
    assert sum(block.endswith(" recipes: sugd_last8, sugd_lora") for block in blocks) == 1


def test_what_a_method_needs() -> None:
    expected = {
        "gd": "nothing",
        "npo": "reference NLL of forget rows, once",
        "kl": "reference model on retain rows, each step",
        "undial": "reference model on forget rows, each step",
        "idk": "refusals (built in)",
        "dpo": "reference NLL of forget and alternative rows, once; alternatives",
    }
    assert {name: needs(METHODS[name]) for name in expected} == expected


def test_a_parameter_is_one_option_for_all_methods_that_have_it() -> None:
    texts = {(name, param.help) for method in METHODS.values() for name, param in method.params.items()}
    assert sorted(parameters()) == sorted(name for name, _ in texts), "one name, several texts"
    assert parameters()["beta"].startswith("Strength of the method: see its formula (default: npo 0.1, token-npo 0.5,")
    assert not parameters().keys() & {field.name for field in fields(RunConfig)}, "named as an option of run"
