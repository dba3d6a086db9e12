"""`UnlearningTrainer` with objects in memory: a method of one's own, rows of any kind, a PEFT model, scores."""

import copy
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn.functional import kl_div, smooth_l1_loss
from transformers import AutoModelForCausalLM, TrainerCallback

from lume_tasks.errors import DataError
from lume_unlearn import ConfigError, Level, Method, UnlearningArguments, UnlearningTrainer, finetune, param
from lume_unlearn.data.documents import text_rows
from lume_unlearn.data.encode import Encoder
from lume_unlearn.data.rows import as_rows
from lume_unlearn.methods.base import Batch
from lume_unlearn.methods.swap import Swap
from lume_unlearn.training import trainer as trainer_module
from tests.conftest import loaded_with_adapter, make_model, make_rows, read_run
from tests.unlearn.rows import logits, nll

FORGET, RETAIN = make_rows("forget", 8), make_rows("retain", 5)


@dataclass
class Hinge(Method):
    """As a user writes it in a notebook."""

    margin: float = param(9.0, "NLL in nats up to which a token is pushed")

    def forget_loss(self, batch: Batch) -> Tensor:
        return (self.margin - batch.forget.values).clamp(min=0).sum() / batch.counts.tokens("forget")


def make_trainer(folder: Path, tokenizer: Any, model: Any = None, method: Any = Hinge, **options: Any) -> Any:
    """A trainer of four optimiser steps."""
    given = {"forget": FORGET, "retain": RETAIN}
    names = (*given, "alternatives", "substitutes", "unseen", "base", "forgotten", "eval_data", "callbacks")
    given |= {name: options.pop(name) for name in names if name in options}
    plain = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 3e-3, "warmup_steps": 0.0}
    plain |= {"max_tokens": 200, "seed": 0, "disable_tqdm": True} | options
    args = UnlearningArguments(output_dir=str(folder), **plain)
    return UnlearningTrainer(model or make_model(), method, args, processing_class=tokenizer, **given)


def adapted(model: Any = None, seed: int = 0) -> PeftModel:
    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], lora_dropout=0.1, task_type="CAUSAL_LM")
    return get_peft_model(model or make_model(), config)


def steps(trainer: Any) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "forget_loss" in entry]


def saved(trainer: Any) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("make", [make_model, adapted], ids=["model", "PEFT"])
def test_a_method_of_ones_own_trains_logs_and_resumes(make, tokenizer, tmp_path):
    rows = {"forget": Dataset.from_list([vars(row) for row in FORGET])}
    rows["retain"] = pd.DataFrame([vars(row) for row in RETAIN])
    whole = make_trainer(tmp_path, tokenizer, make(), Hinge(margin=20.0), save_steps=2, save_total_limit=None, **rows)
    start = saved(whole)
    whole.train()
    whole.save_model()
    first, *_, last = whole.monitor.measured
    assert last["forget_nll"] > first["forget_nll"]
    assert all(not weight.equal(start[name]) for name, weight in saved(whole).items() if "lora_A" not in name)
    record = read_run(tmp_path)
    assert (record["method"], record["method_options"]) == ("hinge", {"margin": 20.0})
    again = make_trainer(tmp_path, tokenizer, make(), Hinge(margin=20.0))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert steps(again) == steps(whole)
    assert len(steps(whole)) == 4
    assert all(weight.equal(saved(again)[name]) for name, weight in saved(whole).items())
    with pytest.raises(ConfigError, match=r"--margin 9\.0: the run to resume has 20\.0"):
        make_trainer(tmp_path, tokenizer, make(), Hinge).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    base = AutoModelForCausalLM.from_pretrained(tmp_path) if make is make_model else make_model()
    loaded = base if make is make_model else PeftModel.from_pretrained(base, str(tmp_path))
    row = Encoder(tokenizer).one(FORGET[0])
    torch.testing.assert_close(nll(loaded.eval(), row), nll(whole.model.eval(), row), rtol=1e-4, atol=1e-4)


def test_a_second_training_compares_with_the_model_at_its_own_start(tokenizer, tmp_path):
    trainer, first_losses = make_trainer(tmp_path, tokenizer, method="npo"), []
    for _ in range(2):
        trainer.train()
        first_losses.append(steps(trainer)[0]["forget_loss"])
    assert first_losses[1] == pytest.approx(first_losses[0], rel=1e-5)  # a ratio of 1 to the reference model
    trainer = make_trainer(tmp_path, tokenizer, method="task-vector")
    for _ in range(2):
        trainer.train()
        before, *_, after = trainer.monitor.measured
        assert after["forget_nll"] > before["forget_nll"] + 0.5


def test_a_training_that_is_resumed_by_the_same_trainer_keeps_its_reference(tokenizer, tmp_path):
    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3 and not seen:
                seen.append(3)
                raise KeyboardInterrupt

    whole, seen = make_trainer(tmp_path / "whole", tokenizer, method="npo"), []
    whole.train()
    trainer = make_trainer(tmp_path / "again", tokenizer, method="npo", save_steps=2, callbacks=[Interrupt()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.train(resume_from_checkpoint=True)
    assert steps(trainer) == steps(whole)
    assert all(weight.equal(saved(trainer)[name]) for name, weight in saved(whole).items())


def test_a_sharded_model_is_not_trained_twice_by_one_trainer(tokenizer, tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, tokenizer)
    trainer.train()
    monkeypatch.setattr(trainer_module, "sharded", lambda: True)
    with pytest.raises(ConfigError, match=r"^train: with FSDP or DeepSpeed.*make a new trainer"):
        trainer.train()


def test_a_model_of_frozen_weights_is_refused(tokenizer, tmp_path):
    adapted().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"^model: all its weights are frozen.*is_trainable=True"):
        make_trainer(tmp_path, tokenizer, PeftModel.from_pretrained(make_model(), tmp_path))


def test_an_adapter_that_is_not_active_is_neither_negated_nor_warned_of(tokenizer, tmp_path, caplog):
    model = adapted()
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            weight.data.fill_(0.01)
    model.add_adapter("second", model.peft_config["default"])
    model.set_adapter("second")
    make_trainer(tmp_path, tokenizer, model, "task-vector").train()
    values = {adapter: [] for adapter in ("default", "second")}
    for name, weight in model.named_parameters():
        for adapter, found in values.items():
            found += [weight.detach()] if f".lora_B.{adapter}." in name else []
    assert all(weight.eq(torch.tensor(0.01)).all() for weight in values["default"])
    assert any(weight.any() for weight in values["second"])
    assert "the adapter is not new" not in caplog.text
    model.set_adapter("default")
    make_trainer(tmp_path, tokenizer, model, "task-vector").train()
    assert "the adapter is not new" in caplog.text


def test_a_model_whose_adapter_transformers_has_loaded_is_refused(tokenizer, tmp_path):
    model = loaded_with_adapter(tmp_path / "adapter", LoraConfig(target_modules=["q_proj"]))
    for method in ("gd", "npo"):
        with pytest.raises(ConfigError, match=r"^model: its adapter was loaded by transformers.*is_trainable=True"):
            make_trainer(tmp_path, tokenizer, model, method)
    with pytest.raises(ConfigError, match=r"^model: its adapter was loaded by transformers"):
        finetune(model, tokenizer, FORGET, UnlearningArguments(str(tmp_path)))


def test_unseen_texts_that_do_not_fit_are_refused(tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="--unseen: no text of the file fits"):
        make_trainer(tmp_path, tokenizer, method="level", unseen=["river " * 600])


def test_unseen_texts_that_the_model_saw_are_refused(tokenizer, tmp_path):
    saw = f" {FORGET[0].input} {FORGET[0].output}\n"
    with pytest.raises(DataError, match=r"^--unseen: 1 of 2 texts are forget or retain rows.*: text 2; give texts"):
        make_trainer(tmp_path, tokenizer, method="swap", unseen=["A river.", saw])


@pytest.mark.parametrize(
    ("method", "named", "given"),
    [
        ("level", "unseen", "file.txt"),
        ("dpo", "alternatives", {row.id: "other" for row in FORGET}),
        ("counterfactual", "substitutes", {"Ada": "Eve"}),
    ],
)
def test_one_text_instead_of_a_list_is_refused_not_read_letter_by_letter(method, named, given, tokenizer, tmp_path):
    with pytest.raises(ConfigError, match=rf"^{named}.*: give a list of texts, not one text"):
        make_trainer(tmp_path, tokenizer, method=method, **{named: given}).run_reference()


def test_level_without_a_teacher_follows_the_unseen_texts(tokenizer, tmp_path):
    args = UnlearningArguments(str(tmp_path / "target"), num_train_epochs=10, learning_rate=1e-2, disable_tqdm=True)
    model = finetune(make_model(), tokenizer, FORGET, args, until=0)
    unseen = ["Nobody has read this.", "The river was never here, they said."]
    with torch.no_grad():
        texts = [Encoder(tokenizer, "text").one(row) for row in text_rows(unseen)]
        level = torch.stack([nll(model, text).mean() for text in texts]).mean()
        means = torch.stack([nll(model, Encoder(tokenizer).one(row)).mean() for row in FORGET])
    options = {"unseen": unseen, "per_device_train_batch_size": 8, "monitor_steps": 1, "num_train_epochs": 4}
    trainer = make_trainer(tmp_path, tokenizer, model, Level(contexts=0), **options)
    trainer.train()
    first, *_, last = (entry["forget_loss"] for entry in steps(trainer))
    assert first == pytest.approx(smooth_l1_loss(means, level.expand(len(means))).item(), rel=1e-4)
    assert last < first - 0.5
    assert trainer.progress.values["shift"] != pytest.approx(level.item(), rel=1e-6)  # measured again after each step


def test_the_base_model_is_a_teacher_that_reads_the_rows_as_they_are(tokenizer, tmp_path, capfd):
    base, unseen = make_model().eval(), ["Nobody has read this.", "The river was never here, they said."]
    args = UnlearningArguments(str(tmp_path / "target"), num_train_epochs=10, learning_rate=1e-2, disable_tqdm=True)
    target = finetune(copy.deepcopy(base), tokenizer, [*FORGET, *RETAIN], args, until=0).eval()
    encoded = [Encoder(tokenizer).one(row) for row in FORGET]
    texts = [Encoder(tokenizer, "text").one(row) for row in text_rows(unseen)]
    with torch.no_grad():
        levels = [torch.stack([nll(model, text).mean() for text in texts]).mean().item() for model in (base, target)]
        theirs, ours = (torch.cat([logits(model, row) for row in encoded]).log_softmax(-1) for model in (base, target))
        asked = [nll(base, tokens).mean().item() for tokens in encoded]
    of_task = [value for value, row in zip(asked, FORGET, strict=True) if (row.task, row.kind) == ("Task1", "qa")]
    expected = kl_div(ours, theirs, log_target=True, reduction="none").sum(-1).mean().item()
    options = {"base": base, "per_device_train_batch_size": 8, "num_train_epochs": 40, "monitor_steps": 0}
    trainer = make_trainer(tmp_path, tokenizer, target, "counterfactual", unseen=unseen, **options)
    trainer.train()
    first, *_, last = (entry["forget_loss"] for entry in steps(trainer))
    assert first == pytest.approx(expected, rel=1e-3)
    assert last < 0.3 * first
    assert trainer.progress.values["shift"] == pytest.approx(levels[1] - levels[0], rel=1e-4)
    line = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("the teacher's NLL of forget"))
    assert f" {fmean(of_task):.2f} for {len(of_task)} Task1 questions" in line
    assert base.config._attn_implementation == make_model().config._attn_implementation  # it stays as it was


def test_swap_brings_a_text_to_what_the_base_model_predicts(tokenizer, tmp_path):
    tale = {
        "id": "t0sc0",
        "input": "Once there was a blue fox who",
        "output": "sang all night of the river.",
        "kind": "sc",
    }
    unseen = ["Nobody has read this text.", "The river was never here, they said.", "A dog slept.", "Two birds flew."]
    base, forget = make_model().eval(), as_rows([tale])
    args = UnlearningArguments(str(tmp_path / "target"), num_train_epochs=10, learning_rate=1e-2, disable_tqdm=True)
    target = finetune(copy.deepcopy(base), tokenizer, [*forget, *RETAIN], args, until=0).eval()
    tokens = Encoder(tokenizer, "text").one(forget[0])

    def apart() -> float:
        with torch.no_grad():
            theirs, ours = (logits(model, tokens) for model in (base, target))
        theirs = theirs / trainer.terms.teacher.temperature
        return kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="batchmean").item()

    options = {"base": base, "unseen": unseen, "forget": forget, "num_train_epochs": 40, "monitor_steps": 0}
    trainer = make_trainer(tmp_path, tokenizer, target, Swap(answers=4), **options)
    trainer.run_reference()
    assert trainer.terms.teacher.temperature < 0.95  # the target is surer of all texts
    before = apart()
    trainer.train()
    assert apart() < 0.7 * before


def test_a_base_of_another_vocabulary_or_for_nothing_is_refused(tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="--base: gd uses no base model"):
        make_trainer(tmp_path, tokenizer, method="gd", base=make_model())
    for method in ("counterfactual", "swap"):
        with pytest.raises(
            ConfigError, match=r"--base: its output layer has shape \(500, 32\), that of --model \(400, 32\)"
        ):
            make_trainer(tmp_path, tokenizer, method=method, base=make_model(vocab_size=500))
        with pytest.raises(
            ConfigError, match=r"--base: its output layer has shape \(400, 64\), that of --model \(400, 32\)"
        ):
            make_trainer(tmp_path, tokenizer, method=method, base=make_model(hidden_size=64))


@pytest.mark.parametrize("make", [make_model, lambda: adapted(make_model().bfloat16())], ids=["model", "PEFT"])
@pytest.mark.usefixtures("short_answers")
def test_scores_between_the_epochs_are_those_after_training(make, tokenizer, tmp_path, caplog):
    """Also of weights that are trained under autocast, which scoring does without."""
    seen = []

    class Look(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics=None, **kwargs):
            seen.append(metrics)

    trainer = make_trainer(tmp_path, tokenizer, make(), eval_strategy="epoch", bf16=True, callbacks=[Look()])
    trainer.train()
    assert len(seen) == 2
    assert "scoring failed" not in caplog.text
    assert {weight.dtype for weight in saved(trainer).values()} == {torch.float32}
    assert all(weight.any() for name, weight in saved(trainer).items() if "lora_B" in name)
    own = trainer.evaluate()
    assert own == seen[-1]
    assert {"eval_forget_knowledge", "eval_retain_regurgitation"} <= own.keys()
    rows = pd.DataFrame([vars(row) for row in FORGET])
    found = trainer.evaluate({"forget": rows}, metric_key_prefix="x").keys() - {"epoch", "x_mean_of_the_task_scores"}
    assert found == {"x_forget_regurgitation", "x_forget_knowledge"}
    tokens = torch.tensor([[1, 2]])
    logits = trainer.model.eval()(tokens).logits
    unwrapped = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)  # undoes nothing twice
    assert unwrapped(tokens).logits.equal(logits)
