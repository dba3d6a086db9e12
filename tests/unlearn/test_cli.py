"""The command as users type it: exit codes, messages, help, and several processes."""

import logging
import os
import re
import shlex
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pytest
from lm_eval.__main__ import cli_evaluate
from transformers import TrainingArguments

from lume_unlearn.audit.suite import PROBES
from lume_unlearn.cli import COMMANDS
from lume_unlearn.cli.training import arguments
from lume_unlearn.methods.registry import METHODS
from lume_unlearn.scoring.command import scoring_command
from lume_unlearn.training.arguments import UnlearningArguments
from tests.conftest import make_rows, write_rows


def test_printed_command_scores_the_result_on_the_data_of_the_run(model_dir, tmp_path, command, monkeypatch):
    """Rows of one task, in one split, in folders with spaces in their names; transformers warns of nothing."""
    data, output = tmp_path / "own data", tmp_path / "un learned"
    for side in ("forget", "retain"):
        write_rows(data / "train" / f"{side}.jsonl", [row for row in make_rows(side) if row.task == "Task2"])
    where = ("--model", model_dir, "--data", data, "--split", "train", "--output", output)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        code, out, _ = command("run", *where, "--method", "gd", "--num_train_epochs", "1")
    assert code == 0
    assert not [warning for warning in caught if warning.category is FutureWarning]
    words = shlex.split(out[out.index("lm_eval ") :])
    assert words[3:5] == ["--model_args", f"pretrained={model_dir},peft={output}"]
    assert words[5:7] == ["--tasks", "lume_task2,lume_score"]
    monkeypatch.setattr(sys, "argv", [*words, "--limit", "1", "--device", "cpu"])
    monkeypatch.chdir(tmp_path)
    cli_evaluate()
    assert list((tmp_path / "results").rglob("samples_lume_task2_*.jsonl"))


def test_printed_command_asks_for_what_the_run_was_not_told(data_dir):
    words = shlex.split(scoring_command("m", "o", adapter=False, directory=None, trust_remote_code=True))
    assert words[4:7] == ["pretrained=o,trust_remote_code=True", "--tasks", "lume"]
    assert "FOLDER OF forget.jsonl" in words[words.index("--metadata") + 1]
    found = scoring_command("m", "o", adapter=True, directory=data_dir)
    assert "--tasks lume --batch_size 64 --output_path" in found


RUN = "run --model MODEL --data DATA --output OUT --method"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (f"{RUN} dpo --alternatives no.jsonl", "no.jsonl"),
        (f"{RUN} rmu", "--layer 7: the model has 2 decoder layers"),
        (f"{RUN} rmu --tuning last:1 --layer 0", "--tuning: trains no weight up to --layer 0"),
        (f"{RUN} npo --tuning loar", "--tuning 'loar': choose lora"),
        (f"{RUN} npo --tuning modules:(mlp", "--tuning modules:(mlp: not a regular expression"),
        (f"{RUN} npo --tuning modules:mpl", "--tuning modules:mpl: matches no weight's name; one of these is "),
        (f"{RUN} npo --model no/such", "--model no/such (no such folder here, so the hub was asked)"),
        (f"{RUN} npo --model no/such --output DATA", "it exists and is not empty"),  # before loading
        (f"{RUN} level --base no/such", "--base no/such (no such folder here, so the hub was asked)"),
        (f"{RUN} npo --resume", "--resume: there is no run in"),
        (f"{RUN} npo --max_length 3", "the first 3 tokens hold no token of the answer: raise --max_length"),
        (f"{RUN} npo --lora_targets q_proj,v_porj", "the model has no module v_porj"),
        (f"{RUN} npo --config no_such_recipe", "--config no_such_recipe: no such recipe or file; `lume-unlearn"),
        (f"{RUN} npo xyzzy", "unrecognized arguments: xyzzy"),
        ("run --config sugd_lora", "required: model, output"),
        ("merge --adapter a", "required: output"),
        ("forget --model MODEL --forget DATA --output OUT --device cuda:1", "set CUDA_VISIBLE_DEVICES=1, and leave it"),
    ],
)
def test_what_cannot_work_is_a_message_and_status_2(words, named, model_dir, data_dir, tmp_path, command):
    places = {"MODEL": model_dir, "DATA": data_dir, "OUT": tmp_path / "out"}
    code, out, err = command(*(str(places.get(word, word)) for word in words.split()))
    assert (code, out) == (2, "")
    assert named in err
    assert f"lume-unlearn {words.split()[0]}: " in err
    assert "usage:" not in err
    assert "Traceback" not in err


def test_closed_pipe_is_status_141_without_a_traceback():
    """As `lume-unlearn methods | head -1` leaves it."""
    reader, writer = os.pipe()
    os.close(reader)
    argv = [sys.executable, "-m", "lume_unlearn", "methods"]
    done = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_help_lists_our_options_and_help_trainer_the_rest_of_trainers(command):
    shown, rest = (
        set(re.findall(r"^  --(\w+)", command("run", word)[1], re.M)) for word in ("--help", "--help_trainer")
    )
    theirs, every = set(TrainingArguments.__dataclass_fields__), set(UnlearningArguments.__dataclass_fields__)
    assert {"num_train_epochs", "learning_rate"} <= shown & theirs
    assert {"adam_beta1", "dataloader_num_workers"} <= rest <= theirs
    assert not shown & rest
    assert every - theirs <= shown
    assert {name for method in METHODS.values() for name in method.params()} <= shown


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_something_of_every_option(command, name):
    status, shown, _ = command(name, "--help")
    assert status == 0
    below = pairwise([*shown.splitlines(), ""])
    assert not [
        line for line, after in below if re.fullmatch(r"  -\S+( \S+)?", line) and not after.startswith(20 * " ")
    ]


def test_help_of_finetune_gives_its_own_defaults(command):
    shown = " ".join(command("finetune", "--help")[1].split())
    assert "forget row" not in shown.partition("Trainer:")[2]
    for default in ("--until (default: 20)", "accumulation step (default: 16)", "(default: 0.0001; 0.001 with LoRA)"):
        assert default in shown


def test_help_names_probes_exit_statuses_and_results(command):
    for name in ("audit", "forget"):
        shown = " ".join(command(name, "--help")[1].split())
        assert f"separated by commas: {', '.join(PROBES)} (default:" in shown
        assert "3 cannot be told" in shown
    assert "1 they do not" in command("verify", "--help")[1]
    assert command("report", "--help")[1].startswith("usage: lume-unlearn report results [results ...] [options]")


def test_help_says_how_to_prepare_data_and_to_score(command):
    shown = command("--help")[1]
    assert "lume-tasks prepare " in shown
    assert "lm_eval --tasks lume " in shown


@pytest.mark.parametrize("words", ["--help", "path"])
def test_help_and_path_take_less_than_a_second_of_cpu(words):
    before = os.times()
    subprocess.run([sys.executable, "-m", "lume_unlearn", words], check=True, capture_output=True, timeout=60)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert used < 1


@pytest.mark.parametrize("given", [[], ["--resume"], ["--resume", "--seed", "3"], ["--resume", "true"]])
def test_a_switch_needs_no_value(given, command, monkeypatch):
    seen = {}
    monkeypatch.setattr("lume_unlearn.cli.run.execute", seen.update)
    assert command("run", "--model", "m", "--output", "o", "--method", "gd", *given)[0] == 0
    assert seen.get("resume", False) is bool(given)


@pytest.mark.parametrize(
    ("terminal", "given", "hidden"), [(True, {}, False), (False, {}, True), (False, {"disable_tqdm": False}, False)]
)
def test_a_log_file_gets_no_bar_of_the_training(terminal, given, hidden, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert arguments({"output": "out", **given}).disable_tqdm is hidden


def test_the_advice_is_the_last_line_of_run(model_dir: Path, data_dir: Path, tmp_path: Path, command) -> None:
    places = ["--model", model_dir, "--data", data_dir, "--output", tmp_path / "out"]
    options = ["--forget_weight", 0, "--retain_weight", 0, "--num_train_epochs", 1, "--tuning", "full"]
    log = logging.getLogger("lume_unlearn")
    with mock.patch.object(log, "warning", lambda text, *args: print(text % args)):  # among the lines of stdout
        code, out, _ = command("run", "--method", "gd", *places, *options)
    assert code == 0
    assert "Score it with:" in out
    assert out.splitlines()[-1].startswith("the result has forgotten little or nothing")
