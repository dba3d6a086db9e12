"""The command as users type it: exit codes, messages, and several processes."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lume_unlearn import cli
from lume_unlearn.config import RunConfig
from lume_unlearn.methods.registry import METHODS
from tests.conftest import make_rows, write_rows


def main(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command run in this process."""
    capsys.readouterr()
    try:
        code: object = cli.main(argv)
    except SystemExit as leaving:  # as jsonargparse exits
        code = leaving.code
    assert isinstance(code, int)
    return code, *capsys.readouterr()


@pytest.mark.parametrize("words", ["--help", "run --help", "methods", "path"])
def test_help_methods_and_path_import_no_torch(words: str) -> None:
    code = f"""
import sys
from lume_unlearn.cli import main
try:
    status = main({words.split()!r})
except SystemExit as leaving:
    status = leaving.code
heavy = ["torch", "transformers", "lm_eval", "peft", "pandas", "accelerate", "datasets", "numpy"]
print(*(name for name in heavy if name in sys.modules), file=sys.stderr, end="")
sys.exit(status)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_a_run_and_a_merge(model_dir: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    where = ("--model", str(model_dir), "--data", str(data_dir), "--output", str(adapter))
    code, out, _ = main(capsys, "run", *where, "--epochs", "1", "--method", "gd", "--lora_rank", "2")
    assert code == 0
    command = f"lm_eval --model lume-hf --model_args pretrained={model_dir},peft={adapter} --tasks lume --batch_size 64"
    rows = f"""--metadata '{{"lume_data_dir": "{data_dir}"}}'"""
    assert f"  {command} {rows} --output_path results --log_samples\n" in out  # the rows of the run
    config = json.loads((adapter / "unlearning.json").read_text())["config"]
    assert (config["method"], config["epochs"], config["lora_rank"]) == ("gd", 1, 2)
    code, out, _ = main(capsys, "merge", "--adapter", str(adapter), "--output", str(merged))
    assert (code, out) == (0, f"Written to {merged}.\n")
    assert load_file(merged / "model.safetensors").keys() == load_file(model_dir / "model.safetensors").keys()


def test_the_printed_command_scores_the_result_on_the_data_of_the_run(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of one task, in one split, in folders with spaces in their names."""
    monkeypatch.delenv("LUME_MMLU_PATH", raising=False)
    data, output = tmp_path / "own data", tmp_path / "un learned"
    for side in ("forget", "retain"):
        write_rows(data / "train" / f"{side}.jsonl", [row for row in make_rows(side) if row.task == "Task2"])
    where = ("--model", str(model_dir), "--data", str(data), "--split", "train", "--output", str(output))
    code, out, _ = main(capsys, "run", *where, "--method", "gd", "--epochs", "1")
    assert code == 0
    words = shlex.split(out[out.index("lm_eval ") :])
    assert words[3:5] == ["--model_args", f"pretrained={model_dir},peft={output}"]
    assert words[5:7] == ["--tasks", "lume_task2,lume_score"]
    command = [sys.executable, "-m", *words, "--limit", "1", "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "results").rglob("samples_lume_task2_*.jsonl"))


def test_the_printed_command_asks_for_what_the_run_was_not_told(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig("m", "o", "ga", forget="f.jsonl", tuning="full", trust_remote_code=True)
    words = shlex.split(cli.scoring_command(config))
    assert words[4:7] == ["pretrained=o,trust_remote_code=True", "--tasks", "lume"]
    assert "FOLDER OF forget.jsonl" in words[words.index("--metadata") + 1]

    monkeypatch.setenv("LUME_DATA_DIR", str(data_dir))
    assert "--tasks lume --batch_size 64 --output_path" in cli.scoring_command(RunConfig("m", "o", "ga"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--method", "nop"], "--method 'nop': choose one of ga, gd, kl, npo"),
        (["--method", "dpo", "--alternatives", "no.jsonl"], "no.jsonl"),
        (["--method", "rmu"], "--layer 7: the model has 2 decoder layers, counted from 0"),
        (["--tuning", "loar"], "--tuning 'loar': choose lora, full, last:K (K layers) or modules:REGEX"),
        (["--tuning", "last:0"], "--tuning 'last:0': choose lora"),
        (["--tuning", "last:9"], "--tuning last:9: the model has 2 decoder layers"),
        (["--tuning", "modules:(mlp"], "--tuning modules:(mlp: not a regular expression"),
        (["--tuning", "modules:mpl"], "--tuning modules:mpl: found in no weight's name"),
        (["--config", "no_such_recipe"], "--config no_such_recipe: neither a file nor a shipped recipe"),
        (["--data", "no/such/folder"], "--data no/such/folder: is not a directory"),
        (["--model", "no/such/model"], "--model no/such/model (no such folder here, so the hub was asked)"),
        (["--resume"], "--resume: there is no run in"),
        (["--max_length", "3"], "within 3 tokens: raise --max_length"),
        (["--lora_targets", "q_proj,v_porj"], "--lora_targets q_proj,v_porj: the model has no module v_porj"),
        (["--report_to", "wnadb"], "--report_to wnadb: not known or not installed"),
    ],
)
def test_what_cannot_work_is_a_message_and_exit_code_1(
    options: list[str],
    named: str,
    model_dir: Path,
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LUME_DATA_DIR", str(data_dir))
    required = ["--method", "npo", "--model", str(model_dir), "--output", str(tmp_path / "out")]
    code, out, err = main(capsys, "run", *required, *options)
    assert (code, out) == (1, "")
    assert "lume-unlearn run: " in err
    assert named in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name one adapter by --adapter, or several by --ties A,B"),
        (["--ties", "a,b", "--weights", "1,x"], "--weights 1,x: give numbers separated by commas"),
        (["--ties", "a,b", "--weights", "1"], "--ties a,b: name two or more adapters, and by --weights none or"),
    ],
)
def test_contradicting_options_of_merge(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = main(capsys, "merge", "--output", "o", *options)
    assert (code, err.startswith(f"lume-unlearn merge: {message}")) == (1, True)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], 'expected "command" to be one of'),
        (["run", "--config", "npo_ties1"], "run.model, run.output"),
        (["run", "--beta", "much"], "beta"),
        (["run", "--epochs", "0"], "epochs"),
        (["merge", "--density", "0"], "density"),
        (["merge"], "output"),
    ],
)
def test_what_cannot_be_read_is_exit_code_2(argv: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = main(capsys, *argv)
    assert (code, out) == (2, "")
    assert named in err.partition("error:")[2]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["run", "--learning-rate", "1"], "unrecognized arguments: --learning-rate 1; did you mean --learning_rate?"),
        (["run", "--learnng_rate=1", "--epoch", "2"], "; did you mean --learning_rate and --epochs?"),
        (["card", "--result", "r"], "; did you mean --results?"),
        (["run", "--config", "RECIPE"], "does not accept option 'learnng_rate'; did you mean --learning_rate?"),
        (["run", "--xyzzy", "1"], "unrecognized arguments: --xyzzy 1\n"),
    ],
)
def test_an_unknown_option_suggests_the_near_one(
    argv: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text("learnng_rate: 1\n")
    required = ["--model", "m", "--output", "o", "--method", "gd"] if argv[0] == "run" else ["--model_dir", "m"]
    argv = [argv[0], *required, *argv[1:]]
    code, _, err = main(capsys, *(str(tmp_path / "recipe.yaml") if word == "RECIPE" else word for word in argv))
    assert code == 2
    assert expected in err


def test_a_closed_pipe_is_no_traceback() -> None:
    """As `lume-unlearn methods | head -1` leaves it."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "lume_unlearn", "methods"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_help_names_every_option_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("docstring_parser")  # comes with jsonargparse[signatures]
    code, out, _ = main(capsys, "run", "--help")
    assert code == 0
    assert out.count("  --") >= 65
    words = " ".join(out.split())
    assert "Forget rows of one optimiser step" in words
    assert "(Trainer's lr_scheduler_type)" in words
    assert "(default: npo 0.1, token-npo 0.5, simnpo 4.5, dpo 0.1, " in words
    assert not [name for method in METHODS.values() for name in method.params if f"--{name} " not in out]


@pytest.mark.parametrize("given", [[], ["--resume"], ["--resume", "--seed", "3"], ["--resume", "true"]])
def test_a_switch_needs_no_value(given: list[str]) -> None:
    options = ["run", "--model", "m", "--output", "o", "--method", "gd", *given]
    assert cli.parser().parse_args(options).run.resume is bool(given)
