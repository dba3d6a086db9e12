"""The methods in words: the README and the command say what the registry says."""

from dataclasses import fields
from pathlib import Path

import pytest

from lume_unlearn.cli import main
from lume_unlearn.config import RunConfig
from lume_unlearn.methods.registry import METHODS
from lume_unlearn.methods.table import markdown, needs, parameters

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_has_the_table_of_the_registry() -> None:
    table = "\n".join(markdown())
    assert table.count("\n") == len(METHODS) + 1
    assert table in README.read_text(encoding="utf-8"), "put the output of `lume-unlearn methods --markdown` in"


def test_every_cell_of_the_table_stays_one() -> None:
    assert {line.replace(r"\|", "").count("|") for line in markdown()} == {7}


def test_the_command_prints_each_method_with_its_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    for method in METHODS.values():
        assert method.citation in printed
    assert "recipes: sugd_last8, sugd_lora" in printed
    assert main(["methods", "--markdown"]) == 0
    assert capsys.readouterr().out == "\n".join(markdown()) + "\n"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gd", "nothing"),
        ("npo", "NLL before of forget rows, once"),
        ("kl", "model before, each step, retain rows"),
        ("undial", "model before, each step, forget rows"),
        ("idk", "refusals (built in)"),
        ("dpo", "NLL before of forget and alternative rows, once; alternatives"),
    ],
)
def test_what_a_method_needs(name: str, expected: str) -> None:
    assert needs(METHODS[name]) == expected


def test_a_parameter_names_its_default_in_each_method() -> None:
    beta = parameters()["beta"]
    assert beta.startswith("Strength of the method")
    assert "npo 0.1" in beta
    assert "simnpo 4.5" in beta
    assert set(parameters()) == {name for method in METHODS.values() for name in method.params}


def test_parameters_are_options_of_their_own() -> None:
    """A name is one option of the command line, for all methods that have it."""
    texts: dict[str, set[str]] = {}
    for method in METHODS.values():
        for name, param in method.params.items():
            texts.setdefault(name, set()).add(param.help)
    assert not texts.keys() & {field.name for field in fields(RunConfig)}, "named as an option of run"
    assert not [name for name, found in texts.items() if len(found) > 1], "one name, several texts"
