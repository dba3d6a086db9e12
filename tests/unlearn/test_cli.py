"""The command as users type it: exit codes, messages, help, and several processes."""

import logging
import os
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from lm_eval.__main__ import cli_evaluate
from transformers import TrainingArguments

from lume_unlearn.cli import COMMANDS
from lume_unlearn.methods.registry import METHODS
from lume_unlearn.scoring.command import scoring_command
from lume_unlearn.training.arguments import UnlearningArguments
from tests.conftest import Command, make_rows, write_rows


def test_printed_command_scores_the_result_on_the_data_of_the_run(
    model_dir: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_printed_command_asks_for_what_the_run_was_not_told(data_dir: Path) -> None:
    words = shlex.split(scoring_command("m", "o", adapter=False, directory=None, trust_remote_code=True))
    assert words[4:7] == ["pretrained=o,trust_remote_code=True", "--tasks", "lume"]
    assert "FOLDER OF forget.jsonl" in words[words.index("--metadata") + 1]
    found = scoring_command("m", "o", adapter=True, directory=data_dir)
    assert "--tasks lume --batch_size 64 --output_path" in found


RUN = "run --model MODEL --data DATA --output OUT --method"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (f"{RUN} nop", "--method 'nop': choose one of ga, gd, kl, npo"),
        (f"{RUN} dpo --alternatives no.jsonl", "no.jsonl"),
        (f"{RUN} rmu", "--layer 7: the model has 2 decoder layers"),
        (f"{RUN} rmu --tuning last:1 --layer 0", "--tuning: trains no weight up to --layer 0"),
        (f"{RUN} npo --tuning loar", "--tuning 'loar': choose lora"),
        (f"{RUN} npo --tuning last:0", "--tuning 'last:0': choose lora"),
        (f"{RUN} npo --tuning last:9", "--tuning last:9: the model has 2 decoder layers"),
        (f"{RUN} npo --tuning modules:(mlp", "--tuning modules:(mlp: not a regular expression"),
        (f"{RUN} npo --tuning modules:mpl", "--tuning modules:mpl: found in no weight's name"),
        (f"{RUN} npo --data no/such/folder", "--data no/such/folder: is not a directory"),
        (f"{RUN} npo --model no/such", "--model no/such (no such folder here, so the hub was asked)"),
        (f"{RUN} npo --model no/such --output DATA", "it exists and is not empty"),  # before loading
        (f"{RUN} npo --resume", "--resume: there is no run in"),
        (f"{RUN} npo --max_length 3", "within 3 tokens: raise --max_length"),
        (f"{RUN} npo --lora_targets q_proj,v_porj", "the model has no module v_porj"),
        (f"{RUN} npo --report_to wnadb", "wnadb"),
        (f"{RUN} npo --lr_scheduler_type cosin", "cosin"),
        (f"{RUN} npo --label_smoothing_factor 0.1", "--label_smoothing_factor: not supported"),
        (f"{RUN} ga --beta 0.1", "--beta 0.1: ga has no such parameter"),
        (f"{RUN} npo --beta much", "--beta much: must be a number"),
        (f"{RUN} npo --lora_rank 0", "--lora_rank 0: must be a whole number above 0"),
        (f"{RUN} npo --lora_dropout 1", "--lora_dropout 1"),
        (f"{RUN} npo --seed 1.5", "--seed 1.5: must be a whole number"),
        (f"{RUN} npo --loss_on words", "--loss_on words: must be one of answer, text"),
        (f"{RUN} npo --config no_such_recipe", "--config no_such_recipe: neither a file nor a shipped recipe"),
        (f"{RUN} npo --epochs 3", "--epochs: no such option; did you mean --num_train_epochs?"),
        (f"{RUN} npo --lr=1", "--lr: no such option; did you mean --learning_rate?"),
        (f"{RUN} npo --learning-rate 1", "did you mean --learning_rate?"),
        (f"{RUN} npo --config RECIPE", "did you mean --learning_rate?"),
        (f"{RUN} npo --xyzzy 1", "--xyzzy: no such option"),
        (f"{RUN} npo xyzzy", "xyzzy: not an option"),
        ("run --config sugd_lora", "model, output"),
        ("runn", "did you mean run?"),
        ("card --model_dir m --result r", "did you mean --results?"),
        ("merge --adapter a", "output"),
        ("merge --adapter nowhere --output OUT", "--adapter nowhere: not an adapter's folder"),
        ("finetune --model MODEL --output OUT --rows some", "--rows some: must be one of all, retain"),
        ("finetune --model MODEL --output OUT --data no/such/folder", "--data no/such/folder: is not a directory"),
        ("report no_results.json", "no_results.json"),
    ],
)
def test_what_cannot_work_is_a_message_and_status_2(
    words: str, named: str, model_dir: Path, data_dir: Path, tmp_path: Path, command: Command
) -> None:
    places = {"MODEL": model_dir, "DATA": data_dir, "OUT": tmp_path / "out", "RECIPE": tmp_path / "recipe.yaml"}
    places["RECIPE"].write_text("learnng_rate: 1\n")
    code, out, err = command(*(str(places.get(word, word)) for word in words.split()))
    assert (code, out) == (2, "")
    assert named in err
    assert f"lume-unlearn {words.split()[0]}: " in err
    assert "usage:" not in err
    assert "Traceback" not in err


def test_closed_pipe_is_status_141_without_a_traceback() -> None:
    """As `lume-unlearn methods | head -1` leaves it."""
    reader, writer = os.pipe()
    os.close(reader)
    argv = [sys.executable, "-m", "lume_unlearn", "methods"]
    done = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def options_in(text: str) -> set[str]:
    """The options that a help text describes."""
    return {line.split()[0].strip("-,") for line in text.splitlines() if line.startswith("  --")}


def test_help_lists_ours_and_what_people_set_of_trainer_and_help_trainer_the_rest(command: Command) -> None:
    shown, rest = (options_in(command("run", word)[1]) for word in ("--help", "--help_trainer"))
    theirs, every = set(TrainingArguments.__dataclass_fields__), set(UnlearningArguments.__dataclass_fields__)
    missing = {"output_dir", "resume_from_checkpoint", "do_train", "do_eval", "do_predict", "local_rank"}
    assert (shown | rest) & theirs == theirs - missing - {"parallelism_config"}
    assert len(shown & theirs) == 15
    assert not shown & rest
    assert every - theirs <= shown
    assert {name for method in METHODS.values() for name in method.params()} <= shown


def test_help_of_the_commands_imports_no_torch() -> None:
    code = f"""
import sys
from lume_unlearn.cli.main import main
light = {[name for name in COMMANDS if name not in ("run", "finetune", "compare")]}
for words in ([], ["--help"], ["--version"], ["path"], ["methods"], *([name, "--help"] for name in light)):
    try:
        assert main(words) == (0 if words else 2)
    except SystemExit as leaving:
        assert leaving.code == 0
heavy = ["torch", "transformers", "lm_eval", "peft", "pandas", "accelerate", "datasets", "numpy"]
print(*(name for name in heavy if name in sys.modules), file=sys.stderr, end="")
import lume_unlearn.report.card, lume_unlearn.report.page
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"  {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("words", ["--help", "path"])
def test_help_and_path_take_less_than_a_second_of_cpu(words: str) -> None:
    before = os.times()
    subprocess.run([sys.executable, "-m", "lume_unlearn", words], check=True, capture_output=True, timeout=60)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert used < 1


@pytest.mark.parametrize("given", [[], ["--resume"], ["--resume", "--seed", "3"], ["--resume", "true"]])
def test_a_switch_needs_no_value(given: list[str], command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr("lume_unlearn.cli.run.execute", seen.update)
    assert command("run", "--model", "m", "--output", "o", "--method", "gd", *given)[0] == 0
    assert seen.get("resume", False) is bool(given)


def test_the_advice_is_the_last_line_of_run(model_dir: Path, data_dir: Path, tmp_path: Path, command: Command) -> None:
    places = ["--model", model_dir, "--data", data_dir, "--output", tmp_path / "out"]
    options = ["--forget_weight", 0, "--retain_weight", 0, "--num_train_epochs", 1, "--tuning", "full"]
    log = logging.getLogger("lume_unlearn")
    with mock.patch.object(log, "warning", lambda text, *args: print(text % args)):  # among the lines of stdout
        code, out, _ = command("run", "--method", "gd", *places, *options)
    assert code == 0
    assert "Score it with:" in out
    assert out.splitlines()[-1].startswith("the result has forgotten little or nothing")
