"""The newcomer's command, whole: what it prints, what it leaves behind, and that unlearning shows."""

import json
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from lume_tasks.cli import main as check
from lume_tasks.data.checks import check_dir
from lume_unlearn.cli import main
from lume_unlearn.quickstart.run import next_commands
from lume_unlearn.report.results import read_models


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart") / "out"


def test_it_runs_and_prints_one_table(finished: Path) -> None:
    command = [sys.executable, "-m", "lume_unlearn", "quickstart", "--output", str(finished)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    if find_spec("torchao") is None:  # which says what it could not load before anybody can stop it
        assert done.stderr == ""  # libraries talk to the log
    for column in ("target", " GD ", " NPO ", "retain-only"):
        assert column in done.stdout
    assert done.stdout.count("final score") == 1
    for line in next_commands(finished):
        assert f"  {line}\n" in done.stdout
    assert (finished / "quickstart.log").stat().st_size > 0


def test_it_leaves_a_valid_data_directory_and_records(finished: Path) -> None:
    assert check_dir(finished / "data") == []
    for method in ("gd", "npo"):
        record = json.loads((finished / f"unlearned-{method}" / "unlearning.json").read_text())
        assert record["config"]["method"] == method
        assert record["history"][0]["forget_loss"] != record["history"][-2]["forget_loss"]


def scores_of(finished: Path, name: str) -> dict[str, dict[str, float]]:
    (model,) = (model for model in read_models([str(finished / "results")]) if model.name == name)
    return model.evaluations[0].scores


def test_unlearning_shows_in_the_scores(finished: Path) -> None:
    scores = {
        name: scores_of(finished, name)["lume_score"]
        for name in ("target", "unlearned-gd", "unlearned-npo", "retain-only")
    }
    knowledge = {name: (s["forget_knowledge"], s["retain_knowledge"]) for name, s in scores.items()}
    assert knowledge["target"] == (1.0, 1.0)
    assert knowledge["retain-only"][0] < 0.1
    assert knowledge["retain-only"][1] == 1.0
    for name in ("unlearned-gd", "unlearned-npo"):
        assert knowledge[name][0] < 0.3
        assert knowledge[name][1] > 0.8
        assert scores[name]["task_aggregate"] > 0.7
        assert scores[name]["partial_final_score"] > scores["target"]["partial_final_score"]


def test_the_commands_that_it_names_first_work(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others train and score once more."""
    for line in next_commands(finished)[:3]:
        program, *arguments = shlex.split(line)
        assert (main if program == "lume-unlearn" else check)(arguments) == 0
    page = (finished / "report.html").read_text()
    assert "Left out" not in page.partition("Worst leaks")[2]
    assert "multiple choice" in (finished / "unlearned-npo" / "README.md").read_text()


def test_an_output_folder_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    assert main(["quickstart", "--output", str(tmp_path)]) == 1
    assert "not empty" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "keep me"
