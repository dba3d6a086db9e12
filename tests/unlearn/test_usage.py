"""Usage errors: one line that names the option that is wrong, and the one that was probably meant."""

import logging
from pathlib import Path

import pytest

from lume_tasks.errors import DataError
from lume_unlearn.data import sources
from lume_unlearn.errors import ConfigError
from lume_unlearn.training.arguments import UnlearningArguments

NEEDED = {"run": "--method gd --model m --output o", "merge": "--adapter a --output o", "path": ""}


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("run --learning-rate 1", "--learning-rate: no such option; did you mean --learning_rate?"),
        ("run -learning_rat=1", "-learning_rat: no such option; did you mean --learning_rate?"),
        ("audit --batch 4", "--batch: no such option; did you mean --batch_size?"),
        ("merge x-y --out_put z --xyzzy", "--out_put: no such option; did you mean --output?"),
        ("path --gpu 1", "--gpu: no such option; see --help"),
    ],
)
def test_an_unknown_option_is_named_with_the_one_that_was_probably_meant(words, answer, command):
    name, *_ = words.split()
    code, out, err = command(*words.split(), *NEEDED.get(name, "--model m --output o").split())
    assert (code, out) == (2, "")
    assert err == f"lume-unlearn {name}: {answer}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("run", "the following arguments are required: method, model, output"),
        ("report", "the following arguments are required: results"),
        ("run --model", "argument --model: expected one argument"),
        ("compare --seeds x", "--seeds: Expected a <class 'int'>. Got value: x"),
        (
            "finetune --rows some --model m --output o",
            "--rows: Expected a typing.Literal['all', 'retain']. Got value: some",
        ),
        ("run --method gd --model m --output o --learning_rate fast", "could not convert string to float: 'fast'"),
        (
            "audit --model m --output o --keep 1",
            "--keep: Not of type Share: 1 does not conform to restriction v>=0 and v<1",
        ),
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
    sources.warn_once.cache_clear()
    monkeypatch.setattr("lume_tasks.data.fetch.fetch", lambda: data_dir)
    with caplog.at_level(logging.WARNING, "lume_unlearn"):
        sources.named_directory(str(data_dir))
        monkeypatch.setenv("LUME_DATA_DIR", str(data_dir))
        sources.Source().loaded()
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

    sources.warn_once.cache_clear()
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
