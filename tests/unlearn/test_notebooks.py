"""What happens in notebooks: an adapter that was trained before, a cell that is run twice, tables, early ends."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import TrainerCallback

from lume_tasks.errors import DataError
from lume_unlearn import ConfigError, Method, UnlearningArguments, finetune, merge, unlearn
from lume_unlearn.data.documents import text_rows
from lume_unlearn.data.rows import as_rows
from lume_unlearn.methods.base import Needs
from lume_unlearn.training.callbacks import memorised
from tests.conftest import make_model
from tests.unlearn.test_objects import FORGET, adapted, make_trainer, saved


class Stops(TrainerCallback):
    """Ends the training after a step, or breaks it off."""

    def __init__(self, step: int, error: bool = False) -> None:
        self.step, self.error = step, error

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            if self.error:
                raise KeyboardInterrupt
            control.should_training_stop = True


def with_adapter(**options: Any) -> Any:
    return get_peft_model(make_model(), LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", **options))


@pytest.mark.parametrize(("method", "said"), [("kl", True), ("swap", False), ("npo", False)])
def test_a_trained_adapter_that_the_reference_lacks_is_said(method, said, tokenizer, tmp_path, caplog):
    args = UnlearningArguments(str(tmp_path / "target"), num_train_epochs=1, learning_rate=1e-2, disable_tqdm=True)
    model = adapted() if method == "swap" else finetune(adapted(), tokenizer, FORGET, args, until=0)
    make_trainer(tmp_path / "out", tokenizer, model, method, max_steps=1).train()
    assert ("merge it first" in caplog.text) is said


@pytest.mark.parametrize(
    ("options", "method", "fault"),
    [
        ({"modules_to_save": ["lm_head"]}, "kl", "modules_to_save, which is not supported with kl"),
        ({"use_dora": True}, "task-vector", "use_dora"),
        ({"bias": "all"}, "task-vector", "bias"),
    ],
)
def test_an_adapter_that_cannot_be_switched_off_is_refused(options, method, fault, tokenizer, tmp_path):
    with pytest.raises(ConfigError, match=f"^model: its adapter has {fault}"):
        make_trainer(tmp_path, tokenizer, with_adapter(**options), method)


def test_only_lora_is_supported_by_any_name(tokenizer, tmp_path):
    other = get_peft_model(make_model(), IA3Config(task_type="CAUSAL_LM"))
    with pytest.raises(ConfigError, match="of the kind IA3Config; only LoRA"):
        make_trainer(tmp_path, tokenizer, other)
    config = LoraConfig(r=3, target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = make_trainer(tmp_path, tokenizer, get_peft_model(make_model(), config, adapter_name="mine"))
    assert trainer.record.content["lora"]["lora_rank"] == 3


def test_a_second_training_in_the_same_folder_is_refused(tokenizer, tmp_path):
    make_trainer(tmp_path, tokenizer, save_steps=2, save_strategy="steps").train()
    with pytest.raises(ConfigError, match=r"checkpoint-4: belongs to another training.*resume_from_checkpoint=True"):
        make_trainer(tmp_path, tokenizer, save_steps=2, save_strategy="steps").train()
    make_trainer(tmp_path, tokenizer, save_strategy="no").train()


@pytest.mark.parametrize("options", [{"robust": "path"}, {"on_collapse": "rollback", "monitor_steps": 1}])
def test_a_checkpoint_of_another_folder_is_continued_with_all_its_state(options, tokenizer, tmp_path):
    plain = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None, "path_every": 4, **options}
    plain = plain if "robust" in options else {name: plain[name] for name in plain if name != "path_every"}
    whole = make_trainer(tmp_path / "old", tokenizer, method="npo", **plain)
    whole.train()
    again = make_trainer(tmp_path / "new", tokenizer, method="npo", **plain)
    again.train(resume_from_checkpoint=str(tmp_path / "old" / "checkpoint-2"))
    assert all(weight.equal(saved(again)[name]) for name, weight in saved(whole).items())


def test_a_training_that_its_callback_ended_is_measured_at_its_end(tokenizer, tmp_path):
    trainer = make_trainer(tmp_path, tokenizer, callbacks=[Stops(3)])
    trainer.train()
    assert [entry["step"] for entry in trainer.monitor.measured] == [0, 3]
    assert trainer.summary().startswith("3 optimiser steps")


def test_a_training_that_ended_itself_leaves_no_checkpoint_to_train_on(tokenizer, tmp_path, monkeypatch):
    collapsing = {"learning_rate": 0.5, "on_collapse": "rollback", "monitor_steps": 2, "save_strategy": "epoch"}
    trainer = make_trainer(tmp_path / "rollback", tokenizer, method="ga", **collapsing)
    trainer.train()
    assert trainer.monitor.rolled_back
    assert not list((tmp_path / "rollback").glob("checkpoint-*"))
    monkeypatch.setattr(memorised.Memorised, "share", lambda *args: 1.0)
    options = {"num_train_epochs": 3, "save_strategy": "epoch", "disable_tqdm": True}
    finetune(make_model(), tokenizer, FORGET, UnlearningArguments(str(tmp_path / "until"), **options))
    assert not list((tmp_path / "until").glob("checkpoint-*"))


def test_finetune_cuts_rows_whose_output_begins_beyond_max_length(tokenizer, tmp_path):
    long = {"input": "word " * 40, "output": "end", "task": "own", "kind": "sc"}
    args = UnlearningArguments(str(tmp_path), num_train_epochs=1, max_length=20, disable_tqdm=True)
    finetune(make_model(), tokenizer, [long], args)


@pytest.mark.parametrize(
    ("unseen", "what"),
    [
        (pd.DataFrame({"document": ["a text"]}), "a DataFrame"),
        ({"document": ["a text"]}, "a dict"),
        (Dataset.from_dict({"document": ["a text"]}), "a Dataset"),
        ([{"document": "a text"}], "of dict"),
    ],
)
def test_a_table_is_no_list_of_texts(unseen, what):
    with pytest.raises(ConfigError, match=f"give a list of texts, not {what}"):
        text_rows(unseen)


def test_alternatives_are_a_dictionary(tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="alternatives: give a dictionary of row ids and texts, not a list"):
        make_trainer(tmp_path, tokenizer, method="dpo", alternatives=[{"id": "a", "alternative": "b"}])


def test_rows_with_the_same_fault_are_told_the_fault():
    rows = pd.DataFrame([{"input": "a?", "output": 1}, {"input": "b?", "output": 2}])
    with pytest.raises(DataError, match=r"row 1: .*output"):
        as_rows(rows)


@dataclass
class Near(Method):
    """Keeps the NLL of retain rows near the reference, which forget rows do not need."""

    needs = Needs(reference_nll=("retain",))

    def forget_loss(self, batch: Any) -> Any:
        return -batch.forget.values.sum() / batch.counts.tokens("forget")

    def retain_loss(self, rows: Any, counts: Any) -> Any:
        return (rows.values - rows.reference).abs().sum() / counts.tokens("retain")


@pytest.mark.parametrize("robust", ["none", "sam"])
def test_a_method_may_need_the_reference_of_retain_rows_alone(robust, tokenizer, tmp_path):
    trainer = make_trainer(tmp_path, tokenizer, method=Near, robust=robust)
    trainer.train()
    first = next(entry for entry in trainer.state.log_history if "retain_loss" in entry)
    assert first["retain_loss"] == pytest.approx(0, abs=1e-5)


def test_phases_end_before_max_steps(tokenizer, tmp_path):
    with pytest.raises(ConfigError, match=r"^--max_steps 99: sugd has \d+ steps; raise --num_train_epochs"):
        make_trainer(tmp_path, tokenizer, method="sugd", num_train_epochs=1, max_steps=99)


def test_folders_may_be_paths_and_wrong_names_are_named(tokenizer, tmp_path):
    adapted().save_pretrained(tmp_path / "adapter")
    make_model().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert load_file(tmp_path / "merged" / "model.safetensors")
    with pytest.raises(ConfigError, match="--dtype fp16: choose float32 or bfloat16"):
        merge(tmp_path / "base", tmp_path / "adapter", dtype="fp16")
    with pytest.raises(ConfigError, match="foo"):
        unlearn(str(tmp_path), str(tmp_path), str(tmp_path), str(tmp_path), method="foo")
    assert isinstance(merge(make_model(), str(tmp_path / "adapter"), dtype=torch.bfloat16), torch.nn.Module)
    assert Path(tmp_path / "merged").is_dir()


def test_tasks_without_the_default_metric_need_another_one(tokenizer, tmp_path):
    with pytest.raises(ConfigError, match=r"^--evaluate_tasks: lacks lume_score, .*--metric_for_best_model"):
        make_trainer(tmp_path, tokenizer, eval_strategy="epoch", evaluate_tasks="lume_rows")
