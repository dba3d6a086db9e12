"""Unusual tokenizers and models train, save and score correctly, or are refused with the reason."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from lume_tasks.errors import DataError
from lume_unlearn.errors import ConfigError
from tests.conftest import assert_same_weights, make_model, make_tokenizer
from tests.faults.runs import make, nll_by_hand, record

pytestmark = pytest.mark.faults


def save(folder: Path, model: Any, tokenizer: Any) -> Path:
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


def test_padding_of_the_tokenizer_does_not_change_training(inputs, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    model = save(tmp_path, make_model(attention_dropout=0.1), tokenizer)
    baseline = make(inputs, tmp_path / "baseline", save_strategy="no")()
    other = make(inputs, tmp_path / "other", save_strategy="no", model=str(model))()
    assert_same_weights(baseline, other)


@pytest.mark.parametrize(
    ("model", "bos"),
    [({}, True), ({"tie_word_embeddings": True}, False), ({"vocab_size": 512}, False)],
    ids=["bos", "tied", "larger vocabulary"],
)
def test_a_saved_model_scores_as_it_was_trained(model, bos, inputs, tmp_path):
    before = save(tmp_path, make_model(**model), make_tokenizer(bos=bos))
    output = make(inputs, tmp_path / "out", "gd", "full", model=str(before), learning_rate=3e-3)()
    assert record(output)["monitored"][-1]["forget_nll"] == pytest.approx(
        nll_by_hand(output, inputs, "forget"), rel=1e-4
    )
    loaded = AutoModelForCausalLM.from_pretrained(output)
    same = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert same is ("tie_word_embeddings" in model)


def test_a_tokenizer_without_eos_or_with_more_tokens_than_the_model_is_refused(inputs, tmp_path):
    endless = make_tokenizer()
    endless.eos_token = None
    for vocabulary, tokenizer, message in (
        (400, endless, "the tokenizer has no EOS token, so a model could not learn"),
        (300, make_tokenizer(), r"--model: token id \d+ is outside the embedding table"),
    ):
        model = save(tmp_path, make_model(vocabulary), tokenizer)
        with pytest.raises((ConfigError, DataError), match=message):
            make(inputs, tmp_path / "out", model=str(model))()


def test_code_of_a_model_is_not_run(inputs, tmp_path):
    model = save(tmp_path, make_model(), make_tokenizer())
    (model / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    config = (model / "config.json").read_text().replace('"model_type": "llama"', '"model_type": "own"')
    auto = '{"auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"},'
    (model / "config.json").write_text(config.replace("{", auto, 1))
    with pytest.raises(ConfigError, match="trust_remote_code"):
        make(inputs, tmp_path / "out", model=str(model))()
    assert not (tmp_path / "ran").exists()
