"""The loss attack's requests: exact for every tokenizer, through the harness's own model class."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lume_tasks.data import published
from lume_tasks.errors import DataError
from lume_tasks.tasks import mia
from lume_tasks.tasks.model_checks import load_tokenizer

DOCUMENTS = [
    "The quick brown fox jumps over the lazy dog.",
    "A",  # one token: only a tokenizer that puts a BOS in front can score it
    "Numbers: 0 1 2",
    "T he",
    "the river\n\nthe  river\t",
    "Ada wrote to élan@example.org about the naïve café 日本語 🙂.",
    "The end   \n ",
    "fox \n fox",
    "'s word",
    "1990-01-02 " * 20,
]


def plain_loss(model: LlamaForCausalLM, tokenizer: Any, document: str) -> float:
    """The benchmark's own computation."""
    ids = torch.tensor([tokenizer(document).input_ids])
    with torch.no_grad():
        return float(model(ids, labels=ids).loss)


def harness_losses(lm: HFLM, requests: list[dict[str, Any]]) -> list[float]:
    instances = [Instance("loglikelihood", {}, (one["context"], one["continuation"]), 0) for one in requests]
    answers = lm.loglikelihood(instances, disable_tqdm=True)
    return [-ll / request["scored_tokens"] for (ll, _), request in zip(answers, requests, strict=True)]


@pytest.fixture(params=["no BOS", "BOS in front", "in front, switched off", "BOS that it does not use", "EOS as BOS"])
def any_tokenizer(request: pytest.FixtureRequest, model_dir: Path, bos_model_dir: Path) -> PreTrainedTokenizerFast:
    folder = bos_model_dir if "in front" in request.param else model_dir
    off = {"add_bos_token": False} if "off" in request.param else {}
    tokenizer = load_tokenizer({"pretrained": str(folder)} | off)
    if "does not use" in request.param:
        tokenizer.add_special_tokens({"bos_token": "<pad>"})
    if "as BOS" in request.param:
        tokenizer.bos_token = tokenizer.eos_token
    return tokenizer


def test_losses_are_those_of_the_plain_model(any_tokenizer: PreTrainedTokenizerFast, model: LlamaForCausalLM) -> None:
    documents = [text for text in DOCUMENTS if len(any_tokenizer.encode(text)) > 1]
    assert len(documents) >= len(DOCUMENTS) - 1
    requests = mia.mia_requests(any_tokenizer, {"member": documents})["member"]
    lm = HFLM(pretrained=model, tokenizer=any_tokenizer, batch_size=3, device="cpu")
    wanted = [plain_loss(model, any_tokenizer, document) for document in documents]
    assert harness_losses(lm, requests) == pytest.approx(wanted, abs=1e-5)
    assert len(set(wanted)) == len(wanted)


def test_faulty_documents_are_left_out_and_counted_or_refused_by_name(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    documents = {"member": ["The fox", "\nThe fox", "Z"], "nonmember": ["日本語", "The dog"]}
    found = mia.mia_requests(tokenizer, documents)
    assert {name: [doc["number"] for doc in docs] for name, docs in found.items()} == {"member": [1], "nonmember": [2]}
    assert "lume_mia: 3 documents are left out" in caplog.text
    with pytest.raises(DataError, match="document 1"):
        mia.mia_requests(tokenizer, {"member": ["The fox"], "nonmember": ["日本語"]})
    # The published documents are scored all or not at all.
    texts = [[name == "member", text] for name in documents for text in documents[name]]
    monkeypatch.setattr(published, "MIA", published.documents_digest(texts))
    with pytest.raises(DataError) as error:
        mia.mia_requests(tokenizer, documents)
    _, *lines = str(error.value).splitlines()
    named = [line.partition(": ")[0].strip() for line in lines]
    assert named == ["member document 2", "member document 3", "nonmember document 1"]
    assert "white space or part of a character" in lines[0]
    assert "fewer than two tokens" in lines[1]


def test_bos_text_in_front_of_a_bos_is_refused(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    # The harness takes the one for the other and would leave a token out.
    with pytest.raises(ValueError, match="starts with the text of the tokenizer's BOS"):
        mia.split_document(bos_tokenizer, "<bos>The fox")


def test_tokenizer_by_name_by_object_and_by_model(model_dir: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    text = "The quick brown fox"
    model = LlamaForCausalLM.from_pretrained(model_dir)
    for metadata in (
        {"tokenizer": model_dir},
        {"tokenizer": str(model_dir), "pretrained": "no/such-model", "gguf_file": "model.gguf"},
        {"pretrained": str(model_dir), "dtype": "float32", "use_fast_tokenizer": True, "trust_remote_code": False},
        {"pretrained": model},
        {"model": str(model_dir), "base_url": "http://localhost"},
    ):
        assert load_tokenizer(metadata).encode(text) == tokenizer.encode(text)
    assert load_tokenizer({"tokenizer": tokenizer, "pretrained": "no/such-model"}) is tokenizer


def test_no_tokenizer_or_one_that_cannot_be_loaded_is_a_clear_error() -> None:
    with pytest.raises(DataError, match=r"--metadata '\{\"tokenizer\".* simple_evaluate\(.*TaskManager\(metadata="):
        load_tokenizer({"lume_split": "all"})
    for name in ("no-such/model", "/no/such/folder"):
        with pytest.raises(DataError, match=rf"(?s)could not load the tokenizer '{name}'.*--metadata"):
            load_tokenizer({"pretrained": name})
