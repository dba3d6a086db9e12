"""Recipes and command lines of any content: a run begins, or one message names what is wrong."""

import contextlib
import io
import logging
import math
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from lume_tasks.errors import visible
from lume_unlearn.cli import main
from lume_unlearn.config import RunConfig
from lume_unlearn.methods.registry import METHODS
from tests.faults.fuzzing import examples

pytestmark = pytest.mark.faults

EXAMPLES = examples(50)
OPTIONS = [field.name for field in fields(RunConfig) if field.name != "params"]
PARAMETERS = sorted({name for method in METHODS.values() for name in method.params})
HOSTILE = [
    "npo",
    "lora",
    "last:x",
    "last:-1",
    "modules:(",
    "nan",
    "inf",
    "1e400",
    "-0",
    "0x10",
    "1_000",
    "../../x",
    "~/x",
]
HOSTILE += [",", "lume_score.", "[1,2]", "{a: 1}", "!!python/object/apply:os.system [x]", "&a *a", "\x00", "\x1b[31m"]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 3),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(HOSTILE),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from([*OPTIONS, *PARAMETERS, "params", "config", "command", "run", "__class__", "model.x", ""])
FILES = [b"", b"[", b"{", b"- a", b"method: npo\nmethod: gd", b"<<: {output: ../x}", b"a: &a [*a]", b"config: r.yaml"]
FILES += [
    b"\xff\xfem\x00",
    b"[" * 3000,
    b"a: " * 500,
    b"a: !!python/object/apply:os.system [x]",
    b"? [a]\n: b",
    b"\x00",
]


def attempt(folder: Path, *options: str) -> tuple[int, str, list[RunConfig]]:
    """(exit status, message, the run that would have begun) of `lume-unlearn run`."""
    errors, begun = io.StringIO(), list[RunConfig]()

    def run(config: RunConfig) -> Path:
        begun.append(config)
        return Path(config.output)

    where = ["--model", "m", "--output", str(folder / "out")]
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            with mock.patch("lume_unlearn.training.run.run", run):
                status = main(["run", *where, *options])
        except SystemExit as error:  # argparse's way
            status = int(error.code or 0)
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    assert not [char for char in errors.getvalue() if unicodedata.category(char) in hidden and char != "\n"]
    return status, errors.getvalue().partition("\nerror:" if status == 2 else "lume-unlearn run: ")[2], begun


def assert_sound(status: int, message: str, begun: list[RunConfig], named: Iterable[str]) -> None:
    """A run begins, with numbers that are some; or the message names one of these, as a word or in quotes."""
    if status == 0:
        assert begun or not message  # --help
        for config in begun:
            numbers = [value for value in vars(config).values() if isinstance(value, float)]
            assert all(map(math.isfinite, [*numbers, *config.params.values()]))
    else:
        assert status in (1, 2)
        assert not begun
        assert any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message) for name in named if name), message


@example({"\x1b[31m": 1})
@example({"epochs": "\x1b[31m\u202e"})
@example({"": None})
@example({"0": {"": None}})
@example({"best_metric": "\x9b", "evaluate_every": "epoch"})
@EXAMPLES
@given(options=st.dictionaries(KEYS | st.text(max_size=8), VALUES, max_size=4))
def test_any_options_in_a_recipe(tmp_path_factory: Any, options: dict[str, Any]) -> None:
    folder = tmp_path_factory.getbasetemp()
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"method": "npo"} | options), encoding="utf-8")
    names = [visible(name) or '""' for name in options]
    assert_sound(*attempt(folder, "--config", str(recipe)), [*names, *(name.partition(".")[0] for name in names)])


@EXAMPLES
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode) | st.sampled_from(FILES))
def test_any_bytes_as_a_recipe(tmp_path_factory: Any, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    recipe = folder / "recipe.yaml"
    recipe.write_bytes(content)
    assert_sound(*attempt(folder, "--method", "npo", "--config", str(recipe)), [str(recipe)])


@pytest.mark.parametrize("content", FILES)
def test_each_of_the_hostile_recipes_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    status, message, begun = attempt(tmp_path, "--method", "npo", "--config", str(tmp_path / "recipe.yaml"))
    assert (status, begun) in ((1, []), (2, []))
    assert "recipe.yaml" in message or "'a'" in message or "config" in message


@EXAMPLES
@given(options=st.lists(st.tuples(st.sampled_from([*OPTIONS, *PARAMETERS]), SCALARS.map(str)), max_size=4))
def test_any_values_on_the_command_line(tmp_path_factory: Any, options: list[tuple[str, str]]) -> None:
    words = [f"--{name}={value}" for name, value in options]
    found = attempt(tmp_path_factory.getbasetemp(), "--method", "npo", *words)
    assert_sound(*found, [name for name, _ in options])


@EXAMPLES
@given(words=st.lists(st.text(min_size=1, max_size=10), min_size=1, max_size=3))
def test_any_words_on_the_command_line(tmp_path_factory: Any, words: list[str]) -> None:
    status, message, begun = attempt(tmp_path_factory.getbasetemp(), "--method", "npo", *words)
    assert (status == 2 and message) or "-h" in words[0], (begun, message)


@pytest.mark.parametrize("output", ["../../x", "/tmp/x", "a/../../x"])
def test_a_recipe_does_not_say_where_to_write(output: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"method: npo\noutput: {output}\n")
    status, message, _ = attempt(tmp_path, f"--config={recipe}")
    assert (status, message.strip()) == (
        1,
        f"--config {recipe}: a recipe may not write to {output}; give --output on the command line",
    )
    status, _, begun = attempt(tmp_path, "--method", "npo", "--output", output)  # by the user's own hand
    assert (status, begun[0].output) == (0, output)


def test_a_recipe_does_not_say_where_to_report(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("method: npo\nreport_to: wandb\n")
    status, message, begun = attempt(tmp_path, "--config", str(recipe))
    assert (status, begun) == (1, [])
    assert "a recipe may not set report_to" in message
    recipe.write_text("method: npo\nreport_to: none\n")
    status, _, begun = attempt(tmp_path, "--config", str(recipe), "--report_to", "tensorboard")
    assert begun[0].report_to == "tensorboard"


@pytest.mark.parametrize("logger", ["lume_unlearn", "lume_tasks"])
def test_a_log_line_cannot_steer_the_terminal(logger: str, caplog: pytest.LogCaptureFixture) -> None:
    main(["path"])
    logging.getLogger(logger).warning("%s has no value\x07", "task.\x1b]0;x")
    assert caplog.messages == [r"task.\x1b]0;x has no value\x07"]


def test_a_recipe_does_not_run_code(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("method: npo\ntrust_remote_code: true\n")
    status, message, begun = attempt(tmp_path, "--config", str(recipe))
    assert (status, begun) == (1, [])
    assert "a recipe may not set trust_remote_code" in message
    status, _, begun = attempt(tmp_path, "--method", "npo", "--trust_remote_code", "true")
    assert begun[0].trust_remote_code is True
