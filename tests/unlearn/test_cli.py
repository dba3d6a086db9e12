"""The command as users type it: exit codes, messages, and several processes."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from lm_eval.__main__ import cli_evaluate

from lume_unlearn import cli
from lume_unlearn.config import RunConfig
from lume_unlearn.evaluation.harness import scoring_command
from lume_unlearn.methods.registry import METHODS
from tests.conftest import Command, make_rows, write_rows


def test_the_printed_command_scores_the_result_on_the_data_of_the_run(
    model_dir: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of one task, in one split, in folders with spaces in their names."""
    data, output = tmp_path / "own data", tmp_path / "un learned"
    for side in ("forget", "retain"):
        write_rows(data / "train" / f"{side}.jsonl", [row for row in make_rows(side) if row.task == "Task2"])
    where = ("--model", str(model_dir), "--data", str(data), "--split", "train", "--output", str(output))
    code, out, _ = command("run", *where, "--method", "gd", "--epochs", "1")
    assert code == 0
    words = shlex.split(out[out.index("lm_eval ") :])
    assert words[3:5] == ["--model_args", f"pretrained={model_dir},peft={output}"]
    assert words[5:7] == ["--tasks", "lume_task2,lume_score"]
    monkeypatch.setattr(sys, "argv", [*words, "--limit", "1", "--device", "cpu"])
    monkeypatch.chdir(tmp_path)
    cli_evaluate()
    assert list((tmp_path / "results").rglob("samples_lume_task2_*.jsonl"))


def test_the_printed_command_asks_for_what_the_run_was_not_told(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig("m", "o", "ga", forget="f.jsonl", tuning="full", trust_remote_code=True)
    words = shlex.split(scoring_command(config))
    assert words[4:7] == ["pretrained=o,trust_remote_code=True", "--tasks", "lume"]
    assert "FOLDER OF forget.jsonl" in words[words.index("--metadata") + 1]

    monkeypatch.setenv("LUME_DATA_DIR", str(data_dir))
    assert "--tasks lume --batch_size 64 --output_path" in scoring_command(RunConfig("m", "o", "ga"))


RUN = "run --model MODEL --data DATA --output OUT --method"


@pytest.mark.parametrize(
    ("status", "words", "named"),
    [
        (1, f"{RUN} nop", "--method 'nop': choose one of ga, gd, kl, npo"),
        (1, f"{RUN} dpo --alternatives no.jsonl", "no.jsonl"),
        (1, f"{RUN} rmu", "--layer 7: the model has 2 decoder layers, counted from 0"),
        (1, f"{RUN} rmu --tuning last:1 --layer 0", "--tuning: trains no weight up to --layer 0"),
        (1, f"{RUN} npo --tuning loar", "--tuning 'loar': choose lora, full, last:K (K layers) or modules:REGEX"),
        (1, f"{RUN} npo --tuning last:0", "--tuning 'last:0': choose lora"),
        (1, f"{RUN} npo --tuning last:9", "--tuning last:9: the model has 2 decoder layers"),
        (1, f"{RUN} npo --tuning modules:(mlp", "--tuning modules:(mlp: not a regular expression"),
        (1, f"{RUN} npo --tuning modules:mpl", "--tuning modules:mpl: found in no weight's name"),
        (1, f"{RUN} npo --config no_such_recipe", "--config no_such_recipe: neither a file nor a shipped recipe"),
        (1, f"{RUN} npo --data no/such/folder", "--data no/such/folder: is not a directory"),
        (1, f"{RUN} npo --model no/such", "--model no/such (no such folder here, so the hub was asked)"),
        (1, f"{RUN} npo --model no/such --output DATA", "it exists and is not empty"),  # before loading
        (1, f"{RUN} npo --resume", "--resume: there is no run in"),
        (1, f"{RUN} npo --max_length 3", "within 3 tokens: raise --max_length"),
        (1, f"{RUN} npo --lora_targets q_proj,v_porj", "--lora_targets q_proj,v_porj: the model has no module v_porj"),
        (1, f"{RUN} npo --report_to wnadb", "--report_to wnadb: not known or not installed"),
        (1, "merge --output o", "name one adapter by --adapter, or several by --ties A,B"),
        (1, "merge --output o --ties a,b --weights 1,x", "--weights 1,x: give numbers separated by commas"),
        (1, "merge --output o --ties a,b --weights 1", "--ties a,b: name two or more adapters, and by --weights none"),
        (1, "alternatives --model m --output a.json", "--output a.json"),
        (1, "alternatives --model m --output o.jsonl --split test --forget f", "--forget: names the rows"),
        (2, "", 'expected "command" to be one of'),
        (2, "run --config npo_ties1", "run.model, run.output"),
        (2, "run --beta much", "beta"),
        (2, "run --epochs 0", "epochs"),
        (2, "merge --density 0", "density"),
        (2, "merge", "output"),
        (2, f"{RUN} gd --learning-rate 1", "unrecognized arguments: --learning-rate 1; did you mean --learning_rate?"),
        (2, f"{RUN} gd --learnng_rate=1 --epoch 2", "; did you mean --learning_rate and --epochs?"),
        (2, f"{RUN} gd --config RECIPE", "does not accept option 'learnng_rate'; did you mean --learning_rate?"),
        (2, f"{RUN} gd --xyzzy 1", "unrecognized arguments: --xyzzy 1\n"),
        (2, "card --model_dir m --result r", "; did you mean --results?"),
    ],
)
def test_what_cannot_work_is_a_message_and_an_exit_code(
    status: int, words: str, named: str, model_dir: Path, data_dir: Path, tmp_path: Path, command: Command
) -> None:
    places = {"MODEL": model_dir, "DATA": data_dir, "OUT": tmp_path / "out", "RECIPE": tmp_path / "recipe.yaml"}
    places["RECIPE"].write_text("learnng_rate: 1\n")
    code, out, err = command(*(str(places.get(word, word)) for word in words.split()))
    assert (code, out) == (status, "")
    assert named in (err if status == 1 else err.partition("error:")[2])
    assert "Traceback" not in err
    assert status == 2 or f"lume-unlearn {words.split()[0]}: " in err


def test_a_closed_pipe_is_no_traceback() -> None:
    """As `lume-unlearn methods | head -1` leaves it."""
    reader, writer = os.pipe()
    os.close(reader)
    argv = [sys.executable, "-m", "lume_unlearn", "methods"]
    done = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_help_names_every_option_with_its_meaning(command: Command) -> None:
    pytest.importorskip("docstring_parser")  # comes with jsonargparse[signatures]
    code, out, _ = command("run", "--help")
    assert code == 0
    assert out.count("  --") >= 65
    words = " ".join(out.split())
    assert "Forget rows of one optimiser step" in words
    assert "(Trainer's lr_scheduler_type)" in words
    assert "(default: npo 0.1, token-npo 0.5, simnpo 4.5, dpo 0.1, " in words
    assert not [name for method in METHODS.values() for name in method.params if f"--{name} " not in out]


def test_help_methods_and_path_import_no_torch() -> None:
    code = """
import sys
from lume_unlearn.cli import main
for words in (["--help"], ["run", "--help"], ["methods"], ["path"]):
    try:
        assert main(words) == 0
    except SystemExit as leaving:
        assert leaving.code == 0
heavy = ["torch", "transformers", "lm_eval", "peft", "pandas", "accelerate", "datasets", "numpy"]
print(*(name for name in heavy if name in sys.modules), file=sys.stderr, end="")
import lume_unlearn.report.card, lume_unlearn.report.page
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize("given", [[], ["--resume"], ["--resume", "--seed", "3"], ["--resume", "true"]])
def test_a_switch_needs_no_value(given: list[str]) -> None:
    options = ["run", "--model", "m", "--output", "o", "--method", "gd", *given]
    assert cli.parser().parse_args(options).run.resume is bool(given)
