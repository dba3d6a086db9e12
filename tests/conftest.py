"""Models, tokenizers and rows small enough to be made in the test run itself."""

import gc
import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is imported

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from lume_tasks.data.rows import Row
from lume_unlearn.cli import main as cli
from lume_unlearn.methods.registry import METHODS, method_of
from lume_unlearn.training.arguments import UnlearningArguments
from lume_unlearn.training.relearning import relearning
from lume_unlearn.training.run import run

torch.set_num_threads(1)  # tiny models; more threads only wait for each other on a shared machine

REAL = {name: os.environ.get(name) for name in ("LUME_DATA_DIR", "LUME_MMLU_PATH", "LUME_MODELS_DIR")}

TEXTS = [
    "The quick brown fox jumps over the lazy dog near the river.",
    "What is the birth date of Ada? 1990-01-02",
    "Élodie wrote to élan@example.org about the naïve café.",
    "Numbers: 0 1 2 3 4 5 6 7 8 9 and signs: . , ? ! ' \" - @ :",
]


def make_tokenizer(bos: bool = False, vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """A byte-level BPE; with ``bos`` it puts one in front, as Llama's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<eos>", *(["<bos>"] if bos else [])]
    tokenizer.train_from_iterator(
        TEXTS * 4,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>" if bos else None
    )


def make_model(vocab_size: int = 400, seed: int = 0, family: str = "llama", **options: Any) -> Any:
    """A two-layer model of width 32 with random weights, float32; the options change its configuration."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"vocab_size": vocab_size, "hidden_size": 32, "intermediate_size": 64}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"max_position_embeddings": 512, "initializer_range": 0.2}
    special = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(sizes | special | options))).eval()


def loaded_with_adapter(folder: Path, config: Any) -> Any:
    """`make_model` with a random adapter, which transformers, not PEFT, loads from ``folder``."""
    torch.manual_seed(1)
    get_peft_model(make_model(), config).save_pretrained(folder)
    model = make_model()
    model.load_adapter(folder, is_trainable=True)
    return model


def make_rows(side: str, count: int = 6) -> list[Row]:
    """Rows of all tasks and kinds, of very different lengths."""
    rows = []
    for i in range(count):
        kind = "sc1" if i % 2 == 0 else "qa0"
        text = f"{side} row {i} about " + "the river and the fox " * (i % 3 * 3)
        rows.append(Row(f"{side}-{i // 2}-{kind}", text.strip(), f"answer {side} {i * 7}", f"Task{i // 2 % 3 + 1}"))
    return rows


def trained_copy(model: Any, tokenizer: Any, rows: Sequence[Row], **options: Any) -> Any:
    """A copy of a model that was trained on rows; see `relearning`."""
    *_, (_, trained) = relearning(model, tokenizer, rows, **options)
    return trained


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write rows as JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(vars(row), ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def saved_weights(folder: Path | str) -> dict[str, torch.Tensor]:
    """Load the model or adapter of a folder."""
    (file,) = Path(folder).glob("*.safetensors")
    return load_file(file)


def assert_same_weights(one: Path | str, other: Path | str) -> None:
    ours, theirs = saved_weights(one), saved_weights(other)
    assert ours.keys() == theirs.keys()
    assert all(value.equal(theirs[name]) for name, value in ours.items())


def read_run(folder: Path | str) -> dict[str, Any]:
    """Return the record of a run."""
    return json.loads((Path(folder) / "unlearning.json").read_text())  # type: ignore[no-any-return]


def logged_steps(folder: Path | str) -> list[dict[str, Any]]:
    return [entry for entry in read_run(folder)["history"] if "loss" in entry]


@pytest.fixture(scope="module", autouse=True)
def little_to_collect() -> Iterator[None]:
    """Trainer collects garbage at each start: let it not look through all that was imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def bos_tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(bos=True)


@pytest.fixture
def model() -> LlamaForCausalLM:
    return make_model()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A model and its tokenizer as a folder that transformers loads."""
    folder = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bos_model_dir(tmp_path_factory: pytest.TempPathFactory, bos_tokenizer: PreTrainedTokenizerFast) -> Path:
    """The same with a tokenizer that puts a BOS in front."""
    folder = tmp_path_factory.mktemp("bos_model")
    make_model().save_pretrained(folder)
    bos_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with 12 rows a side, members and non-members, and two MMLU-like subjects."""
    from datasets import Dataset

    folder = tmp_path_factory.mktemp("data")
    for side in ("forget", "retain"):
        write_rows(folder / f"{side}.jsonl", make_rows(side, 12))
    (folder / "mia_data").mkdir()
    for name in ("member", "nonmember"):
        lines = [json.dumps({"document": f"{name} text {i}: {TEXTS[i % 4]}"}) for i in range(8)]
        (folder / "mia_data" / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for subject, count in (("high_school_counting", 8), ("letters", 5)):
        (folder / "mmlu" / subject).mkdir(parents=True)
        rows = [
            {"question": f" {subject} question {i}?", "subject": subject, "choices": list("wxyz"), "answer": i % 4}
            for i in range(count)
        ]
        Dataset.from_list(rows).to_parquet(folder / "mmlu" / subject / "test-00000-of-00001.parquet")
    return folder


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """(words) to the exit code, stdout and stderr of this lume-unlearn command, run in this process."""

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code: object = cli.main([str(word) for word in words])
        except SystemExit as leaving:  # as jsonargparse exits
            code = leaving.code
        assert isinstance(code, int)
        return code, *capsys.readouterr()

    return call


def start_run(method: str, model: str, output: str, **options: Any) -> Path:
    """Call `run`; the options are its own, hyperparameters of the method, and fields of `UnlearningArguments`."""
    params = {name: options.pop(name) for name in METHODS[method].params() if name in options}
    own = {name: options.pop(name) for name in UnlearningArguments.__dataclass_fields__ if name in options}
    return run(model, UnlearningArguments(output_dir=output, **own), method_of(method, **params), **options)


RunMaker = Callable[..., Callable[[], Path]]


@pytest.fixture
def make_run(model_dir: Path, data_dir: Path, tmp_path: Path) -> RunMaker:
    """(method, output, options) to a function that does this run of six optimiser steps over twelve pairs.

    Options are those of `start_run`.
    """

    def make(method: str, output: str = "out", **options: Any) -> Callable[[], Path]:
        plain: dict[str, Any] = {"model": str(model_dir), "output": str(tmp_path / output), "data": str(data_dir)}
        plain |= {"num_train_epochs": 2, "per_device_train_batch_size": 4, "max_tokens": 200, "learning_rate": 3e-3}
        plain |= {"warmup_steps": 0.0, "lora_rank": 4, "seed": 0, "disable_tqdm": True} | options
        if "forget" in plain:
            del plain["data"]
        return partial(start_run, method, **plain)

    return make


@pytest.fixture(scope="session", autouse=True)
def no_real_data() -> Iterator[None]:
    """Hide the real data from tests that do not ask for it by a fixture."""
    with pytest.MonkeyPatch.context() as patch:
        for name in REAL:
            patch.delenv(name, raising=False)
        yield


def real_data(name: str) -> Path:
    """The folder that a variable named when the tests were started."""
    folder = REAL[name]
    if folder is None:
        pytest.skip(f"{name} is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def lume_data() -> Path:
    """The real LUME data."""
    return real_data("LUME_DATA_DIR")


@pytest.fixture(scope="session")
def mmlu_data() -> Path:
    """The real MMLU."""
    return real_data("LUME_MMLU_PATH")


@pytest.fixture(scope="session")
def lume_models() -> Path:
    """The folder of the checkpoints trained on LUME."""
    return real_data("LUME_MODELS_DIR")
