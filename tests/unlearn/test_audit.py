"""Audits: what they change, and which rows and model they score."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lume_tasks.data.files import read_rows
from lume_tasks.data.rows import Row
from lume_tasks.errors import DataError
from lume_unlearn.cli import main
from lume_unlearn.data.documents import read_texts
from lume_unlearn.errors import ConfigError
from lume_unlearn.evaluation import harness
from lume_unlearn.evaluation.audit import AUDITS, PREFIX, Scores, audit, audit_table, chosen_audits
from lume_unlearn.evaluation.options import AuditConfig
from lume_unlearn.evaluation.quantisation import round_to_nearest, rounded_copy, weight_layers
from lume_unlearn.evaluation.subject import Subject
from tests.conftest import make_model, write_rows

pytestmark = pytest.mark.usefixtures("short_answers")


def test_round_to_nearest_by_hand() -> None:
    # 4 bits have the levels -7 to 7; the scale is 7 / 7 = 1.
    weight = torch.tensor([[7.0, 2.4, -2.6, 0.2]])
    assert round_to_nearest(weight, 4).tolist() == [[7.0, 2.0, -3.0, 0.0]]
    # Groups of two inputs: the scale of the second group is 0.7 / 7 = 0.1.
    weight = torch.tensor([[7.0, 2.4, 0.7, 0.26]])
    assert round_to_nearest(weight, 4, group=2)[0].tolist() == pytest.approx([7.0, 2.0, 0.7, 0.3])


def test_gpt2_is_rounded_by_output_and_its_output_layer_stays() -> None:
    """Its layers are Conv1D, which hold their weight as (inputs, outputs)."""
    model = make_model(family="gpt2", hidden_size=132)
    quantised = rounded_copy(model, 4)
    before, after = (m.transformer.h[0].mlp.c_fc.weight for m in (model, quantised))
    assert torch.equal(after, round_to_nearest(before.T, 4).T)
    assert not torch.equal(after, before)
    assert torch.equal(quantised.lm_head.weight, model.lm_head.weight)


def test_model_with_most_weights_outside_linear_layers_is_refused() -> None:
    """The experts of Mixtral are three-dimensional parameters, not linear layers."""
    model = make_model(50, family="mixtral", num_local_experts=4)
    with pytest.raises(ConfigError, match=r"--audits quantised: only 11% of the weights of MixtralForCausalLM"):
        weight_layers(model)


@pytest.fixture(scope="module")
def config(model_dir: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> AuditConfig:
    folder = tmp_path_factory.mktemp("audit")
    (folder / "unrelated.txt").write_text("The first text\nhas two lines.\n\n \nThe second one has one.\n")
    options = {"data": str(data_dir), "relearn_rows": 2, "samples": 3, "batch_size": 16}
    return AuditConfig(str(model_dir), str(folder / "out"), unrelated=str(folder / "unrelated.txt"), **options)


@pytest.fixture(scope="module")
def results(config: AuditConfig, short_answers: None) -> Scores:
    return audit(config)


def test_every_audit_is_scored_and_written(config: AuditConfig, results: Scores) -> None:
    rephrased = [f"rephrased {number}" for number in (1, 2, 3)]
    held_out = [f"held out, {before}relearned on 2 forget rows" for before in ("before it was ", "")]
    trained = [*held_out, "repaired on 2 retain rows", "trained on 2 unrelated texts"]
    others = ["upper case", "prefix", "3 answered retain rows in front"]
    leaks = [f"best of {k} samples (leak@{k})" for k in (1, 2, 3)]
    changed = ["plain", "8-bit (rounded)", "4-bit (rounded)", *trained[1:]]
    assert set(results) == {*changed, *trained, *rephrased, *others, *leaks}
    tasks = {f"{task} {mean}" for task in harness.ROW_TASKS[:3] for mean in harness.MEANS}
    assert set(results["plain"].means) == {*harness.MEANS, *harness.ATTACKS, *tasks}
    assert {name for name, scored in results.items() if "loss_auc" in scored.means} == set(changed)
    written = {"model": config.model, "split": "all", "audits": {name: s.means for name, s in results.items()}}
    assert json.loads((Path(config.output) / "audit.json").read_text()) == written


def test_leaks_grow_with_the_samples_and_the_table_shows_the_ends_of_the_curve(results: Scores) -> None:
    one, two, three = (results[f"best of {k} samples (leak@{k})"].means for k in (1, 2, 3))
    assert set(one) == set(harness.MEANS)
    assert one["forget_regurgitation"] <= two["forget_regurgitation"] <= three["forget_regurgitation"]
    table = audit_table(results)
    assert "leak@1" in table
    assert "leak@2" not in table
    assert "leak@3" in table
    assert table.splitlines()[0].endswith("| loss_auc | min_k_plus_plus_auc |")


@pytest.mark.usefixtures("results")
def test_each_audit_scores_the_rows_that_it_names(config: AuditConfig) -> None:
    rows = read_rows(Path(config.data or "") / "forget.jsonl")
    written = {path.parent.name: read_rows(path) for path in Path(config.output).glob("*/forget.jsonl")}
    # Relearning is scored on the documents outside its sample.
    held_out = written["relearn-forget"]
    trained = {row.stem for row in rows} - {row.stem for row in held_out}
    assert 1 <= len(trained) <= 2
    assert len(held_out) == sum(row.stem not in trained for row in rows)
    assert written["relearn-forget-before"] == held_out
    # Other words change the input alone.
    plain = {row.id: row for row in written["plain"]}
    added = set()
    for i in range(6):
        for row in written[f"words-{i}"]:
            assert replace(row, input="") == replace(plain[row.id], input="")
            assert plain[row.id].input.lower() in row.input.lower()
            added.add(row.input.removesuffix(plain[row.id].input))
    assert PREFIX in added


def test_audits_leave_the_audited_model_unchanged(
    config: AuditConfig, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = {side: read_rows(Path(config.data or "") / f"{side}.jsonl")[:4] for side in ("forget", "retain")}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for name in ("repair", "quantised"):
        AUDITS[name](Subject(replace(config, output=str(tmp_path)), model, tokenizer, rows))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def write_sides(folder: Path, count: int) -> str:
    for side in ("forget", "retain"):
        rows = [Row(f"{side}-{i}-sc1", f"{side} {i}", f"text {i} of {side}", "Task2") for i in range(count)]
        write_rows(folder / f"{side}.jsonl", rows)
    return str(folder)


def test_rows_of_one_task_and_kind_are_enough(
    config: AuditConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_sides(tmp_path / "data", 4)
    rows = {side: read_rows(Path(data) / f"{side}.jsonl") for side in ("forget", "retain")}
    possible = ["plain", "quantised", "relearn_forget", "repair", "other_words", "samples"]
    assert chosen_audits(replace(config, unrelated=None), rows) == possible
    assert "audit left out: unrelated: needs texts" in caplog.text
    results = audit(replace(config, data=data, output=str(tmp_path / "out"), audits="other_words"))
    assert list(results) == ["plain", "upper case", "prefix"]
    assert {name for name in results["plain"].means if " " not in name} == {
        "forget_regurgitation",
        "retain_regurgitation",
    }


def test_repair_does_not_train_on_the_answer_of_a_forget_row(config: AuditConfig) -> None:
    rows = {"forget": [Row("f-qa0", "Capital?", "Paris", "own")], "retain": [Row("r-qa0", "City?", "paris ", "own")]}
    with pytest.raises(ConfigError, match="--audits repair: needs a retain row whose answer is not"):
        chosen_audits(replace(config, audits="repair"), rows)


def test_former_name_of_repair_is_understood_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert AuditConfig("m", "o", audits="plain,relearn_retain").audits == "plain,repair"
    assert "--audits relearn_retain: this audit is now repair" in caplog.text


def test_unrelated_texts_are_read_from_fields_or_paragraphs_and_faults_are_named(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"document": "One text."}\n{"text": "no"}\n')
    with pytest.raises(DataError, match=r'texts.jsonl:2: field "document" is missing'):
        read_texts("unrelated", str(file))
    file.with_suffix(".txt").write_text("One text.\n\n\nTwo longer\nlines.\n")
    texts = read_texts("unrelated", str(file.with_suffix(".txt")))
    assert [f"{row.input} {row.output}" for row in texts] == ["One text.", "Two longer\nlines."]
    with pytest.raises(ConfigError, match="--unrelated nowhere: there is no such file"):
        read_texts("unrelated", "nowhere")


def test_audit_that_cannot_run_is_refused_before_the_model_is_loaded(config: AuditConfig, tmp_path: Path) -> None:
    own = replace(config, data=write_sides(tmp_path / "data", 1), output=str(tmp_path / "out"), model="no/such/model")
    with pytest.raises(ConfigError) as refused:
        audit(replace(own, unrelated=None, audits="relearn_forget,unrelated,nonsense"))
    assert str(refused.value).splitlines() == [
        "--audits relearn_forget: relearning needs at least two forget rows",
        "--audits unrelated: needs texts that have nothing to do with the rows; name a file of them by --unrelated",
        f"--audits nonsense: choose from {', '.join(AUDITS)}",
    ]
    with pytest.raises(ConfigError, match="not empty"):
        audit(replace(own, output=str(tmp_path)))


def test_command_prints_a_table_and_no_messages_of_the_harness_or_git(
    config: AuditConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)  # no repository
    options = ["--model", config.model, "--data", str(config.data), "--output", "out", "--audits", "plain"]
    assert main(["audit", *options, "--limit", "2"]) == 0
    printed = capfd.readouterr()
    assert printed.out.splitlines()[0] == "| audit | " + " | ".join((*harness.MEANS, *harness.ATTACKS)) + " |"
    assert printed.out.splitlines()[2].startswith("| plain | ")
    assert "not a git repository" not in printed.err
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    about_members = [record for record in warnings if record.getMessage().startswith("lume_mia: only 0 of the 8")]
    assert len(about_members) == 1
    # The others are about the 8 new tokens above.
    assert {record.name for record in warnings if record not in about_members} <= {"lm_eval.evaluator"}
