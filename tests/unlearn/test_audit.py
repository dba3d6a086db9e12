"""The probes: what they change, which rows they train on and score, and what is written."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lume_tasks.data.rows import ROW_TASKS, SIDES, Row, completion_texts
from lume_tasks.data.source import Data, load_data
from lume_tasks.errors import DataError
from lume_tasks.metrics.swap import SwapResult
from lume_unlearn.audit import suite
from lume_unlearn.audit.probes import audit, audit_table, chosen_probes, run_probes
from lume_unlearn.audit.quantisation import round_to_nearest, rounded_copy, weight_layers
from lume_unlearn.audit.rows import limited
from lume_unlearn.audit.stages import UNFINISHED
from lume_unlearn.audit.suite import PROBES, Probed
from lume_unlearn.cli.audit import PROBES as help_of_probes
from lume_unlearn.data.documents import read_texts, text_of
from lume_unlearn.errors import ConfigError
from lume_unlearn.model import load
from lume_unlearn.scoring.score import ATTACKS, MEANS, Scores
from lume_unlearn.scoring.swap import Swapped
from tests.conftest import Command, make_model, make_rows

pytestmark = pytest.mark.usefixtures("short_answers")

TEXTS = ["The first text has one line.", "The second one, too."]


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
    with pytest.raises(ConfigError, match=r"quantised: only 11% of the weights of MixtralForCausalLM"):
        weight_layers(model)


@dataclass
class Seen:
    """What was scored, as (data, model), and the rows that copies were trained on."""

    scored: list[tuple[Data, Any]] = field(default_factory=list)
    trained: list[list[Row]] = field(default_factory=list)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Record what is scored and trained on instead of doing it."""
    found = Seen()

    def score(model: Any, tokenizer: Any, data: Data, **options: Any) -> Scores:
        found.scored.append((data, model))
        return Scores()

    def train(model: Any, tokenizer: Any, rows: list[Row], steps: int, **options: Any) -> Any:
        found.trained.append(list(rows))
        yield steps, f"trained on {len(rows)}"

    monkeypatch.setattr(suite, "score", score)
    monkeypatch.setattr(suite, "relearning", train)
    return found


@pytest.fixture(scope="module")
def results(data_dir: Path, tokenizer: PreTrainedTokenizerFast, short_answers: None) -> tuple[Path, dict[str, Probed]]:
    """Every probe on a model in memory, and the folder that the means were written to."""
    output = data_dir.parent / "audit"
    options = {"relearn_rows": 2, "samples": 3, "batch_size": 16, "unrelated": TEXTS}
    found = audit(make_model(), tokenizer, data_dir, output=output, name="some/model", **options)
    return output, found


def test_every_probe_is_scored_and_written(results: tuple[Path, dict[str, Probed]]) -> None:
    output, found = results
    held_out = [f"held out, {before}relearned on 2 forget rows" for before in ("before it was ", "")]
    trained = [held_out[1], "repaired on 2 retain rows", "trained on 2 unrelated texts"]
    curve = [f"{title}, step {step}" for title in trained for step in (5, 10)]
    leaks = [f"best of {k} samples (leak@{k})" for k in (1, 2, 3)]
    changed = ["plain", "8-bit (rounded)", "4-bit (rounded)", *trained]
    prompts = {name for name, probed in found.items() if probed.changes == "prompt"}
    assert {"rephrased 1", "upper case", "prefix", "as JSON", "in Chinese", "with a system prompt"} <= prompts
    assert {name for name, probed in found.items() if probed.changes == "weights"} == {
        *changed[1:],
        *curve,
        held_out[0],
    }
    assert set(found) == {*prompts, *changed, *curve, held_out[0], *leaks}
    tasks = {f"{task} {mean}" for task in ROW_TASKS[:3] for mean in MEANS}
    assert set(found["plain"].means) == {*MEANS, *ATTACKS, *tasks, "forget_known", "retain_known"}
    assert {name for name, probed in found.items() if "loss_auc" in probed.means} == set(changed)
    written = {"model": "some/model", "split": "all", "audits": {name: probed.means for name, probed in found.items()}}
    assert json.loads((output / "audit.json").read_text()) == written
    assert [name for name, probed in found.items() if probed.control] == held_out[:1]


def test_a_killed_audit_continues_and_gives_the_same(
    data_dir: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, scored = make_model(), suite.score
    calls: list[int] = []

    def score(*args: Any, **options: Any) -> Scores:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return scored(*args, **options)

    monkeypatch.setattr(suite, "score", score)
    options: Any = {"probes": ["quantised"], "limit": 2, "batch_size": 16}
    with pytest.raises(KeyboardInterrupt):
        audit(model, tokenizer, data_dir, output=tmp_path, **options)
    assert (tmp_path / UNFINISHED).exists()
    found = audit(model, tokenizer, data_dir, output=tmp_path, **options)
    assert len(calls) == 4  # plain, once and no more; 8 bits, twice; 4 bits
    assert not (tmp_path / UNFINISHED).exists()
    again = audit(model, tokenizer, data_dir, **options)
    assert {title: (one.means, one.known) for title, one in found.items()} == {
        title: (one.means, one.known) for title, one in again.items()
    }


def test_leaks_grow_with_the_samples_and_the_table_shows_the_ends_of_the_curve(
    results: tuple[Path, dict[str, Probed]],
) -> None:
    _, found = results
    one, two, three = (found[f"best of {k} samples (leak@{k})"].means for k in (1, 2, 3))
    assert set(one) == {*MEANS, "forget_known", "retain_known"}
    assert one["forget_regurgitation"] <= two["forget_regurgitation"] <= three["forget_regurgitation"]
    table = audit_table(found)
    assert ["leak@1" in table, "leak@2" in table, "leak@3" in table] == [True, False, True]
    assert table.splitlines()[0] == "| probe | " + " | ".join((*MEANS, *ATTACKS)) + " |"


def test_relearning_scores_documents_that_it_did_not_teach(seen: Seen, data_dir: Path) -> None:
    data = load_data(data_dir)
    run_probes(None, None, data, ["relearn_forget"], relearn_rows=2)
    (before, _), (after, model) = seen.scored
    assert (model, before) == ("trained on 2", after)
    assert after.retain == data.retain
    taught = {row.stem for row in seen.trained[0]}
    assert [row for row in data.forget if row.stem not in taught] == after.forget
    # With rows of other documents to train on, all rows are scored, but none whose answer they teach.
    taught_answer = Row("other-qa0", "Question?", data.forget[0].output.upper(), "Task1")
    run_probes(None, None, data, ["relearn_forget"], train=Data([taught_answer], data.retain))
    assert seen.scored[-1][0].forget == data.forget[1:]


def test_copies_are_trained_on_32_rows_and_repair_teaches_no_answer_of_a_forget_row(
    seen: Seen, tokenizer: PreTrainedTokenizerFast
) -> None:
    forget = [Row(f"f{i}-qa0", f"Capital {i}?", f"Paris {i}", "own") for i in range(100)]
    retain = [Row(f"r{i}-qa0", f"City {i}?", f"paris {i} " if i < 50 else f"Rome {i}", "own") for i in range(100)]
    probes = ["relearn_forget", "repair", "unrelated"]
    run_probes(None, tokenizer, Data(forget, retain), probes, unrelated=["a text"] * 50)
    assert [len(rows) for rows in seen.trained] == [32, 32, 32]
    assert all("Rome" in row.output for row in seen.trained[1])


def test_the_right_option_gives_the_rows_of_a_person_away(monkeypatch: pytest.MonkeyPatch) -> None:
    people = {"forget": ["Ada Stone", "Eve Wood"], "retain": ["Ben Moor", "Cleo Rye", "Dan Fox"]}
    questions = ("Which phone has {}?", "In which town does {} live?")
    sides = {
        side: [
            Row(f"{name[:3]}-qa{i}", question.format(name), f"{name[:3]}{i}x", "own")
            for name in names
            for i, question in enumerate(questions)
        ]
        for side, names in people.items()
    }
    tied, alike = SwapResult(0.01, 1, 4, 3, 6), SwapResult(0.01, 1, 1.5, 1.2, 2)
    asked: list[str] = []

    def tested(model: Any, tokenizer: Any, data: Data, rows: list[str], **options: Any) -> Swapped:
        asked.extend(rows)
        ranks = {side: {row.id: 0.1 for row in found} for side, found in data.rows.items()}
        persons = {"forget": {"Ada Stone": tied, "Eve Wood": alike}, "retain": dict.fromkeys(people["retain"], tied)}
        return Swapped(99, persons, {}, ranks)

    monkeypatch.setattr(suite, "swap_test", tested)
    found = run_probes(None, None, Data(**sides), ["multiple_choice"])["multiple choice"]
    assert found.known == {"forget": ["Ada-qa0", "Ada-qa1"], "retain": [row.id for row in sides["retain"]]}
    assert set(asked) == {row.id for rows in sides.values() for row in rows}


def test_prompts_that_do_not_fit_are_left_out(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """The model reads 512 tokens, of which 256 are for the answer; in upper case a text has more tokens."""
    long = Row("f1-sc1", "the fox jumps over " * 25, "the dog", "own")
    short = [Row(f"{side}-sc1", f"the {side} fox", "jumps", "own") for side in SIDES]
    data = Data([long, short[0]], [short[1]])
    found = run_probes(model, tokenizer, data, ["plain", "other_words"])
    assert found["plain"].asked["forget"] == [long.id, short[0].id]
    assert found["upper case"].asked["forget"] == [short[0].id]


def test_rows_of_one_kind_are_enough_and_probes_without_rows_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    sides = {
        side: [Row(f"{side}-{i}-sc1", f"{side} {i}", f"text {i} of {side}", "own") for i in range(4)] for side in SIDES
    }
    possible = ["plain", "other_words", "quantised", "repair", "relearn_forget", "samples"]
    assert chosen_probes(None, Data(**sides)) == possible
    assert "probe left out: unrelated: needs texts" in caplog.text


def test_probe_that_cannot_run_is_refused(seen: Seen, tokenizer: PreTrainedTokenizerFast) -> None:
    data = Data([Row("f-qa0", "Capital?", "Paris", "own")], [Row("r-qa0", "City?", "paris ", "own")])
    with pytest.raises(ConfigError) as refused:
        run_probes(None, None, data, ["plain", "relearn_forget", "repair", "unrelated", "nonsense"])
    assert str(refused.value).splitlines() == [
        "probes relearn_forget: relearning needs at least two forget rows",
        "probes repair: needs a retain row whose answer is not that of a forget row",
        "probes unrelated: needs texts unrelated to the rows (option unrelated)",
        f"probes nonsense: choose from {', '.join(PROBES)}",
    ]
    assert not seen.scored
    assert chosen_probes("plain", data) == ["plain"]
    with pytest.raises(ConfigError, match=r"^probes repair: needs a retain row"):
        audit(make_model(), tokenizer, data, probes="repair", name="model")


def test_unrelated_texts_are_read_from_fields_or_paragraphs_and_faults_are_named(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"document": "One text."}\n{"text": "no"}\n')
    with pytest.raises(DataError, match=r'texts.jsonl:2: field "document" is missing'):
        read_texts("unrelated", str(file))
    file.with_suffix(".txt").write_text("One text.\n\n\nTwo longer\nlines.\n")
    file.with_suffix(".csv").write_text('document,page\n"A text, with a comma.",1\nAnother text.,2\n')
    found = read_texts("unrelated", file.with_suffix(".csv"))
    assert [text_of(row) for row in found] == ["A text, with a comma.", "Another text."]
    texts = read_texts("unrelated", str(file.with_suffix(".txt")))
    assert [f"{row.input} {row.output}" for row in texts] == ["One text.", "Two longer\nlines."]


def test_limited_data_has_the_member_documents_of_its_rows() -> None:
    """So the attack does not warn of documents whose rows were left out by the limit alone."""
    rows = make_rows("f", 12)
    data = Data(rows, make_rows("r", 12), [*sorted(completion_texts(rows)), "of no row"], ["unseen"])
    found = limited(data, 4, seed=0)
    assert found.members == [*sorted(completion_texts(found.forget)), "of no row"]
    assert 0 < len(found.members) - 1 < 6
    assert (found.nonmembers, limited(data, 0, seed=0)) == (["unseen"], data)


def test_command_prints_a_table_and_no_messages_of_the_harness_or_git(
    model_dir: Path,
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)  # no repository
    where = ("--model", model_dir, "--data", data_dir, "--output", "out")
    code, out, err = command("audit", *where, "--probes", "plain", "--limit", 2)
    assert code == 0, err
    assert out.splitlines()[2].startswith("| plain | ")
    assert "not a git repository" not in err
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [message[:20] for message in warnings] == ["lume_mia: only 0 of "]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--probes", "nonsense"), "probes nonsense: choose from plain"),
        (("--top_p", 1.5), "--top_p 1.5: must be above 0 and at most 1"),
        (("--unrelated", "nowhere"), "--unrelated nowhere: there is no such file"),
        (("--require", "forget_knowledge<=0.05"), "--require: only with --before"),
        (("--controls", 40), "--controls: only with --before"),
        (("--before", "MODEL", "--require", "a<=1.2.3"), "--require a<=1.2.3: write NUMBER<=LIMIT"),
        (("--peft", "nope"), "--peft nope: no such folder"),
        (("--before", "MODEL", "--peft", "nope"), "--peft nope: no such folder"),
    ],
)
def test_wrong_options_end_the_command_with_status_2_before_anything_is_scored(
    options: tuple[Any, ...],
    said: str,
    model_dir: Path,
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
) -> None:
    monkeypatch.setattr(load, "load_model", lambda *args: pytest.fail("loaded a model"))
    where = ("--model", model_dir, "--data", data_dir, "--output", tmp_path / "out")
    code, _, err = command("audit", *where, *(model_dir if word == "MODEL" else word for word in options))
    assert (code, said in err) == (2, True), err
    assert not (tmp_path / "out").exists()


def test_the_help_names_all_probes():
    listed = help_of_probes.removeprefix("Probes, separated by commas: ").partition(" (")[0]
    assert listed.split(", ") == list(PROBES)
