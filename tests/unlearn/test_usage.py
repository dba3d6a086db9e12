"""Usage errors: one line that names the option that is wrong, and the one that was probably meant."""

import logging
from pathlib import Path

import pytest

from lume_tasks.errors import DataError
from lume_unlearn.data import sources
from lume_unlearn.errors import ConfigError
from lume_unlearn.training.arguments import UnlearningArguments

NEEDED = {"run": "--method gd --model m --output o", "merge": "--adapter a --output o", "report": "results"}
NEEDED["card"] = "--model_dir m --results r"


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("run --lr 1e-5", "--learning_rate"),
        ("finetune --lr 1e-5", "--learning_rate"),
        ("run -lr 1e-5", "--learning_rate"),
        ("audit --lr 1e-5", "--relearn_rate"),
        ("audit --learning-rate 1e-5", "--relearn_rate"),
        ("run --bs 4", "--per_device_train_batch_size"),
        ("compare --batch 4", "--per_device_train_batch_size"),
        ("audit --bs 4", "--batch_size"),
        ("run --epoch 1", "--num_train_epochs"),
        ("compare --epochs 1", "--num_train_epochs"),
        ("audit --epoch 1", "--relearn_steps"),
        *(
            (f"{name} --out x", "--output")
            for name in ("run", "finetune", "compare", "merge", "alternatives", "report")
        ),
        *((f"{name} --output_dir x", "--output") for name in ("run", "audit", "merge")),
        ("audit --adapter x", "--peft"),
        ("run --adapter x", "--model"),
        ("merge --peft x", "--adapter"),
        ("audit --lora x", "--peft"),
        ("run --lora", "--tuning"),
        ("compare --lora", "--tunings"),
        ("finetune --model_name_or_path x", "--model"),
        ("merge --base_model x", "--model"),
        ("card --model_name_or_path x", "--model_dir"),
        ("audit --gpu 0", "--device"),
    ],
)
def test_names_of_other_programs_are_answered_with_ours(words, meant, command):
    name, option, *_ = words.split()
    code, out, err = command(*words.split(), *NEEDED.get(name, "--model m --output o").split())
    assert (code, out) == (2, "")
    assert err == f"lume-unlearn {name}: {option}: no such option; did you mean {meant}?\n"


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("compare --lr 1", "compare tunes the learning rate"),
        ("run --gpu 0", "choose the GPU with the variable CUDA_VISIBLE_DEVICES"),
        ("alternatives --device cuda", "choose the GPU with the variable CUDA_VISIBLE_DEVICES"),
        ("audit --tokenizer t", "the tokenizer is read from the folder of the model"),
        ("path --gpu 1", "see --help"),
    ],
)
def test_options_without_a_counterpart_are_explained(words, answer, command):
    code, _, err = command(*words.split())
    assert code == 2
    assert f": no such option; {answer}" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("run", "give --method, --model, --output; see --help"),
        ("report", "give results; see --help"),
        ("run --model", "--model: give a value"),
        ("run --method gd --config", "--config: give a value"),
        ("compare --seeds", "--seeds: give a value, a whole number"),
        ("merge --dtype", "--dtype: give a value, one of float32, bfloat16"),
        ("run --method gd --model m --output o --learning_rate fast", "--learning_rate fast: must be a number above 0"),
        ("run --method gd --model m --output o --num_train_epochs x", "--num_train_epochs x: must be a number above 0"),
        ("audit --model m --output o --keep x", "--keep x: must be a number from 0 to below 1"),
        ("run --method gd --model m --output o --optim adam", "--optim adam: no such value; did you mean "),
        ("run --method gd --model m --output o --optim nope", "--optim nope: no such value; the documentation of"),
        ("run --method gd --model m --output o --lr_scheduler_type cosin", "did you mean cosine"),
        ("run --method gd --model m --output o --accelerator_config nope", "Trainer refuses an option: "),
        ("rum", "no such command; did you mean run?"),
    ],
)
def test_a_usage_error_is_one_line(words, said, command):
    code, out, err = command(*words.split())
    assert (code, out) == (2, "")
    assert err.startswith(f"lume-unlearn {words.split()[0]}: ")
    assert said in err
    assert err.count("\n") == 1
    assert len(err) < 200


def test_a_refused_scheduler_names_its_option_in_python():
    with pytest.raises(ConfigError, match=r"^--lr_scheduler_type linaer: no such value; did you mean linear"):
        UnlearningArguments(output_dir="unused", lr_scheduler_type="linaer")


SAID = "no --data: using the published LUME rows; for your own rows, give --data DIR (`lume-tasks prepare` makes one)"


def test_default_data_is_named_once_with_how_to_give_ones_own(data_dir, monkeypatch, caplog):
    sources._say_default.cache_clear()
    monkeypatch.setattr("lume_tasks.data.fetch.fetch", lambda: data_dir)
    with caplog.at_level(logging.WARNING, "lume_unlearn"):
        sources.named_directory(str(data_dir))
        monkeypatch.setenv("LUME_DATA_DIR", str(data_dir))
        sources.Source().rows()
        assert not caplog.messages
        monkeypatch.delenv("LUME_DATA_DIR")
        for _ in range(2):
            assert sources.Source().directory == data_dir
    assert caplog.messages == [SAID]


@pytest.mark.parametrize("name", ["run", "finetune", "audit", "compare"])
def test_a_failed_download_first_says_how_to_give_own_data(name, model_dir, tmp_path, command, monkeypatch, caplog):
    def fetch() -> Path:
        assert SAID in caplog.messages  # before the download
        raise DataError("no network\nBy hand: ...")

    sources._say_default.cache_clear()
    monkeypatch.setattr("lume_tasks.data.fetch.fetch", fetch)
    method = ("--method", "gd") if name == "run" else ()
    code, out, err = command(name, "--model", model_dir, "--output", tmp_path / "out", *method)
    assert (code, out) == (2, "")
    first, *rest = err[err.index(f"lume-unlearn {name}: ") :].splitlines()
    assert first.startswith(
        f"lume-unlearn {name}: --data: none given; for your own rows, give --data DIR (`lume-tasks prepare`"
    )
    assert rest == ["no network", "By hand: ..."]


def test_forget_files_of_other_kinds_are_refused_with_the_command_that_converts_them(model_dir, tmp_path, command):
    table = tmp_path / "rows.csv"
    table.write_text("question,answer\nWho?,Ada\n")
    words = ("run", "--method", "gd", "--model", model_dir, "--output", tmp_path / "out", "--forget", table)
    code, _, err = command(*words, "--retain", table)
    said = "must be .jsonl or .parquet; `lume-tasks prepare` converts other files"
    assert (code, err) == (2, f"lume-unlearn run: --forget {table}: {said}\n")
