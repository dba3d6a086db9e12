"""Unusual tokenizers and models train, save and score correctly, or are refused with the reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lume_tasks.data.files import read_rows
from lume_tasks.errors import DataError
from lume_unlearn.errors import ConfigError
from lume_unlearn.training.run import run
from tests.conftest import make_model, make_tokenizer
from tests.faults.runs import make_config, record

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("little_to_collect")]


def save(folder: Path, model: Any, tokenizer: Any) -> Path:
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


def final_nll(inputs: Path, model: Path, output: Path) -> tuple[float, float]:
    """NLL of the forget rows at the end: (in the record, from the saved model and tokenizer row by row)."""
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(output).eval(), AutoTokenizer.from_pretrained(output)
    nlls = []
    for row in read_rows(inputs / "data" / "forget.jsonl"):
        prompt, ids = tokenizer.encode(row.input), tokenizer.encode(f"{row.input} {row.output}")
        ids = [*ids, tokenizer.eos_token_id]
        with torch.no_grad():
            lines = loaded(torch.tensor([ids])).logits[0].log_softmax(-1)
        nlls += [-lines[place - 1, ids[place]].item() for place in range(len(prompt), len(ids))]
    return record(output)["watched"][-1]["forget_nll"], sum(nlls) / len(nlls)


def tied(vocabulary: int) -> LlamaForCausalLM:
    config = make_model(vocabulary).config
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig.from_dict(config.to_dict())).eval()


def test_padding_of_the_tokenizer_does_not_change_training(inputs: Path, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    model = save(tmp_path, make_model(dropout=0.1), tokenizer)
    baseline = run(make_config(inputs, tmp_path / "baseline", save_steps=0))
    other = run(make_config(inputs, tmp_path / "other", save_steps=0, model=str(model)))
    name = "adapter_model.safetensors"
    assert (baseline / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.parametrize(
    ("model", "bos"),
    [(make_model, True), (tied, False), (lambda vocabulary: make_model(vocabulary + 112), False)],
    ids=["bos", "tied", "larger vocabulary"],
)
def test_a_saved_model_scores_as_it_was_trained(
    model: Callable[[int], Any], bos: bool, inputs: Path, tmp_path: Path
) -> None:
    before = save(tmp_path, model(400), make_tokenizer(bos=bos))
    output = run(make_config(inputs, tmp_path / "out", "gd", "full", model=str(before), learning_rate=3e-3))
    recorded, found = final_nll(inputs, before, output)
    assert recorded == pytest.approx(found, rel=1e-4)
    loaded = AutoModelForCausalLM.from_pretrained(output)
    same = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert same is (model is tied)


def test_without_eos_is_refused(inputs: Path, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    model = save(tmp_path, make_model(), tokenizer)
    with pytest.raises(DataError, match="the tokenizer has no EOS token, so a model could not learn"):
        run(make_config(inputs, tmp_path / "out", model=str(model)))


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(inputs: Path, tmp_path: Path) -> None:
    model = save(tmp_path, make_model(300), make_tokenizer())
    with pytest.raises(ConfigError, match=r"--model .*: token id \d+ is outside the embedding table"):
        run(make_config(inputs, tmp_path / "out", model=str(model)))


def test_code_of_a_model_is_not_run(inputs: Path, tmp_path: Path) -> None:
    model = save(tmp_path, make_model(), make_tokenizer())
    (model / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    config = (model / "config.json").read_text().replace('"model_type": "llama"', '"model_type": "own"')
    auto = '{"auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"},'
    (model / "config.json").write_text(config.replace("{", auto, 1))
    with pytest.raises(ConfigError, match="trust_remote_code"):
        run(make_config(inputs, tmp_path / "out", model=str(model)))
    assert not (tmp_path / "ran").exists()
