"""`lume-unlearn distill`: the noise, the texts, what it trains towards, and resuming."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lume_tasks.data import generate
from lume_tasks.data.files import read_rows
from lume_unlearn.data.encode import encode_rows
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.distill import initial_weights, noised
from lume_unlearn.methods.retain import kl_tokens
from lume_unlearn.model.load import load_tokenizer
from lume_unlearn.training.distill import add_noise, distill
from lume_unlearn.training.options import DistillConfig
from tests.conftest import Command, assert_same_weights, logged_steps, make_model, make_rows, read_run, write_rows

pytestmark = pytest.mark.usefixtures("little_to_collect")


def test_noised_by_hand() -> None:
    weight, noise = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 3.0])
    assert noised(weight, noise, 0.0, 0.1).equal(weight)
    assert noised(weight, noise, 1.0, 0.0).equal(torch.zeros(2))
    torch.testing.assert_close(noised(weight, noise, 0.5, 0.1), torch.tensor([1.05, -0.35]))


def test_noise_is_glorot_uniform_for_matrices_and_zero_for_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    assert initial_weights((5,), generator).equal(torch.zeros(5))
    for shape in ((200, 400), (3, 200, 400)):
        found = initial_weights(shape, generator)
        bound = (6 / 600) ** 0.5
        assert 0.99 * bound < found.abs().max() <= bound
        assert found.std() == pytest.approx(bound / 3**0.5, rel=0.01)


def test_tied_weights_are_noised_once() -> None:
    model = make_model(tie_word_embeddings=True)
    before = model.lm_head.weight.clone()
    add_noise(model, 0.5, 0.0, seed=0)
    assert model.get_input_embeddings().weight.equal(before / 2)


def divergence(teacher: Path, student: Path, data: Path) -> float:
    """Token mean of the KL divergence over the whole texts of the retain rows, row by row."""
    models = [AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (teacher, student)]
    values = []
    for row in encode_rows(load_tokenizer(str(teacher)), read_rows(data / "retain.jsonl"), "text", None, None):
        with torch.no_grad():
            logits = [model(torch.tensor([row.input_ids])).logits[0, :-1] for model in models]
        values.append(kl_tokens(logits[1], logits[0]))
    return float(torch.cat(values).mean())


def options(model_dir: Path, data_dir: Path, output: Path, **changes: object) -> DistillConfig:
    plain = {"epochs": 3, "learning_rate": 5e-3, "batch_size": 4, "max_tokens": 200}
    plain |= {"model": str(model_dir), "output": str(output), "data": str(data_dir)}
    return DistillConfig(**(plain | changes))  # type: ignore[arg-type]


def test_distillation_restores_the_unlearned_model_on_the_texts(
    model_dir: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noisy = AutoModelForCausalLM.from_pretrained(model_dir)
    add_noise(noisy, 0.6, 0.1, seed=0)
    noisy.save_pretrained(tmp_path / "noisy")
    output = distill(options(model_dir, data_dir, tmp_path / "out", batch_size=12, epochs=20, learning_rate=2e-2))
    losses = [entry["loss"] for entry in logged_steps(output)]
    before, after = (divergence(model_dir, folder, data_dir) for folder in (tmp_path / "noisy", output))
    assert losses[0] == pytest.approx(before, rel=1e-4)  # of all rows, before the first step
    assert after < before / 2
    assert (
        f"KL divergence from the unlearned model {before:.4f} nats a token in the first step" in capsys.readouterr().out
    )
    assert read_run(output)["config"]["params"] == {"alpha": 0.6, "beta": 0.1, "generate": 0, "ngram": 8}


def test_without_noise_the_loss_starts_at_0(model_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    output = distill(options(model_dir, data_dir, tmp_path / "out", alpha=0.0, epochs=1))
    assert logged_steps(output)[0]["loss"] == pytest.approx(0, abs=1e-5)


def test_resumed_distillation_equals_uninterrupted_distillation(
    data_dir: Path, tokenizer: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    make_model(attention_dropout=0.1).save_pretrained(model)
    tokenizer.save_pretrained(model)  # type: ignore[attr-defined]
    changes = {"generate": 3, "ngram": 4, "save_steps": 4}
    whole = distill(options(model, data_dir, tmp_path / "whole", **changes))
    assert "generated 3 texts; 0 more were left out" in capsys.readouterr().out
    assert len((whole / "generated.jsonl").read_text().splitlines()) == 3
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    shutil.copytree(whole / "checkpoint-8", stopped / "checkpoint-8")
    shutil.copy(whole / "generated.jsonl", stopped)
    with pytest.raises(ConfigError, match="--params"):
        distill(options(model, data_dir, stopped, **changes | {"generate": 4}, resume=True))
    distill(options(model, data_dir, stopped, **changes, resume=True))
    assert "generated" not in capsys.readouterr().out
    assert_same_weights(whole, stopped)
    assert read_run(whole)["history"] == read_run(stopped)["history"]
    assert read_run(whole)["history"][-1]["step"] == 12  # 12 retain rows and 3 generated texts, 4 a step


def test_generated_texts_that_repeat_forget_rows_are_left_out(
    model_dir: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = read_rows(data_dir / "forget.jsonl")[1]
    texts = [f"He said: {row.input} {row.output}", "Paris is in France.", "Rome is in Italy."]
    monkeypatch.setattr(generate, "texts", lambda *_: iter([{"text": text} for text in texts]))
    output = distill(options(model_dir, data_dir, tmp_path / "out", generate=2, epochs=1))
    lines = (output / "generated.jsonl").read_text().splitlines()
    assert [json.loads(line)["document"] for line in lines] == texts[1:]
    assert "1 more were left out, which share 8 words in a row with a forget row" in capsys.readouterr().out


def test_bad_input_is_named(model_dir: Path, data_dir: Path, tmp_path: Path, command: Command) -> None:
    rows = tmp_path / "forget.jsonl"
    write_rows(rows, make_rows("forget"))
    with pytest.raises(ConfigError, match="no text to distil on: give --retain with --forget, --texts or --generate"):
        distill(options(model_dir, data_dir, tmp_path / "a", data=None, forget=str(rows)))
    with pytest.raises(ConfigError, match=r"--texts .*nowhere\.jsonl: there is no such file"):
        distill(options(model_dir, data_dir, tmp_path / "b", texts="nowhere.jsonl"))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    words = ["--output", tmp_path / "c", "--data", data_dir]
    code, _, stderr = command("distill", "--model", adapter, *words)
    assert (code, "is an adapter; merge it into its model with `lume-unlearn merge`" in stderr) == (1, True)
    code, _, stderr = command("distill", "--model", model_dir, *words, "--alpha", "1.5")
    assert (code, "--alpha 1.5: must be at most 1" in stderr) == (1, True)
    code, _, stderr = command("run", "--method", "distill", "--model", model_dir, "--output", tmp_path / "d")
    assert (code, "use the command `lume-unlearn distill`" in stderr) == (1, True)
