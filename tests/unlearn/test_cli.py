"""The command as users type it: exit codes, messages, and several processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lume_unlearn import cli
from lume_unlearn.methods import METHODS


def command(*argv: str, processes: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `python -m lume_unlearn` in its own process, or in several under accelerate."""
    launcher = [sys.executable, "-m"]
    if processes:
        launcher += ["accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--dynamo_backend", "no"]
        launcher += ["--mixed_precision", "no", "--num_processes", str(processes), "--main_process_port", "0", "-m"]
    # CPU processes under accelerate's launcher for GPUs: its own CPU launcher needs MPI.
    variables = {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launcher, "lume_unlearn", *argv],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def main(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command run in this process."""
    capsys.readouterr()
    try:
        code: object = cli.main(argv)
    except SystemExit as leaving:  # as jsonargparse leaves
        code = leaving.code
    assert isinstance(code, int)
    return code, *capsys.readouterr()


def test_a_run_and_a_merge(model_dir: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    where = ("--model", str(model_dir), "--data", str(data_dir), "--output", str(adapter))
    code, out, _ = main(capsys, "run", *where, "--epochs", "1", "--config", "gd_lora", "--lora_rank", "2")
    assert code == 0
    assert f"lm_eval --model hf --model_args pretrained={model_dir},peft={adapter} --tasks lume" in out
    config = json.loads((adapter / "unlearning.json").read_text())["config"]
    assert (config["method"], config["epochs"], config["lora_rank"]) == ("gd", 1, 2)
    code, out, _ = main(capsys, "merge", "--adapter", str(adapter), "--output", str(merged))
    assert (code, out) == (0, f"Written to {merged}.\n")
    assert load_file(merged / "model.safetensors").keys() == load_file(model_dir / "model.safetensors").keys()


def test_methods_lists_every_method_with_its_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = main(capsys, "methods")
    assert code == 0
    for name, method in METHODS.items():
        assert f"{name:<6}{method.title}" in out
        assert f"{method.citation}; recipes: {name}_full, {name}_lora" in out


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--method", "nop"], "--method 'nop': choose one of ga, gd, kl, npo"),
        (["--epochs", "0", "--beta", "-1"], "--epochs 0.0: must be above 0\n--beta -1.0: must be above 0"),
        (["--data", "no/such/folder"], "--data no/such/folder: is not a directory"),
        (["--forget", "f.jsonl"], "--forget: give --retain with it"),
        (["--model", "no/such/model"], "--model no/such/model (there is no such folder here, so the hub was asked)"),
        (["--resume", "true"], "--resume: no checkpoint in"),
        (["--max_length", "3"], "within 3 tokens: raise --max_length"),
        (["--lora_targets", "attention"], "--lora_targets attention: the model has no module attention"),
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
    usual = ["--method", "npo", "--model", str(model_dir), "--output", str(tmp_path / "out")]
    code, out, err = main(capsys, "run", *usual, *options)
    assert (code, out) == (1, "")
    assert "lume-unlearn run: " in err
    assert named in err
    assert "Traceback" not in err


def test_merge_of_something_else(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = main(capsys, "merge", "--adapter", str(model_dir), "--output", str(tmp_path / "merged"))
    assert code == 1
    assert err.startswith(f"lume-unlearn merge: --adapter {model_dir}: not an adapter's folder")


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], 'expected "command" to be one of'),
        (["run", "--config", "npo_lora"], "run.model, run.output"),
        (["run", "--config"], "--config"),
        (["run", "--config", "no_such_recipe"], "no_such_recipe"),
        (["run", "--bteh", "1"], "--bteh"),
        (["run", "--tuning", "loar"], "loar"),
        (["run", "--epochs", "many"], "many"),
        (["merge"], "adapter"),
    ],
)
def test_what_cannot_be_read_is_exit_code_2(argv: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = main(capsys, *argv)
    assert (code, out) == (2, "")
    assert named in err.partition("error:")[2]


def test_help_names_every_option_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("docstring_parser")  # comes with jsonargparse[signatures]
    code, out, _ = main(capsys, "run", "--help")
    assert code == 0
    assert "Forget rows of one optimiser step" in " ".join(out.split())
    assert out.count("  --") >= 35


def test_two_processes_give_the_weights_of_one(model_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    """Twelve rows in steps of five: the second process gets fewer, in smaller batches, and in the last step 1 of 2."""
    outputs = []
    for processes in (0, 2):
        output = tmp_path / str(processes)
        where = ["--model", str(model_dir), "--data", str(data_dir), "--output", str(output)]
        how = ["--batch_size", "5", "--micro_batch_size", "2", "--epochs", "2", "--learning_rate", "1e-3"]
        done = command("run", "--config", "npo_full", *where, *how, processes=processes)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Written to") == 1
        outputs.append(output)
    one, two = (json.loads((output / "unlearning.json").read_text()) for output in outputs)
    assert (one["processes"], two["processes"]) == (1, 2)
    for ours, theirs in zip(one["history"][:-1], two["history"][:-1], strict=True):
        for name in ("loss", "forget_loss", "retain_loss", "grad_norm", "learning_rate"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
    expected, found = (load_file(output / "model.safetensors") for output in outputs)
    start = load_file(model_dir / "model.safetensors")
    assert max((expected[name] - start[name]).abs().max() for name in start) > 1e-3
    assert max((expected[name] - found[name]).abs().max() for name in start) < 1e-5
