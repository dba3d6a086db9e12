"""The quickstart: what it prints and writes, and that unlearning shows in the scores."""

import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from lume_tasks.cli import main as lume_tasks
from lume_unlearn.cli.main import main as lume_unlearn
from lume_unlearn.quickstart.run import next_commands
from lume_unlearn.report.results import read_models


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the quickstart, and check what it prints."""
    output = tmp_path_factory.mktemp("quickstart") / "out"
    command = [sys.executable, "-m", "lume_unlearn", "quickstart", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    if find_spec("torchao") is None:  # torchao prints before the redirection starts
        assert done.stderr == ""
    for column in ("target", " GD ", " NPO ", "retain-only"):
        assert column in done.stdout
    assert done.stdout.count("final score") == 1
    for line in next_commands(output):
        assert f"  {line}\n" in done.stdout
    assert (output / "quickstart.log").stat().st_size > 0
    return output


def test_unlearning_shows_in_the_scores(output):
    models = read_models([str(output / "results")])
    scores = {model.name: model.evaluations[0].scores["lume_score"] for model in models}
    knowledge = {name: (s["forget_knowledge"], s["retain_knowledge"]) for name, s in scores.items()}
    assert knowledge["target"] == (1.0, 1.0)
    assert knowledge["retain-only"][0] < 0.1
    assert knowledge["retain-only"][1] == 1.0
    for name in ("unlearned-gd", "unlearned-npo"):
        assert knowledge[name][0] < 0.3
        assert knowledge[name][1] > 0.8
        assert scores[name]["task_aggregate"] > 0.7
        assert scores[name]["partial_final_score"] > scores["target"]["partial_final_score"]


def test_first_three_printed_commands_work(output):
    """The last two commands train and score another model."""
    for line in next_commands(output)[:3]:
        program, *arguments = shlex.split(line)
        assert (lume_unlearn if program == "lume-unlearn" else lume_tasks)(arguments) == 0
    assert "Left out" not in (output / "report.html").read_text().partition("Worst leaks")[2]
    assert "own data" in (output / "unlearned-npo" / "README.md").read_text()


def test_quickstart_refuses_a_folder_in_use(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep me")
    assert lume_unlearn(["quickstart", "--output", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "keep me"
