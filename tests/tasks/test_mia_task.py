"""All attacks through the stock harness, against plain PyTorch, with and without a reference model."""

import json
import logging
import math
import shutil
import sys
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lm_eval.models
import lm_eval.tasks
import numpy as np
import pytest
import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from lume_tasks import _startup
from lume_tasks.data.rows import Row
from lume_tasks.errors import DataError
from lume_tasks.metrics import attacks
from lume_tasks.metrics.token_scores import TokenScores
from lume_tasks.models.hf import LumeHF
from lume_tasks.paths import task_dir
from lume_tasks.tasks.mia import ATTACKS, SUMMARIES
from tests.conftest import TEXTS, make_model, make_rows, write_rows
from tests.tasks.conftest import FakeLM, token_values
from tests.tasks.conftest import numbers as task_numbers

WITH_REFERENCE = {"mia_gap", "s_mia", "distance_member_loss", "distance_nonmember_loss"}


@pytest.fixture(scope="session")
def reference_dir(tmp_path_factory: pytest.TempPathFactory, bos_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A model with other weights, and a tokenizer that puts a BOS in front, unlike the one of ``model_dir``."""
    folder = tmp_path_factory.mktemp("reference")
    make_model(seed=1).save_pretrained(folder)
    bos_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def lume_hf(model_dir: Path) -> Callable[..., LumeHF]:
    return partial(LumeHF, pretrained=str(model_dir), device="cpu", batch_size=4)


def plain_scores(folder: Path, text: str, fraction: float = 0.2) -> dict[str, float]:
    """Every attack on one document, from its definition, in float64, one document at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder).encode(text)
    loss = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss
    loss.backward()
    logp, mean, variance, _ = token_values(model, ids, 1)
    k = max(1, int(fraction * len(logp)))
    norms = [float(parameter.grad.norm()) for parameter in model.parameters()]
    return {
        "loss": -loss.item(),
        "zlib": -loss.item() / len(zlib.compress(text.encode("utf-8"))),
        "min_k": logp.sort()[0][:k].mean().item(),
        "min_k_plus_plus": ((logp - mean) / variance.sqrt()).sort()[0][:k].mean().item(),
        "gradnorm": -sum(norms) / len(norms),
    }


def text_of(sample: dict[str, Any]) -> str:
    return str(sample["doc"]["context"] + sample["doc"]["continuation"])


numbers = partial(task_numbers, task="lume_mia")


def names(*of: str) -> set[str]:
    return {f"{attack}_{summary}" for attack in of for summary in SUMMARIES} | {"mia_score", "members_unlearned"}


@pytest.mark.parametrize("fraction", [None, 0.4])
def test_attacks_are_those_of_the_plain_model(run, lume_hf, model_dir, fraction) -> None:
    options = {"lume_min_k": fraction, "lume_min_k_plus_plus": fraction} if fraction else {}
    results = run(lume_hf(gradnorm=True), "lume_mia", metadata=options)
    samples = results["samples"]["lume_mia"]
    members = [sample["doc"]["member"] for sample in samples]
    plain = [plain_scores(model_dir, text_of(sample), fraction or 0.2) for sample in samples]
    found = numbers(results)
    assert set(found) == names(*plain[0])
    for attack in plain[0]:
        for sample, scores in zip(samples, plain, strict=True):
            assert sample[f"{attack}_auc"] == (sample["doc"]["member"], pytest.approx(scores[attack], abs=1e-5))
        auc = roc_auc_score(members, [scores[attack] for scores in plain])
        assert found[f"{attack}_auc"] == pytest.approx(auc, abs=1e-12)
        scored = [sample[f"{attack}_auc"][1] for sample in samples]
        resampled = attacks.resampled_aucs(scored, members)
        ends = found[f"{attack}_auc_low"], found[f"{attack}_auc_high"]
        assert ends == pytest.approx(np.quantile(resampled, [0.025, 0.975]))
        for percent in (1, 5):
            assert found[f"{attack}_tpr_at_{percent}"] == attacks.tpr_at(percent / 100, scored, members)
    assert found["mia_score"] == pytest.approx(1 - 2 * abs(found["loss_auc"] - 0.5))
    assert len({round(found[f"{attack}_auc"], 6) for attack in plain[0]}) > 2


def test_stock_backends_get_what_sums_allow(run, model_dir, lume_hf, caplog) -> None:
    with caplog.at_level(logging.WARNING, "lume_tasks"):
        stock = run(HFLM(pretrained=str(model_dir), device="cpu", batch_size=4), "lume_mia")
        assert "per-token" not in caplog.text
        run(HFLM(pretrained=str(model_dir), device="cpu"), "lume_mia", metadata={"lume_min_k": 0.4})
    assert "lume_mia: lume_min_k needs per-token values" in caplog.text
    assert set(numbers(stock)) == names("loss", "zlib")
    ours = numbers(run(lume_hf(), "lume_mia"))
    assert set(ours) == names("loss", "zlib", "min_k", "min_k_plus_plus")
    assert {name: ours[name] for name in numbers(stock)} == pytest.approx(numbers(stock), abs=1e-12)


def test_one_class_alone_has_no_value_and_a_warning(run, lume_hf, caplog) -> None:
    with caplog.at_level(logging.WARNING, "lume_tasks"):
        found = numbers(run(lume_hf(), "lume_mia", limit=1))
    assert set(found) == names("loss", "zlib", "min_k", "min_k_plus_plus")
    assert {name for name, value in found.items() if not math.isnan(value)} == {"members_unlearned"}
    assert "the attacks have no value: only one class was scored (drop --limit)" in caplog.text


def test_other_tokens_than_expected_are_refused(run) -> None:
    answer = TokenScores(np.zeros(2, np.float32), None, None, np.ones(2, bool))
    with pytest.raises(DataError, match=r"the model scored 2 tokens of document 1, which has \d+ with the tokenizer"):
        run(FakeLM(str, lambda *_: answer), "lume_mia")


@pytest.fixture
def command(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """The command line on lume_mia; gives the results file that it wrote."""
    _startup.patch(lm_eval.models)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", partial(TaskManager, include_defaults=False))

    def command(folder, *more, model="lume-hf", args="", out="out", **metadata):
        words = ["lm_eval", "run", "--model", model, "--model_args", f"pretrained={folder}{args}", "--device", "cpu"]
        words += ["--tasks", "lume_mia", "--batch_size", "4", "--include_path", str(task_dir())]
        words += ["--output_path", str(tmp_path / out)]
        words += ["--metadata", json.dumps({"lume_data_dir": str(data_dir)} | metadata)]
        monkeypatch.setattr(sys, "argv", [*words, *more])
        cli_evaluate()
        return next((tmp_path / out).rglob("results_*.json"))

    return command


def test_command_line_with_a_reference(command, model_dir, reference_dir, capsys, tmp_path) -> None:
    command(reference_dir, "--log_samples", out="reference")
    capsys.readouterr()
    named = {"lume_reference_results": str(tmp_path / "reference")}
    results = command(model_dir, "--log_samples", args=",gradnorm=true", **named)
    found = numbers(json.loads(results.read_text()))
    assert set(found) == names(*ATTACKS) | WITH_REFERENCE | {"privleak"}
    log = next(results.parent.glob("samples_lume_mia_*.jsonl")).read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in log]
    members = [sample["doc"]["member"] for sample in samples]
    own = [plain_scores(model_dir, text_of(sample)) for sample in samples]
    theirs = [plain_scores(reference_dir, text_of(sample)) for sample in samples]
    gaps = [mine["loss"] - other["loss"] for mine, other in zip(own, theirs, strict=True)]
    for sample, gap in zip(samples, gaps, strict=True):
        assert sample["reference_auc"] == [sample["doc"]["member"], pytest.approx(gap, abs=1e-5)]
        assert sample["resps"][0][0][0] == str(float(sample["resps"][0][0][0]))  # a number, no array

    def auc(scores, attack):
        return roc_auc_score(members, [of[attack] for of in scores])

    assert found["mia_gap"] == pytest.approx(auc(own, "loss") - auc(theirs, "loss"), abs=1e-12)
    reference = auc(theirs, "loss")
    assert found["s_mia"] == pytest.approx(max(0, 1 - abs(auc(own, "loss") - reference) / reference), abs=1e-12)
    for kind in (True, False):
        same = [number for number, member in enumerate(members) if member == kind]
        losses = [[one[number]["loss"] for number in same] for one in (own, theirs)]
        assert found[f"distance_{'member' if kind else 'nonmember'}_loss"] == ks_2samp(*losses).statistic
    left, there = 1 - auc(own, "min_k"), 1 - auc(theirs, "min_k")
    assert found["privleak"] == pytest.approx(100 * (left - there) / there, abs=1e-6)
    assert found["reference_auc"] == pytest.approx(roc_auc_score(members, gaps), abs=1e-12)
    assert f"{found['reference_auc']:.4f}" in capsys.readouterr().out


def test_a_reference_equal_to_the_model_leaves_nothing_to_see(command, model_dir, caplog) -> None:
    reference = command(model_dir, "--log_samples", out="reference")
    found = numbers(json.loads(command(model_dir, lume_reference_results=str(reference)).read_text()))
    assert (found["mia_gap"], found["s_mia"], found["privleak"], found["reference_auc"]) == (0.0, 1.0, 0.0, 0.5)
    assert (found["distance_member_loss"], found["distance_nonmember_loss"]) == (0.0, 0.0)
    assert "privleak" not in caplog.text
    stock = command(model_dir, model="hf", out="stock", lume_reference_results=str(reference))
    assert set(numbers(json.loads(stock.read_text()))) == names("loss", "zlib", "reference") | WITH_REFERENCE
    assert "lume_reference_results needs per-token values" in caplog.text


def test_a_reference_with_another_share_of_tokens_is_refused(command, model_dir) -> None:
    reference = command(model_dir, "--log_samples", out="reference", lume_min_k=0.4)
    with pytest.raises(
        DataError, match=r"was run with lume_min_k 0\.4, this run has 0\.2; score both with the same lume_min_k"
    ):
        command(model_dir, lume_reference_results=str(reference))


@pytest.fixture
def members_dir(tmp_path: Path, data_dir: Path) -> Path:
    """The miniature data, of whose eight members two are forget rows of train, and none of validation."""
    folder = tmp_path / "members"
    shutil.copytree(data_dir / "mia_data", folder / "mia_data")
    rows = [Row(f"m{i}-sc1", f"member text {i}:", TEXTS[i % 4], "Task3") for i in (3, 5)]
    write_rows(folder / "train" / "forget.jsonl", rows)
    write_rows(folder / "validation" / "forget.jsonl", make_rows("forget"))
    return folder


@pytest.mark.parametrize(("split", "found"), [("train", 2), ("validation", 0)])
def test_members_that_the_split_does_not_forget_are_said(run, fake_lm, members_dir, split, found, caplog) -> None:
    metadata = {"lume_data_dir": str(members_dir), "lume_split": split}
    with caplog.at_level(logging.WARNING, "lume_tasks"):
        results = run(fake_lm(), "lume_mia", metadata=metadata)
    assert numbers(results)["members_unlearned"] == found / 8
    assert numbers(results)["loss_auc"] == 1.0
    assert f"only {found} of the 8 member documents are among the forget rows of split {split}." in caplog.text


def test_data_without_forget_rows_leaves_the_share_out(run, fake_lm, members_dir, caplog) -> None:
    for split in ("train", "validation"):
        shutil.rmtree(members_dir / split)
    with caplog.at_level(logging.WARNING, "lume_tasks"):
        found = numbers(run(fake_lm(), "lume_mia", metadata={"lume_data_dir": str(members_dir)}))
    assert set(found) == names("loss", "zlib") - {"members_unlearned"}
    assert f"no members_unlearned, which needs the forget rows: {members_dir} has no forget.jsonl" in caplog.text
