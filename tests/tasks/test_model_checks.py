"""What the tasks refuse of a model and of its options, because it would silently score something else than LUME."""

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from lume_tasks.errors import DataError
from lume_tasks.models.hf import LumeHF
from tests.conftest import make_model, make_tokenizer


def make(kind: type[HFLM], folder: Path, **options: Any) -> HFLM:
    return kind(**{"pretrained": str(folder), "device": "cpu", "batch_size": 4} | options)


@pytest.mark.parametrize("changed", ["max_gen_toks=64", "do_sample=True,temperature=0.7", "until=.", "num_beams=2"])
def test_other_generation_options_are_refused(manager: Any, fake_lm: Any, changed: str) -> None:
    with pytest.raises(DataError, match=rf"^lume_task1: LUME generates greedily.* leave {changed.split('=')[0]}="):
        simple_evaluate(fake_lm(), tasks=["lume_task1"], task_manager=manager(), gen_kwargs=changed)


@pytest.mark.parametrize(
    ("task", "max_length", "fault"),
    [
        ("lume_task1", 270, r"max_length\), and 4 of 8 texts.*rows out .*\n  row \"retain-0-qa0\": \d+ tokens, 14 fit"),
        ("lume_mia", 20, r"\n  member document 1: \d+ tokens, 21 fit"),
        ("lume_memorization_task1", 9, r"\n  row \"\S+\": \d+ tokens, 10 fit"),
    ],
)
def test_texts_that_would_be_cut_are_refused_by_name(run, model_dir, task, max_length, fault) -> None:
    with pytest.raises(DataError, match=rf"(?s)^{task}: the model reads {max_length} tokens .*{fault}"):
        run(make(LumeHF, model_dir, max_length=max_length), task)


def test_a_tokenizer_without_eos_is_refused(run: Any, model_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="lume_task1: the tokenizer has no EOS token"):
        run(make(HFLM, model_dir, tokenizer=tokenizer), "lume_task1")


@pytest.mark.parametrize("kind", [HFLM, LumeHF])
def test_a_model_that_does_not_know_eos_is_refused_in_batches(run, model_dir, kind, monkeypatch) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    model.lm_head.weight.data[1] *= 3  # says EOS after some prompts early
    model.generation_config.eos_token_id = None
    tokenizer = AutoTokenizer.from_pretrained(model_dir)

    def answers(batch_size: int) -> list[str]:
        lm = kind(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=batch_size)
        samples = run(lm, "lume_task1", gen_kwargs={"max_gen_toks": 12})["samples"]["lume_task1"]
        return [sample["resps"][0][0] for sample in samples]

    wanted = answers(1)
    with pytest.raises(DataError, match=r"eos_token_id is None, the tokenizer's EOS is 1: .* --batch_size 1"):
        answers(4)
    monkeypatch.setattr("lume_tasks.tasks.model_checks.check_end", lambda *_: None)
    assert answers(4) != wanted  # the texts that the check prevents


def test_the_limit_of_new_tokens_is_never_the_models_own(run: Any, model_dir: Path) -> None:
    def answers(kind: type[HFLM], most: int | None) -> list[str]:
        lm = make(kind, model_dir)
        lm.model.generation_config.max_new_tokens = most
        samples = run(lm, "lume_task1", gen_kwargs={"max_gen_toks": 12})["samples"]["lume_task1"]
        assert lm.model.generation_config.max_new_tokens == most
        return [sample["resps"][0][0] for sample in samples]

    wanted = answers(HFLM, None)
    for most in (3, 20):
        assert answers(LumeHF, most) == wanted
        with pytest.raises(DataError, match=rf"max_new_tokens={most}, .* limit of 12 .* generation_config\.json"):
            answers(HFLM, most)
    assert answers(HFLM, 12) == wanted


def test_options_of_the_model_that_change_greedy_texts_are_warned_of(run: Any, model_dir: Path, caplog: Any) -> None:
    lm = make(LumeHF, model_dir)
    lm.model.generation_config.update(repetition_penalty=1.05, num_beams=1, suppress_tokens=[7], no_repeat_ngram_size=0)
    for options in ({}, {"repetition_penalty": 1.0}):
        run(lm, "lume_task1", limit=1, gen_kwargs={"max_gen_toks": 2} | options)
        run(lm, "lume_task2", limit=1, gen_kwargs={"max_gen_toks": 2} | options)
    warned = [record.getMessage() for record in caplog.records if record.name == "lume_tasks"]
    assert [re.findall(r"json has (.*), which", text) for text in warned] == [
        ["repetition_penalty=1.05, suppress_tokens=[7]"],
        ["suppress_tokens=[7]"],
    ]


def test_a_prefix_that_is_not_bos_is_refused(run: Any, bos_model_dir: Path) -> None:
    metadata = {"tokenizer": str(bos_model_dir)}
    with pytest.raises(DataError, match=r"lume_mia: prefix_token_id=5 .* the tokenizer's BOS \(2\)"):
        run(make(HFLM, bos_model_dir, prefix_token_id=5), "lume_mia", metadata=metadata)
    run(make(HFLM, bos_model_dir, prefix_token_id=2), "lume_mia", metadata=metadata)


class WithoutBos(HFLM):
    """Leaves out special tokens, as API backends do."""

    def tok_encode(self, string: str, add_special_tokens: bool | None = False, **options: Any) -> list[int]:
        return super().tok_encode(string, add_special_tokens=add_special_tokens, **options)


def test_a_backend_that_leaves_bos_out_is_refused(run: Any, bos_model_dir: Path, monkeypatch: Any) -> None:
    metadata = {"tokenizer": str(bos_model_dir)}
    lm = make(WithoutBos, bos_model_dir)
    for task in ("lume_task1", "lume_memorization_task1"):
        with pytest.raises(DataError, match=rf"{task}: the tokenizer begins each text .* add add_bos_token=True"):
            run(lm, task, metadata=metadata, limit=1)
    options: dict[str, Any] = {"limit": 1, "gen_kwargs": {"max_gen_toks": 2}}
    run(make(HFLM, bos_model_dir), "lume_task1", metadata=metadata, **options)
    run(lm, "lume_task1", metadata=metadata | {"add_bos_token": False}, **options)
    known = lm.tokenizer
    monkeypatch.setattr(lm, "tok_encode", lambda text: known.encode(text, add_special_tokens=False))
    lm.tokenizer = SimpleNamespace(bos_token_id=2, eos_token_id=known.eos_token_id)  # a server's
    with pytest.raises(DataError, match="the tokenizer begins each text"):
        run(lm, "lume_task1", metadata=metadata, limit=1)


@pytest.mark.parametrize("task", ["lume_mia", "lume_memorization_task1"])
def test_another_tokenizer_in_the_metadata_is_refused(run: Any, model_dir: Path, task: str) -> None:
    with pytest.raises(DataError, match=rf"{task}: the model scores \d+ tokens of .* name the model's own tokenizer"):
        run(make(HFLM, model_dir), task, metadata={"tokenizer": make_tokenizer(vocab_size=280)})


class OwnTemplateLM(TemplateLM):
    """Has no more than the harness asks of a subclass, and a tokenizer."""

    eot_token_id = 1
    generate_until = loglikelihood_rolling = HFLM.loglikelihood_rolling

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return list(self.tokenizer.encode(string))

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        return [(-float(len(continuation)), False) for _, _, continuation in requests]


def test_a_model_class_of_ones_own_needs_no_max_length(run: Any, tokenizer: Any) -> None:
    results = run(OwnTemplateLM(tokenizer), "lume_memorization_task1")
    assert results["results"]["lume_memorization_task1"]["forget_loss,none"] == 1


def test_an_endpoint_for_chats_is_refused(run: Any, fake_lm: Any) -> None:
    lm = fake_lm()
    lm.__class__ = type("LocalChatCompletion", (type(lm),), {})
    for chat in (True, False):
        with pytest.raises(
            DataError, match=r"lume_task1: LocalChatCompletion takes messages only .* local-completions"
        ):
            run(lm, "lume_task1", apply_chat_template=chat)


@pytest.fixture
def checkpoints(model_dir: Path, tmp_path: Path) -> list[Path]:
    """Two models of one shape."""
    other = shutil.copytree(model_dir, tmp_path / "other")
    make_model(seed=1).save_pretrained(other)
    return [model_dir, other]


def losses(run: Callable[..., Any], lm: HFLM, cache: Path | None = None) -> list[float]:
    results = run(lm, "lume_mia", use_cache=str(cache) if cache else None)
    return [sample["loss_auc"][1] for sample in results["samples"]["lume_mia"]]


def test_lume_hf_never_serves_another_models_cached_answers(run, checkpoints, tmp_path, caplog) -> None:
    cache = tmp_path / "answers"
    wanted = [losses(run, make(LumeHF, folder)) for folder in checkpoints]
    assert wanted[0] != wanted[1]
    assert [losses(run, make(LumeHF, folder), cache) for folder in checkpoints] == wanted
    again = make(LumeHF, checkpoints[0])
    again.model.register_forward_pre_hook(lambda *_: pytest.fail("the model was run again"))
    assert losses(run, again, cache) == wanted[0]
    assert "--use_cache" not in caplog.text


def test_lume_hf_serves_no_answers_of_another_tokenizer_or_limit_but_those_of_a_moved_folder(
    run: Any, model_dir: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(model_dir, tmp_path / "first")

    def runs_model(folder: Path, change: Callable[[HFLM], None] = lambda _: None) -> bool:
        lm, called = make(LumeHF, folder), []
        change(lm)
        lm.model.register_forward_pre_hook(lambda *_: called.append(True))
        run(lm, "lume_memorization_task1", use_cache=str(tmp_path / "answers"))
        return bool(called)

    def other_merges(lm: HFLM) -> None:
        lm.tokenizer.backend_tokenizer.add_tokens(["zq"])

    assert runs_model(folder)
    assert not runs_model(folder.rename(tmp_path / "moved"))
    assert runs_model(model_dir, other_merges)
    assert runs_model(model_dir, lambda lm: lm.model.generation_config.update(repetition_penalty=1.1))
    assert not runs_model(model_dir)


def test_another_models_cached_answers_are_warned_of(run, checkpoints, tmp_path, caplog) -> None:
    cache = tmp_path / "answers"
    caplog.set_level(logging.WARNING, "lume_tasks")
    for _ in range(2):
        run(make(HFLM, checkpoints[0]), "lume_mia", "lume_memorization_task1", use_cache=str(cache))
    assert "--use_cache" not in caplog.text
    losses(run, make(HFLM, checkpoints[1]), cache)
    warning = rf"answers_rank0.db was written with .*pretrained={checkpoints[0]}.*, this run has .*={checkpoints[1]}"
    assert caplog.text.count("use a separate file for each model") == 1
    assert re.search(warning, caplog.text)
