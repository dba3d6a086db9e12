"""What the audits change, and that they score what they say."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from lume_tasks.data.files import read_rows
from lume_tasks.data.rows import Row
from lume_unlearn.cli import main
from lume_unlearn.config import ConfigError
from lume_unlearn.evaluation import audit as audits
from lume_unlearn.evaluation.audit import AUDITS, PREFIX, AuditConfig, audit, audit_table
from lume_unlearn.evaluation.quantisation import round_to_nearest, weight_layers
from tests.conftest import write_rows


def test_round_to_nearest_by_hand() -> None:
    # Scale 7/7 = 1 for 4 bits: levels -7..7.
    weight = torch.tensor([[7.0, 2.4, -2.6, 0.2]])
    assert round_to_nearest(weight, 4).tolist() == [[7.0, 2.0, -3.0, 0.0]]
    # Each group of inputs has its own scale: the second group's largest value is kept exactly.
    weight = torch.tensor([[7.0, 2.4, 0.7, 0.26]])
    assert round_to_nearest(weight, 4, group=2)[0].tolist() == pytest.approx([7.0, 2.0, 0.7, 0.3])


def test_round_to_nearest_is_at_most_half_a_step_off_and_keeps_shape_and_zeros() -> None:
    weight = torch.randn(5, 300)
    for bits in (8, 4):
        rounded = round_to_nearest(weight, bits)
        groups = torch.nn.functional.pad(weight, (0, 84)).reshape(5, 3, 128).abs().amax(-1) / (2 ** (bits - 1) - 1)
        assert rounded.shape == weight.shape
        step = groups.repeat_interleave(128, dim=1)[:, :300]
        assert ((rounded - weight).abs() <= step / 2 + 1e-6).all()
    assert round_to_nearest(torch.zeros(2, 4), 4).tolist() == [[0.0] * 4] * 2


@pytest.fixture(scope="module", autouse=True)
def short_answers() -> Iterator[None]:
    """Eight new tokens instead of 256: the tiny model rambles."""
    score = audits.scoring.score

    def shorter(model, metadata, tasks, **options):  # type: ignore[no-untyped-def]
        options["gen_kwargs"] = {"max_gen_toks": 8} | options.get("gen_kwargs", {})
        return score(model, metadata, tasks, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audits.scoring, "score", shorter)
        yield


@pytest.fixture(scope="module")
def config(model_dir: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> AuditConfig:
    output = tmp_path_factory.mktemp("audit") / "out"
    options = {"relearn_rows": 2, "samples": 2, "batch_size": 16}
    return AuditConfig(model=str(model_dir), output=str(output), data=str(data_dir), **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def results(config: AuditConfig) -> dict[str, dict[str, float]]:
    """All audits of a model with random weights."""
    return audit(config)


def test_every_audit_is_scored_and_written(config: AuditConfig, results: dict[str, dict[str, float]]) -> None:
    for name in ("plain", "8-bit (rounded)", "4-bit (rounded)", "upper case", "prefix", "any of 2 samples"):
        assert name in results
    assert {"held out, relearned on 2 forget rows", "held out, relearned on 2 retain rows"} <= set(results)
    four = {f"{side}_{kind}" for side in ("forget", "retain") for kind in ("regurgitation", "knowledge")}
    assert set(results["plain"]) == four
    assert json.loads((Path(config.output) / "audit.json").read_text()) == results


@pytest.mark.usefixtures("results")
def test_relearning_is_scored_on_documents_outside_the_sample(config: AuditConfig) -> None:
    whole = read_rows(Path(config.data or "") / "forget.jsonl")
    held_out = read_rows(Path(config.output) / "relearn-forget" / "forget.jsonl")
    gone = {row.stem for row in whole} - {row.stem for row in held_out}
    assert 1 <= len(gone) <= 2
    assert len(held_out) == sum(row.stem not in gone for row in whole)
    assert read_rows(Path(config.output) / "relearn-forget-before" / "forget.jsonl") == held_out


@pytest.mark.usefixtures("results")
def test_other_words_change_the_input_alone(config: AuditConfig) -> None:
    plain = {row.id: row for row in read_rows(Path(config.output) / "plain" / "forget.jsonl")}
    seen = set()
    for i in range(6):
        for row in read_rows(Path(config.output) / f"words-{i}" / "forget.jsonl"):
            assert replace(row, input="") == replace(plain[row.id], input="")
            assert plain[row.id].input.lower() in row.input.lower()
            seen.add(row.input.removesuffix(plain[row.id].input))
    assert PREFIX in seen


def test_a_changed_model_is_scored_and_the_audited_one_left_alone(
    config: AuditConfig, results: dict[str, dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    monkeypatch.setattr(audits, "fine_tune", lambda model, *args, **kwargs: trained.append(model))
    subject = audits._load(config, audits._rows(config))
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    AUDITS["relearn_retain"](replace(subject, config=replace(config, output=config.output + "-again")))
    assert trained[0] is not subject.model
    quantised, how = audits.quantise(subject, 4)
    assert how == "rounded"
    weight = quantised.model.layers[0].mlp.up_proj.weight
    assert torch.equal(weight, round_to_nearest(before["model.layers.0.mlp.up_proj.weight"], 4))
    assert torch.equal(quantised.lm_head.weight, before["lm_head.weight"])
    assert all(torch.equal(before[name], value) for name, value in subject.model.state_dict().items())


def test_a_gpt2_is_quantised_by_output_channel(config: AuditConfig) -> None:
    """Its layers are Conv1D, which hold their weight as (inputs, outputs)."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=130, n_layer=1, n_head=2, n_positions=4096))
    subject = audits.Subject(config, model, None, {})
    quantised, _ = audits.quantise(subject, 4)
    before, after = (m.transformer.h[0].mlp.c_fc.weight for m in (model, quantised))
    assert torch.equal(after, round_to_nearest(before.T, 4).T)
    assert len(after[:128, 0].unique()) <= 15
    assert torch.equal(quantised.lm_head.weight, model.lm_head.weight)


def test_a_model_whose_weights_are_elsewhere_is_not_called_quantised() -> None:
    """The experts of Mixtral are parameters of three dimensions, in no linear layer."""
    options = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1, "num_local_experts": 4}
    model = MixtralForCausalLM(MixtralConfig(vocab_size=50, hidden_size=8, intermediate_size=32, **options))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"--audits quantised: only \d% of the weights of MixtralForCausalLM"):
        weight_layers(model)


def test_a_data_directory_that_is_not_there_is_said_by_its_option(config: AuditConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--data /nonexistent: is not a directory"):
        audit(replace(config, output=str(tmp_path / "out"), data="/nonexistent"))


def test_rows_of_one_task_and_kind_are_enough(config: AuditConfig, tmp_path: Path) -> None:
    for side in ("forget", "retain"):
        rows = [Row(f"{side}-{i}-sc1", f"{side} {i}", f"text {i} of {side}", "Task2") for i in range(4)]
        write_rows(tmp_path / "data" / f"{side}.jsonl", rows)
    own = replace(config, data=str(tmp_path / "data"), output=str(tmp_path / "out"), relearn_epochs=1)
    results = audit(own)
    assert {"plain", "4-bit (rounded)", "prefix", "held out, relearned on 2 forget rows"} <= set(results)
    assert not [name for name in results if "rephrased" in name or "samples" in name or "answered" in name]
    assert set(results["plain"]) == {"forget_regurgitation", "retain_regurgitation"}


def test_an_audit_without_rows_is_refused_before_the_model_is_loaded(config: AuditConfig, tmp_path: Path) -> None:
    for side in ("forget", "retain"):
        write_rows(tmp_path / "data" / f"{side}.jsonl", [Row(f"{side}-0-sc1", side, "text", "Task1")])
    own = replace(config, data=str(tmp_path / "data"), output=str(tmp_path / "out"), model="no/such/model")
    with pytest.raises(ConfigError) as refused:
        audit(replace(own, audits="relearn_forget,samples"))
    assert str(refused.value).splitlines() == [
        "--audits relearn_forget: relearning needs at least two forget rows",
        "--audits samples: needs questions (qa rows) among the forget rows and among the retain rows",
    ]


def test_the_harness_and_git_say_nothing(
    config: AuditConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)  # no repository
    options = ["--model", config.model, "--data", str(config.data), "--output", "out", "--audits", "plain"]
    assert main(["audit", *options, "--limit", "2"]) == 0
    assert "git" not in capfd.readouterr().err
    names = {record.name for record in caplog.records if record.levelname == "WARNING"}
    assert names <= {"lm_eval.evaluator"}  # of the eight new tokens above


@pytest.mark.parametrize(
    ("options", "named"),
    [({"audits": "plain,nonsense"}, "nonsense"), ({"samples": 0}, "--samples"), ({"limit": -1}, "--limit")],
)
def test_bad_options_are_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        AuditConfig(model="m", output="o", **options)  # type: ignore[arg-type]


def test_an_output_folder_in_use_is_refused(config: AuditConfig, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(ConfigError, match="not empty"):
        audit(replace(config, output=str(tmp_path)))


def test_the_plain_score_comes_first() -> None:
    assert next(iter(AUDITS)) == "plain"


def test_the_table_has_a_row_an_audit() -> None:
    table = audit_table({"plain": {"forget_knowledge": 0.25}, "prefix": {"retain_regurgitation": 1.0}})
    assert table.splitlines()[2:] == ["| plain | - | 0.250 | - | - |", "| prefix | - | - | 1.000 | - |"]
